"""Summaries for the proxy, kept in memory for a moment (interfaces.Summaries)."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from popi.errors import StoreError
from popi.serving.interfaces import StoredSummary
from popi.serving.store import summaries
from popi.serving.store.threads import Store

FRESH_SECONDS = 2.0
"""How long a summary is used without asking the store: so late another process's change is seen."""
KEPT = 50_000
"""Most users remembered."""


class _Kept(NamedTuple):
    summary: StoredSummary | None
    until: float


class SummaryCache:
    """Reads through to the store; that a user has no summary is remembered as well.

    Args:
        store: where summaries are.
        fresh_seconds: see FRESH_SECONDS.
        kept: see KEPT.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        fresh_seconds: float = FRESH_SECONDS,
        kept: int = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._fresh, self._most, self._clock = store, fresh_seconds, kept, clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._reading: dict[tuple[str, str], asyncio.Task[StoredSummary | None]] = {}

    async def summary_of(self, tenant: str, user_id: str) -> StoredSummary | None:
        """The user's current summary; None where there is none.

        Raises:
            StoreError: it can't be read, or the store hangs: the chat has waited for its key already.
        """
        key = (tenant, user_id)
        kept = self._kept.get(key)
        if kept is not None and self._clock() < kept.until:
            return kept.summary
        if self._store.hangs:
            raise StoreError("the store does not answer")
        task = self._reading.get(key)
        if task is None:  # one reading for all who ask at the same time
            task = asyncio.get_running_loop().create_task(self._read(key))
            self._reading[key] = task
            task.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(task)

    async def _read(self, key: tuple[str, str]) -> StoredSummary | None:
        return await self._store.lookup(summaries.current_text, *key)

    def _keep(self, key: tuple[str, str], task: "asyncio.Task[StoredSummary | None]") -> None:
        if self._reading.get(key) is not task:
            if not task.cancelled():
                task.exception()
            return  # the user's summary changed while this was read
        del self._reading[key]
        if task.cancelled() or task.exception() is not None:
            return
        self._kept[key] = _Kept(task.result(), self._clock() + self._fresh)
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def forget(self, tenant: str, user_id: str) -> None:
        """The user's summary changed: ask the store next time, and keep nothing of readings under way."""
        self._kept.pop((tenant, user_id), None)
        self._reading.pop((tenant, user_id), None)
