"""What all operations on profiles share: the store, its clock, and transactions that the audit log records."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection, select

from popi.errors import StoreError
from popi.profiles.answers import UserAnswer
from popi.serving.api.stored import (
    check_bound,
    check_bounds,
    user_answer,
)
from popi.serving.capture.injected import Injected
from popi.serving.reads import Reads
from popi.serving.settings import ProfileSettings
from popi.serving.store import (
    audit,
    keys,
    signals,
)
from popi.serving.store.jobs import Debounce
from popi.serving.store.threads import Store
from popi.signals.types import Signal

T = TypeVar("T")


class ProfileStore:
    """Users of all tenants in the store.

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

    async def user(self, tenant: str, user_id: str) -> UserAnswer:
        """One user.

        Raises:
            NotFound: no such user.
        """

        return await self.store.read(lambda connection: user_answer(connection, tenant, user_id, self._now(connection)))

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


async def _nobody_else() -> None:
    """There are no other processes."""
