"""The operations behind the profile API's routes, on the store. Independent of HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
    check_bound,
    check_bounds,
    existing_user,
    no_user,
    summary_answer,
    training_line,
    user_answer,
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

MAX_IMMEDIATE_SCRUB_BYTES = 64 * 2**20
"""A SQLite file up to this size is rewritten before an erasure returns; a larger one shortly after."""
SCRUB_SHARE = 0.1
"""Maximum share of the time to spend rewriting the file; the next rewrite waits accordingly."""


class Profiles:
    """The users of all tenants.

    Args:
        store: the database.
        debounce: when new signals trigger a renewal.
        changed: called with tenant and user id after a summary has changed or a user is removed.
        erased: called with tenant and user id after a user or parts of their profile are deleted.
        injected: the block that carries summaries upstream, to be removed from feedback.
        bounds: limits of what is stored.
        everyone: waits until no other process uses data that was deleted before this call.
    """

    def __init__(
        self,
        store: Store,
        debounce: Debounce | None = None,
        changed: Callable[[str, str], None] = lambda tenant, user_id: None,
        erased: Callable[[str, str], None] = lambda tenant, user_id: None,
        injected: Injected | None = None,
        bounds: ProfileSettings | None = None,
        everyone: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.everyone = everyone or _nobody_else
        self.store, self.debounce, self.bounds = store, debounce or Debounce(), bounds or ProfileSettings()
        self._injected = injected or Injected()
        self._changed, self._erased = changed, erased
        self.reads = Reads(store)
        self._scrub_after = 0.0
        self._probe: asyncio.Task[bool] | None = None

    def _now(self, connection: Connection) -> float:
        return self.store.database.now(connection)

    async def _write(self, action: str, tenant: str, user_id: str, query: Callable[[Connection], T]) -> T:
        """Change a user and record it in the audit log, in one transaction."""

        def write(connection: Connection) -> T:
            done = query(connection)
            audit.note(connection, self._now(connection), action, tenant, [user_id])
            return done

        return await self.store.write(write)

    async def tenant_exists(self, tenant: str) -> bool:
        """Whether the tenant exists."""
        return await self.store.read(keys.tenant_exists, tenant)

    async def ready(self) -> bool:
        """Whether the store responds. Concurrent calls share one probe."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._store_responds())
        return await asyncio.shield(self._probe)

    async def _store_responds(self) -> bool:
        try:
            await self.store.read(lambda connection: connection.execute(select(1)).one())
        except StoreError:
            return False
        return True

    async def add_signals(
        self, tenant: str, user_id: str, new: Sequence[Signal], key_id: str | None = None
    ) -> SignalsAnswer:
        """Add signals; they are on disk when this returns. `key_id`, here and below: the key to charge the renewal to.

        Raises:
            OverBound: a signal is too long, or the user would have too many.
        """

        def add(connection: Connection) -> tuple[list[str], int]:
            return self._add(connection, tenant, user_id, new, self._now(connection), key_id)

        return _signals_answer(new, *await self._write("add_signals", tenant, user_id, add))

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
            subject = f"the length of signals[{index}] as JSON"
            check_bound(self.bounds, "signal_chars", length, 413, "signal_too_long", subject)
        ids, added = signals.add(connection, tenant, user_id, new, now, self.debounce, key_id, bulk)
        if added:  # exceeding a limit rolls back the transaction
            check_bounds(connection, tenant, user_id, self.bounds)
        return ids, added

    async def signals(
        self, tenant: str, user_id: str, limit: int, before: int | None = None, contains: str = ""
    ) -> list[tuple[int, Signal]]:
        """A user's signals with their positions (see store.signals.search).

        Raises:
            NotFound: no such user.
        """

        def read(connection: Connection) -> list[tuple[int, Signal]]:
            existing_user(connection, tenant, user_id)
            return signals.search(connection, tenant, user_id, limit, before, contains)

        return await self.store.read(read)

    async def user(self, tenant: str, user_id: str) -> UserAnswer:
        """One user.

        Raises:
            NotFound: no such user.
        """

        return await self.store.read(lambda connection: user_answer(connection, tenant, user_id, self._now(connection)))

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

    async def controls(self, tenant: str, user_id: str) -> ControlsAnswer:
        """A user's switches, whether or not the user exists."""
        switches = await self.store.read(controls.find, tenant, user_id)
        return ControlsAnswer(use=switches.use, learn=switches.learn)

    async def set_controls(
        self, tenant: str, user_id: str, use: bool | None, learn: bool | None, key_id: str | None = None
    ) -> ControlsAnswer:
        """Set those of a user's switches that are not None; creates the user if necessary."""

        def write(connection: Connection) -> tuple[Switches, Line]:
            now = self._now(connection)
            after = controls.put(connection, tenant, user_id, now, self.debounce, use=use, learn=learn, key_id=key_id)
            return after, switched_line(connection, tenant, user_id, after, now)

        after, line = await self._write("set_controls", tenant, user_id, write)
        self._changed(tenant, user_id)
        log.info("switched", extra={"fields": line})
        if use is False:
            await self.everyone()
        return ControlsAnswer(use=after.use, learn=after.learn)

    async def feedback(self, tenant: str, user_id: str, given: Feedback, key_id: str | None = None) -> SignalsAnswer:
        """Turn a user's feedback on an answer into signals.

        Raises:
            OverBound: the user would have too many signals.
            NotFound: the answer is not stored: the tenant has no capture, it is another user's, or it has expired.
            AmbiguousAnswer: several answers have this upstream id.
        """

        def write(connection: Connection) -> tuple[list[str], int] | None:
            now = self._now(connection)
            # Lock the user's row before reading answers: an erasure then waits for us or is complete.
            exists = users.lock_existing(connection, tenant, user_id)
            if exists and not users.learns(connection, tenant, user_id):
                return None
            new = feedback_signals(connection, tenant, user_id, given, now, self._injected) if exists else None
            if new is None:
                raise NotFound(
                    "no_answer", "no answer with that id is stored for this user; see capture in docs/profiles.md"
                )
            return self._add(connection, tenant, user_id, new, now, key_id)

        stored = await self._write("feedback", tenant, user_id, write)
        if stored is None:
            return SignalsAnswer(ids=[], added=0, duplicates=0, ignored=1)
        ids, added = stored
        return SignalsAnswer(ids=ids, added=added, duplicates=len(ids) - added)

    async def expire(self) -> None:
        """Delete everything whose retention period has ended."""

        def due(connection: Connection) -> bool:
            return expiry.any_expired(connection, self._now(connection))

        if await self.store.read(due):
            await self.store.write(lambda connection: expiry.expire(connection, self._now(connection)))

    async def correct_times(self) -> None:
        """Undo what a clock that was ahead has written: erasures that would void the links and answers of hours."""

        def ahead(connection: Connection) -> bool:
            return erasure.any_ahead(connection, self._now(connection))

        if await self.store.read(ahead):
            await self.store.write(lambda connection: erasure.correct(connection, self._now(connection)))

    async def expire_audit(self, days: float) -> None:
        """Delete audit log entries older than `days`."""

        def old(connection: Connection) -> bool:
            return audit.any_older(connection, self._now(connection) - days * DAY)

        if await self.store.read(old):
            await self.store.write(lambda connection: audit.expire(connection, self._now(connection) - days * DAY))

    def export(self, tenant: str, user_id: str) -> AsyncIterator[str]:
        """See `stored.exported`."""
        return self.store.stream(stored.exported(self.store.database.read, tenant, user_id))

    async def training_line(self, tenant: str, user_id: str, targets: int = TARGETS) -> User:
        """A user in the format that `popi train` reads.

        Raises:
            NotFound: no such user.
        """
        return await self.store.read(training_line, tenant, user_id, targets)

    async def import_users(
        self, tenant: str, imported: Sequence[ImportedUser], author: Author, key_id: str | None = None
    ) -> ImportAnswer:
        """Add users, or add signals to existing users; all or nothing. Their renewals come after the tenant's others.

        Raises:
            DataError: a summary's text is not allowed.
            OverBound: as in `add_signals`.
        """

        def write(connection: Connection) -> tuple[ImportAnswer, list[str]]:
            total = ImportAnswer(users=len(imported), added=0, duplicates=0, summaries=0)
            changed = []
            # A fixed order prevents deadlocks between imports.
            for one in sorted(fit, key=lambda user: user.user_id):
                now = self._now(connection)
                users.lock(connection, tenant, one.user_id, now)
                if not users.learns(connection, tenant, one.user_id):
                    total.ignored_users += 1
                    continue
                stored_signals = signals.newest(connection, tenant, one.user_id) if one.targets else []
                new = as_signals(one.signals, one.targets, stored_signals)
                ids, added = self._add(connection, tenant, one.user_id, new, now, key_id, bulk=True)
                total.added += added
                total.duplicates += len(ids) - added
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
        """Merge another user into this one, which is created if necessary, and remove the other.

        Raises:
            NotFound: the other user does not exist.
            OverBound: the user would have too many signals; nothing was moved.
            DataError: both are the same user.
        """

        def write(connection: Connection) -> tuple[Moved, UserAnswer, Line]:
            now = self._now(connection)
            moved = merge(connection, tenant, user_id, source, now, self.debounce, key_id, self.bounds)
            return (
                moved,
                user_answer(connection, tenant, user_id, now),
                merged_line(connection, tenant, user_id, source, now),
            )

        moved, user, line = await self.store.write(write)
        for one in (user_id, source):
            self._changed(tenant, one)
        self._erased(tenant, source)
        log.info("merged", extra={"fields": {**line, **moved.__dict__}})
        await self.everyone()
        return MergeAnswer(**moved.__dict__, user=user)

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


async def _nobody_else() -> None:
    """There are no other processes."""


def _signals_answer(sent: Sequence[Signal], ids: list[str], added: int) -> SignalsAnswer:
    """The response to sent signals; those without an id were not learned."""
    return SignalsAnswer(ids=ids, added=added, duplicates=len(ids) - added, ignored=len(sent) - len(ids))
