"""Summaries: reading, editing, rolling back and rebuilding them."""

import asyncio
from collections.abc import AsyncIterator

from sqlalchemy import Connection

from popi.profiles import clauses as parts
from popi.profiles.answers import (
    SummaryAnswer,
    UserAnswer,
    VersionsAnswer,
)
from popi.profiles.fields import Author, Forbidden
from popi.profiles.fit import checked_edit
from popi.profiles.forbidden import Bans, from_edits
from popi.profiles.requests import SummaryEdit
from popi.profiles.screening import checked
from popi.serving.api import stored
from popi.serving.api.commands import rebuild
from popi.serving.api.profile_store import ProfileStore
from popi.serving.api.stored import (
    NotFound,
    existing_user,
    no_user,
    summary_answer,
)
from popi.serving.store import (
    forbidden,
    summaries,
    undo,
    users,
)
from popi.serving.store.summaries import Version
from popi.serving.store.undo import Steps


class SummaryEdits(ProfileStore):
    """Operations on summaries and their versions."""

    async def summary(self, tenant: str, user_id: str) -> SummaryAnswer:
        """The current summary.

        Raises:
            NotFound: no such user, or no summary.
        """

        def read(connection: Connection) -> SummaryAnswer:
            current = summaries.current(connection, tenant, user_id)
            if current is None:
                existing_user(connection, tenant, user_id)
                raise NotFound("no_summary", "this user has no summary yet")
            return summary_answer(current, forbidden.words(connection, tenant, user_id))

        return await self.store.read(read)

    async def put_summary(
        self, tenant: str, user_id: str, edit: SummaryEdit, author: Author, expected: int | None
    ) -> SummaryAnswer:
        """Write the next version of a summary; creates the user if necessary.

        Args:
            tenant: the user's tenant.
            user_id: the user.
            edit: the new content.
            author: who wrote it.
            expected: the version that the author read, 0 if there was none; None if unknown.

        Raises:
            VersionConflict: another version is current, or `expected` is None and there is a summary.
            DataError: the text is not allowed in a summary (popi.profiles.screening).
        """

        def write(connection: Connection) -> SummaryAnswer:
            written = self._put(connection, tenant, user_id, fit, author, expected or 0)
            return summary_answer(written, forbidden.words(connection, tenant, user_id))

        fit = await asyncio.to_thread(checked_edit, edit)  # before taking any lock
        written = await self._write("edit_summary", tenant, user_id, write)
        self._changed(tenant, user_id)
        return written

    def _put(
        self, connection: Connection, tenant: str, user_id: str, edit: SummaryEdit, author: Author, expected: int
    ) -> Version:
        now = self._now(connection)
        users.lock(connection, tenant, user_id, now)
        current = summaries.current(connection, tenant, user_id)
        before = current.clauses if current is not None else ()
        banned: list[Forbidden] | None = None
        ban_words: dict[str, str] = {}
        if edit.forbidden is not None:
            old_bans = current.forbidden if current is not None else ()
            banned, ban_words = from_edits(edit.forbidden, old_bans, forbidden.ensure_secret(connection))
            if {one.id for one in old_bans} - {
                one.id for one in banned
            }:  # a lifted ban: its clause may be learned again
                users.set_signals_read(connection, tenant, user_id, None)
        if edit.clauses is not None:
            new = parts.from_edit(edit.clauses, before, author)
            text = parts.join(new)
        elif edit.text is not None:
            text = edit.text.strip()
            new = parts.from_text(text, before, author)
        else:
            bans = Bans(banned or (), forbidden.secret(connection))
            new = [one for one in before if one.locked or not bans.hit(one.text)]
            unchanged = current is not None and len(new) == len(before)
            text = current.text if current is not None and unchanged else parts.join(new)
        keep = self.bounds.keep
        written = summaries.put(
            connection, tenant, user_id, text, new, author, now, expected=expected, forbidden=banned, keep=keep
        )
        forbidden.store_words(connection, tenant, user_id, ban_words)
        return written

    async def versions(self, tenant: str, user_id: str) -> VersionsAnswer:
        """A user's newest versions, up to about `versions_bytes` in total.

        Raises:
            NotFound: no such user.
        """

        def read(connection: Connection) -> VersionsAnswer:
            existing_user(connection, tenant, user_id)
            newest = summaries.versions(connection, tenant, user_id, max_characters=self.bounds.versions_bytes)
            words = forbidden.words(connection, tenant, user_id)
            return VersionsAnswer(versions=[summary_answer(one, words) for one in newest])

        return await self.store.read(read)

    def all_versions(self, tenant: str, user_id: str) -> AsyncIterator[str]:
        """See `stored.versions`."""
        return self.store.stream(stored.versions(self.store.database.read, tenant, user_id))

    async def rollback(
        self, tenant: str, user_id: str, version: int, author: Author, expected: int | None, step: bool = False
    ) -> SummaryAnswer:
        """Restore an old version's content as the next version. `step`: this is an undo or a redo (see `steps`).

        Raises:
            NotFound: no such user or version.
            VersionConflict: `expected` is given and another version is current.
            DataError: that version's text is no longer allowed in a summary.
        """

        def write(connection: Connection) -> SummaryAnswer:
            if not users.lock_existing(connection, tenant, user_id):
                raise no_user()
            old = summaries.find(connection, tenant, user_id, version)
            if old is None:
                raise NotFound("no_version", f"this summary has no version {version}")
            checked(old.text)
            now = self._now(connection)
            written = summaries.put(
                connection,
                tenant,
                user_id,
                old.text,
                old.clauses,
                author,
                now,
                expected=expected,
                model=old.model,
                forbidden=old.forbidden,
                restores=version if step else None,
                keep=self.bounds.keep,
            )
            forbidden.store_words(connection, tenant, user_id, {})
            return summary_answer(written, forbidden.words(connection, tenant, user_id))

        written = await self._write("roll_back", tenant, user_id, write)
        self._changed(tenant, user_id)
        return written

    async def steps(self, tenant: str, user_id: str) -> Steps:
        """The versions that an undo and a redo would restore."""
        return await self.store.read(undo.steps, tenant, user_id)

    async def rebuild(self, tenant: str, user_id: str, key_id: str | None = None) -> UserAnswer:
        """Request a renewal that reads all signals, ignoring the current summary. Delayed if the last rebuild is
        recent.

        Raises:
            NotFound: no such user.
            OverBound: 409, the user has turned learning off.
        """
        await self.store.write(
            rebuild, tenant, user_id, self.store.database.now, self.debounce.rebuild_interval_s, key_id
        )
        return await self.user(tenant, user_id)
