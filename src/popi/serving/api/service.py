"""The operations behind the profile API's routes, on the store. Independent of HTTP."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from sqlalchemy import Connection

from popi.profiles.answers import (
    ControlsAnswer,
    ImportAnswer,
    MergeAnswer,
    SignalsAnswer,
    UserAnswer,
)
from popi.profiles.fields import Author
from popi.profiles.fit import checked_user
from popi.profiles.requests import Feedback, ImportedUser
from popi.profiles.training import TARGETS, as_signals
from popi.serving.api import stored
from popi.serving.api.commands import Line, merge, merged_line, switched_line
from popi.serving.api.removal import Removal
from popi.serving.api.stored import (
    NotFound,
    existing_user,
    training_line,
    user_answer,
)
from popi.serving.api.summary_edits import SummaryEdits
from popi.serving.capture.feedback import as_signals as feedback_signals
from popi.serving.store import (
    audit,
    controls,
    erasure,
    expiry,
    signals,
    summaries,
    users,
)
from popi.serving.store.controls import Switches
from popi.serving.store.merging import Moved
from popi.serving.store.usage import DAY
from popi.signals.types import Signal, User

log = logging.getLogger("popi.gateway.profiles")


class Profiles(SummaryEdits, Removal):
    """The users of all tenants."""

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


def _signals_answer(sent: Sequence[Signal], ids: list[str], added: int) -> SignalsAnswer:
    """The response to sent signals; those without an id were not learned."""
    return SignalsAnswer(ids=ids, added=added, duplicates=len(ids) - added, ignored=len(sent) - len(ids))
