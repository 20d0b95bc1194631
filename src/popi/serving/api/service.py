"""What the routes of the profile API do, on the store. Knows no HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection, select

from popi.errors import StoreError
from popi.profiles import clauses as parts
from popi.profiles.answers import (
    ControlsAnswer,
    Deleted,
    ImportAnswer,
    MergeAnswer,
    Receipt,
    SignalsAnswer,
    SummaryAnswer,
    UserAnswer,
    VersionsAnswer,
)
from popi.profiles.fields import Author, Forbidden
from popi.profiles.fit import checked_edit, checked_user
from popi.profiles.forbidden import Bans, from_edits
from popi.profiles.requests import Feedback, ImportedUser, SummaryEdit
from popi.profiles.screening import checked
from popi.profiles.training import TARGETS, as_signals
from popi.serving.api import stored
from popi.serving.api.commands import Line, erase, merge, merged_line, rebuild, receipt, switched_line
from popi.serving.api.stored import (
    NotFound,
    found_user,
    no_user,
    shown,
    training_line,
    user_of,
    within,
    within_bounds,
)
from popi.serving.capture.feedback import as_signals as feedback_signals
from popi.serving.capture.injected import Injected
from popi.serving.reads import Reads
from popi.serving.settings import ProfileSettings
from popi.serving.store import (
    audit,
    controls,
    erasure,
    expiry,
    forbidden,
    keys,
    signals,
    summaries,
    undo,
    users,
)
from popi.serving.store.controls import Switches
from popi.serving.store.deletion import Deleter, Deletion
from popi.serving.store.jobs import Debounce
from popi.serving.store.merging import Moved
from popi.serving.store.summaries import Version
from popi.serving.store.threads import Store
from popi.serving.store.undo import Steps
from popi.serving.store.usage import DAY
from popi.signals.types import Signal, User

T = TypeVar("T")

log = logging.getLogger("popi.gateway.profiles")

SCRUB_AT_ONCE = 64 * 2**20
"""Up to this many bytes a SQLite file is rewritten before an erasure is answered; larger ones are soon after."""
SCRUB_SHARE = 0.1
"""Most of the time that rewriting may take: the next waits until this holds."""


class Profiles:
    """The users of all tenants.

    Args:
        store: the database.
        debounce: when new signals lead to a renewal.
        changed: called with tenant and user id once a summary has changed, or a user is gone.
        erased: called with tenant and user id once a user is gone.
        injected: the block that summaries go upstream in; it is no part of anybody's feedback.
        bounds: of what is stored.
    """

    def __init__(
        self,
        store: Store,
        debounce: Debounce | None = None,
        changed: Callable[[str, str], None] = lambda tenant, user_id: None,
        erased: Callable[[str, str], None] = lambda tenant, user_id: None,
        injected: Injected | None = None,
        bounds: ProfileSettings | None = None,
    ) -> None:
        self.store, self.debounce, self.bounds = store, debounce or Debounce(), bounds or ProfileSettings()
        self._injected = injected or Injected()
        self._changed, self._erased = changed, erased
        self.reads = Reads(store)
        self._scrub_after = 0.0
        self._probe: asyncio.Task[bool] | None = None

    def _now(self, connection: Connection) -> float:
        return self.store.database.now(connection)

    async def _write(self, action: str, tenant: str, user_id: str, query: Callable[[Connection], T]) -> T:
        """Change something of a user, and note it in the audit log: both, or neither."""

        def write(connection: Connection) -> T:
            done = query(connection)
            audit.note(connection, self._now(connection), action, tenant, [user_id])
            return done

        return await self.store.write(write)

    async def tenant_exists(self, tenant: str) -> bool:
        """Whether there is this tenant."""
        return await self.store.read(keys.tenant_exists, tenant)

    async def ready(self) -> bool:
        """Whether the store answers. However many ask, the store is asked once at a time."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._answers())
        return await asyncio.shield(self._probe)

    async def _answers(self) -> bool:
        try:
            await self.store.read(lambda connection: connection.execute(select(1)).one())
        except StoreError:
            return False
        return True

    async def add_signals(
        self, tenant: str, user_id: str, new: Sequence[Signal], key_id: str | None = None
    ) -> SignalsAnswer:
        """Add signals; on disk when this returns. `key_id`, here and below: the key that the renewal is charged to.

        Raises:
            OverBound: one is too long, or the user would have too many.
        """

        def add(connection: Connection) -> tuple[list[str], int]:
            return self._add(connection, tenant, user_id, new, self._now(connection), key_id)

        return _told(new, *await self._write("add_signals", tenant, user_id, add))

    def _add(
        self,
        connection: Connection,
        tenant: str,
        user_id: str,
        new: Sequence[Signal],
        now: float,
        key_id: str | None,
        bulk: bool = False,
    ) -> tuple[list[str], int]:
        for index, signal in enumerate(new):
            length = len(signal.model_dump_json(exclude_none=True))
            what = f"the characters of signals[{index}] as JSON"
            within(self.bounds, "signal_chars", length, 413, "signal_too_long", what)
        ids, added = signals.add(connection, tenant, user_id, new, now, self.debounce, key_id, bulk)
        if added:  # what goes beyond a bound is rolled back
            within_bounds(connection, tenant, user_id, self.bounds)
        return ids, added

    async def signals(
        self, tenant: str, user_id: str, limit: int, before: int | None = None, contains: str = ""
    ) -> list[tuple[int, Signal]]:
        """A user's signals with their positions (store.signals.search).

        Raises:
            NotFound: no such user.
        """

        def read(connection: Connection) -> list[tuple[int, Signal]]:
            found_user(connection, tenant, user_id)
            return signals.search(connection, tenant, user_id, limit, before, contains)

        return await self.store.read(read)

    async def user(self, tenant: str, user_id: str) -> UserAnswer:
        """One user.

        Raises:
            NotFound: no such user.
        """

        return await self.store.read(lambda connection: user_of(connection, tenant, user_id, self._now(connection)))

    async def summary(self, tenant: str, user_id: str) -> SummaryAnswer:
        """The current summary.

        Raises:
            NotFound: no such user, or no summary.
        """

        def read(connection: Connection) -> SummaryAnswer:
            current = summaries.current(connection, tenant, user_id)
            if current is None:
                found_user(connection, tenant, user_id)
                raise NotFound("no_summary", "this user has no summary yet")
            return shown(current, forbidden.words(connection, tenant, user_id))

        return await self.store.read(read)

    async def put_summary(
        self, tenant: str, user_id: str, edit: SummaryEdit, author: Author, expected: int | None
    ) -> SummaryAnswer:
        """Write the next version of a summary; makes the user if need be.

        Args:
            tenant: whose user.
            user_id: the user.
            edit: what it is to say.
            author: who says so.
            expected: the version that the author saw, 0 for none; None: they did not say.

        Raises:
            VersionConflict: another is current; or they did not say, and there is one.
            DataError: it carries what a summary may not (popi.profiles.screening).
        """

        def write(connection: Connection) -> SummaryAnswer:
            written = self._put(connection, tenant, user_id, fit, author, expected or 0)
            return shown(written, forbidden.words(connection, tenant, user_id))

        fit = await asyncio.to_thread(checked_edit, edit)  # before anything is locked
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
        said: dict[str, str] = {}
        if edit.forbidden is not None:
            was = current.forbidden if current is not None else ()
            banned, said = from_edits(edit.forbidden, was, forbidden.ensure_secret(connection))
            if {one.id for one in was} - {one.id for one in banned}:  # what was kept out may be said again
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
        forbidden.store_words(connection, tenant, user_id, said)
        return written

    async def versions(self, tenant: str, user_id: str) -> VersionsAnswer:
        """A user's newest versions, of about `versions_bytes`.

        Raises:
            NotFound: no such user.
        """

        def read(connection: Connection) -> VersionsAnswer:
            found_user(connection, tenant, user_id)
            newest = summaries.versions(connection, tenant, user_id, max_characters=self.bounds.versions_bytes)
            words = forbidden.words(connection, tenant, user_id)
            return VersionsAnswer(versions=[shown(one, words) for one in newest])

        return await self.store.read(read)

    def all_versions(self, tenant: str, user_id: str) -> AsyncIterator[str]:
        """`stored.versions`."""
        return self.store.stream(stored.versions(self.store.database.read, tenant, user_id))

    async def rollback(
        self, tenant: str, user_id: str, version: int, author: Author, expected: int | None, step: bool = False
    ) -> SummaryAnswer:
        """Write an old version's content as the next version. `step`: it is an undo or a redo (`steps`).

        Raises:
            NotFound: no such user, or the version is not kept.
            VersionConflict: `expected` is given, and another is current.
            DataError: that version carries what a summary may not.
        """

        def write(connection: Connection) -> SummaryAnswer:
            if not users.lock_existing(connection, tenant, user_id):
                raise no_user()
            old = summaries.find(connection, tenant, user_id, version)
            if old is None:
                raise NotFound("no_version", f"version {version} of this summary is not there")
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
            return shown(written, forbidden.words(connection, tenant, user_id))

        written = await self._write("roll_back", tenant, user_id, write)
        self._changed(tenant, user_id)
        return written

    async def steps(self, tenant: str, user_id: str) -> Steps:
        """The versions that an undo and a redo lead to."""
        return await self.store.read(undo.steps, tenant, user_id)

    async def rebuild(self, tenant: str, user_id: str, key_id: str | None = None) -> UserAnswer:
        """Call for a renewal that reads all signals, whatever the summary rests on by now. Where there was a rebuild
        lately, it waits.

        Raises:
            NotFound: no such user.
            OverBound: 409, the user has switched learning off.
        """
        await self.store.write(rebuild, tenant, user_id, self.store.database.now, self.debounce.rebuild, key_id)
        return await self.user(tenant, user_id)

    async def controls(self, tenant: str, user_id: str) -> ControlsAnswer:
        """How a user's switches stand, whether or not anything is known of them."""
        found = await self.store.read(controls.find, tenant, user_id)
        return ControlsAnswer(use=found.use, learn=found.learn)

    async def set_controls(
        self, tenant: str, user_id: str, use: bool | None, learn: bool | None, key_id: str | None = None
    ) -> ControlsAnswer:
        """Set a user's switches, those that are not None; makes the user if need be."""

        def write(connection: Connection) -> tuple[Switches, Line]:
            now = self._now(connection)
            after = controls.put(connection, tenant, user_id, now, self.debounce, use=use, learn=learn, key_id=key_id)
            return after, switched_line(connection, tenant, user_id, after, now)

        after, line = await self._write("set_controls", tenant, user_id, write)
        self._changed(tenant, user_id)
        log.info("switched", extra={"fields": line})
        return ControlsAnswer(use=after.use, learn=after.learn)

    async def feedback(self, tenant: str, user_id: str, told: Feedback, key_id: str | None = None) -> SignalsAnswer:
        """What a user did with an answer, as signals.

        Raises:
            OverBound: the user would have too many.
            NotFound: the answer is not kept: no capture for this tenant, another user's, or its time is over.
            AmbiguousAnswer: an id of the upstream's fits several answers.
        """

        def write(connection: Connection) -> tuple[list[str], int] | None:
            now = self._now(connection)
            # The user's row before the answers: an erasure waits for us, or is over, and then nothing is kept.
            there = users.lock_existing(connection, tenant, user_id)
            if there and not users.learns(connection, tenant, user_id):
                return None
            new = feedback_signals(connection, tenant, user_id, told, now, self._injected) if there else None
            if new is None:
                raise NotFound("no_answer", "no answer of that id is kept for this user (docs/profiles.md, capture)")
            return self._add(connection, tenant, user_id, new, now, key_id)

        stored = await self._write("feedback", tenant, user_id, write)
        if stored is None:
            return SignalsAnswer(ids=[], added=0, known=0, not_learned=1)
        ids, added = stored
        return SignalsAnswer(ids=ids, added=added, known=len(ids) - added)

    async def expire(self) -> None:
        """Delete what is kept for a stated time only, once that is over."""

        def due(connection: Connection) -> bool:
            return expiry.any_expired(connection, self._now(connection))

        if await self.store.read(due):
            await self.store.write(lambda connection: expiry.expire(connection, self._now(connection)))

    async def expire_audit(self, days: float) -> None:
        """Delete entries of the audit log that are older."""

        def old(connection: Connection) -> bool:
            return audit.any_older(connection, self._now(connection) - days * DAY)

        if await self.store.read(old):
            await self.store.write(lambda connection: audit.expire(connection, self._now(connection) - days * DAY))

    def export(self, tenant: str, user_id: str) -> AsyncIterator[str]:
        """`stored.exported`."""
        return self.store.stream(stored.exported(self.store.database.read, tenant, user_id))

    async def training_line(self, tenant: str, user_id: str, targets: int = TARGETS) -> User:
        """A user as `popi train` reads them.

        Raises:
            NotFound: no such user.
        """
        return await self.store.read(training_line, tenant, user_id, targets)

    async def import_users(
        self, tenant: str, imported: Sequence[ImportedUser], author: Author, key_id: str | None = None
    ) -> ImportAnswer:
        """Add users, or signals to users; all or nothing. Their renewals come after the tenant's others.

        Raises:
            DataError: somebody's summary carries what a summary may not.
            OverBound: as `add_signals`.
        """

        def write(connection: Connection) -> tuple[ImportAnswer, list[str]]:
            total = ImportAnswer(users=len(imported), added=0, known=0, summaries=0)
            changed = []
            # In one order, so that two imports never wait for each other's users in a circle.
            for one in sorted(fit, key=lambda user: user.user_id):
                now = self._now(connection)
                users.lock(connection, tenant, one.user_id, now)
                if not users.learns(connection, tenant, one.user_id):
                    total.not_learned += 1
                    continue
                there = signals.newest(connection, tenant, one.user_id) if one.targets else []
                every = as_signals(one.signals, one.targets, there)
                ids, added = self._add(connection, tenant, one.user_id, every, now, key_id, bulk=True)
                total.added += added
                total.known += len(ids) - added
                if one.summary is not None and summaries.current(connection, tenant, one.user_id) is None:
                    self._put(connection, tenant, one.user_id, one.summary, author, 0)
                    total.summaries += 1
                    changed.append(one.user_id)
            audit.note(connection, self._now(connection), "import", tenant, [one.user_id for one in fit])
            return total, changed

        fit = await asyncio.to_thread(lambda: [checked_user(one) for one in imported])
        answer, changed = await self.store.write(write)
        for user_id in changed:
            self._changed(tenant, user_id)
        return answer

    async def merge(self, tenant: str, user_id: str, source: str, key_id: str | None = None) -> MergeAnswer:
        """Make another user part of this one, who is made if need be; the other is gone.

        Raises:
            NotFound: no such other user.
            OverBound: the user would have too many signals; nothing was moved.
            DataError: both are the same.
        """

        def write(connection: Connection) -> tuple[Moved, UserAnswer, Line]:
            now = self._now(connection)
            moved = merge(connection, tenant, user_id, source, now, self.debounce, key_id, self.bounds)
            return (
                moved,
                user_of(connection, tenant, user_id, now),
                merged_line(connection, tenant, user_id, source, now),
            )

        moved, user, line = await self.store.write(write)
        for one in (user_id, source):
            self._changed(tenant, one)
        self._erased(tenant, source)
        log.info("merged", extra={"fields": {**line, **moved.__dict__}})
        return MergeAnswer(**moved.__dict__, user=user)

    async def erase(self, tenant: str, user_id: str) -> Receipt:
        """Remove all of a user, and the bytes. Of a user who is not there nothing is removed, and that is no error."""

        def write(connection: Connection) -> tuple[float, tuple[erasure.Removed, Line, bool]]:
            now = self._now(connection)
            return now, erase(connection, tenant, user_id, now)

        at, (removed, line, told) = await self.store.write(write)
        # At once, whatever becomes of the bytes: after a restored backup it is erased again by this line.
        log.info("erased", extra={"fields": {**line, **removed.__dict__}})
        self._changed(tenant, user_id)
        self._erased(tenant, user_id)
        database = self.store.database
        if database.kind == "sqlite" and database.size() <= SCRUB_AT_ONCE:
            await self.scrub()
        pending = await self.store.read(erasure.scrub_due) if database.kind == "sqlite" else None
        return receipt(database, removed, at, pending is not None or told)

    async def delete_clause(
        self, tenant: str, user_id: str, name: str, author: Author, *, signals: bool = False, forbid: bool = False
    ) -> Deleted:
        """Delete a statement from every version; the signals that it rests on, too, if wanted; and never to be said
        again, if wanted, without its words being kept.

        Raises:
            NotFound: no version has it.
        """
        words = "no version of this user's summary has a clause of this id"

        def delete(deleting: Deleter) -> bool:
            return deleting.clause(name, author, with_signals=signals, ban=forbid)

        return await self._delete(tenant, user_id, delete, NotFound("no_clause", words), what="clause")

    async def delete_version(self, tenant: str, user_id: str, version: int, author: Author) -> Deleted:
        """Delete a version; instead of the current one the one before it is current.

        Raises:
            NotFound: it is not kept.
        """
        missing = NotFound("no_version", f"version {version} of this summary is not there")
        return await self._delete(
            tenant, user_id, lambda deleting: deleting.version(version, author), missing, what="version"
        )

    async def delete_signal(self, tenant: str, user_id: str, name: str, key_id: str | None = None) -> Deleted:
        """Delete a signal, and the statements that rest on it.

        Raises:
            NotFound: there is no such signal.
        """
        missing = NotFound("no_signal", "this user has no signal of this id; an export lists those that they have")
        return await self._delete(
            tenant, user_id, lambda deleting: deleting.signal(name), missing, key_id, what="signal"
        )

    async def delete_words(self, tenant: str, user_id: str, name: str, author: Author) -> Deleted:
        """Delete the words of what is forbidden; it stays forbidden.

        Raises:
            NotFound: there is no such entry.
        """
        missing = NotFound("no_forbidden", "the current summary forbids nothing of this id")
        return await self._delete(tenant, user_id, lambda deleting: deleting.words(name, author), missing, what="words")

    async def _delete(
        self,
        tenant: str,
        user_id: str,
        delete: Callable[[Deleter], bool],
        missing: NotFound,
        key_id: str | None = None,
        *,
        what: str,
    ) -> Deleted:
        def write(connection: Connection) -> Deletion:
            if not users.lock_existing(connection, tenant, user_id):
                raise no_user()
            deleting = Deleter(connection, tenant, user_id, self._now(connection), self.debounce, key_id)
            if not delete(deleting):
                raise missing
            return deleting.done

        done = await self._write(f"delete_{what}", tenant, user_id, write)
        self._changed(tenant, user_id)
        self._erased(tenant, user_id)
        return Deleted.model_validate(done.__dict__ | {"bytes": await self._bytes()})

    async def _bytes(self) -> str:
        """Overwrite what was deleted, if that is soon done; how it stands with the disk."""
        database = self.store.database
        if database.kind == "postgresql":
            return "left_to_postgresql"
        if database.size() <= SCRUB_AT_ONCE:
            await self.scrub()
        return "scheduled" if await self.store.read(erasure.scrub_due) is not None else "overwritten"

    async def scrub(self) -> bool:
        """Overwrite what erasures left, if anything; says whether nothing is left."""
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
        """`scrub`, unless it has taken its share of the time."""
        if time.monotonic() >= self._scrub_after:
            await self.scrub()


def _told(sent: Sequence[Signal], ids: list[str], added: int) -> SignalsAnswer:
    """What became of signals; those of which there are no ids were not learned."""
    return SignalsAnswer(ids=ids, added=added, known=len(ids) - added, not_learned=len(sent) - len(ids))
