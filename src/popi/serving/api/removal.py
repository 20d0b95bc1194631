"""Erasing users and deleting parts of their data, down to the bytes on disk."""

import logging
import time
from collections.abc import Callable

from sqlalchemy import Connection

from popi.profiles.answers import (
    Deleted,
    Receipt,
)
from popi.profiles.fields import Author
from popi.serving.api.commands import Line, erase, receipt
from popi.serving.api.profile_store import ProfileStore
from popi.serving.api.stored import (
    NotFound,
    no_user,
)
from popi.serving.store import (
    erasure,
    users,
)
from popi.serving.store.deletion import Deleter, Deletion

log = logging.getLogger("popi.gateway.profiles")

MAX_IMMEDIATE_SCRUB_BYTES = 64 * 2**20
"""A SQLite file up to this size is rewritten before an erasure returns; a larger one shortly after."""
SCRUB_SHARE = 0.1
"""Maximum share of the time to spend rewriting the file; the next rewrite waits accordingly."""


class Removal(ProfileStore):
    """Erasures, deletions, and the overwriting of deleted bytes."""

    async def erase(self, tenant: str, user_id: str) -> Receipt:
        """Erase a user, including their bytes on disk. Erasing a user who does not exist is not an error.

        When this returns, no process on the store uses anything of theirs any more.
        """

        def write(connection: Connection) -> tuple[float, tuple[erasure.Removed, Line, bool]]:
            now = self._now(connection)
            return now, erase(connection, tenant, user_id, now)

        at, (removed, line, webhook_pending) = await self.store.write(write)
        # Log before overwriting bytes, which may fail: `popi replay` repeats erasures from this line after a restore.
        log.info("erased", extra={"fields": {**line, **removed.__dict__}})
        self._changed(tenant, user_id)
        self._erased(tenant, user_id)
        await self.everyone()
        database = self.store.database
        if database.kind == "sqlite" and database.size() <= MAX_IMMEDIATE_SCRUB_BYTES:
            await self.scrub()
        pending = await self.store.read(erasure.scrub_due) if database.kind == "sqlite" else None
        return receipt(database, removed, at, pending is not None or webhook_pending)

    async def delete_clause(
        self, tenant: str, user_id: str, name: str, author: Author, *, signals: bool = False, forbid: bool = False
    ) -> Deleted:
        """Delete a clause from every version.

        Args:
            tenant: the user's tenant.
            user_id: the user.
            name: the clause's id.
            author: who deletes it.
            signals: also delete the signals that it rests on.
            forbid: ban it from future summaries, without storing its words.

        Raises:
            NotFound: no version has it.
        """
        message = "no version of this user's summary has a clause with this id"

        def delete(deleting: Deleter) -> bool:
            return deleting.clause(name, author, with_signals=signals, ban=forbid)

        return await self._delete(tenant, user_id, delete, NotFound("no_clause", message), kind="clause")

    async def delete_version(self, tenant: str, user_id: str, version: int, author: Author) -> Deleted:
        """Delete a version; if it is the current one, the previous version becomes current.

        Raises:
            NotFound: no such version.
        """
        missing = NotFound("no_version", f"this summary has no version {version}")
        return await self._delete(
            tenant, user_id, lambda deleting: deleting.version(version, author), missing, kind="version"
        )

    async def delete_signal(self, tenant: str, user_id: str, name: str, key_id: str | None = None) -> Deleted:
        """Delete a signal, and the clauses that rest on it.

        Raises:
            NotFound: no such signal.
        """
        missing = NotFound("no_signal", "this user has no signal with this id; GET …/signals lists their signals")
        return await self._delete(
            tenant, user_id, lambda deleting: deleting.signal(name), missing, key_id, kind="signal"
        )

    async def delete_words(self, tenant: str, user_id: str, name: str, author: Author) -> Deleted:
        """Delete the words of a forbidden clause; it stays forbidden.

        Raises:
            NotFound: no such entry.
        """
        missing = NotFound("no_forbidden", "the current summary has no forbidden clause with this id")
        return await self._delete(tenant, user_id, lambda deleting: deleting.words(name, author), missing, kind="words")

    async def _delete(
        self,
        tenant: str,
        user_id: str,
        delete: Callable[[Deleter], bool],
        missing: NotFound,
        key_id: str | None = None,
        *,
        kind: str,
    ) -> Deleted:
        def write(connection: Connection) -> Deletion:
            if not users.lock_existing(connection, tenant, user_id):
                raise no_user()
            deleting = Deleter(connection, tenant, user_id, self._now(connection), self.debounce, key_id)
            if not delete(deleting):
                raise missing
            return deleting.done

        done = await self._write(f"delete_{kind}", tenant, user_id, write)
        self._changed(tenant, user_id)
        self._erased(tenant, user_id)
        await self.everyone()
        return Deleted.model_validate(done.__dict__ | {"data_on_disk": await self._data_on_disk()})

    async def _data_on_disk(self) -> str:
        """Overwrite deleted bytes if the file is small. Returns the state of the bytes, as receipts name it."""
        database = self.store.database
        if database.kind == "postgresql":
            return "left_to_postgresql"
        if database.size() <= MAX_IMMEDIATE_SCRUB_BYTES:
            await self.scrub()
        return "scheduled" if await self.store.read(erasure.scrub_due) is not None else "overwritten"

    async def scrub(self) -> bool:
        """Overwrite deleted bytes, if any. Returns whether none are left."""
        due = await self.store.read(erasure.scrub_due)
        if due is None:
            return True
        began = time.monotonic()
        done = await self.store.scrub()
        self._scrub_after = time.monotonic() + (time.monotonic() - began) / SCRUB_SHARE
        if done:
            await self.store.write(erasure.scrubbed, due)
        return done

    async def scrub_if_time(self) -> None:
        """`scrub`, unless it has used up its share of the time."""
        if time.monotonic() >= self._scrub_after:
            await self.scrub()
