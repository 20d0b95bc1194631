"""Summaries for the proxy, kept in memory for a moment (interfaces.Summaries).

age        what a request gets
≤ 2 s      what is kept; from 1 s on it is read anew behind the request, so that users who are active wait for no store
≤ 30 s     the store's answer, or what is kept where the store lets one wait or fails
older      the store's answer, or a fault
"""

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
AHEAD_SECONDS = 0.02
"""How long after its use a summary is read anew that will be old soon: not while the request is on its way upstream."""
STALE_SECONDS = 30.0
"""How old a summary may be that is used because the store does not answer."""
PATIENCE_SECONDS = 0.025
"""How long one with an old summary waits for the store; a chat has 50 ms to spare for all of ours."""
KEPT = 50_000
"""Most users remembered."""

Key = tuple[str, str]


class _Kept(NamedTuple):
    summary: StoredSummary | None
    read_at: float


class _Reading:
    """A look-up under way, one for all who ask meanwhile.

    Attributes:
        began: when; what it finds is as old as that.
        void: the summary changed meanwhile, and what it finds counts no more.
    """

    __slots__ = ("began", "task", "void")

    def __init__(self, task: "asyncio.Task[StoredSummary | None]", began: float) -> None:
        self.task, self.began, self.void = task, began, False


class SummaryCache:
    """Reads through to the store; that a user has no summary is remembered as well.

    An old summary bridges a store that is slow, for a while. That nobody's erasure is missed for longer than that,
    every use of an old one asks the store first; and `forget` leaves nothing to be used.

    Args:
        store: where summaries are.
        fresh_seconds: see FRESH_SECONDS.
        stale_seconds: see STALE_SECONDS.
        kept: see KEPT.
        clock: monotonic seconds.

    Attributes:
        old_ones: how often an old summary was used.
    """

    def __init__(
        self,
        store: Store,
        fresh_seconds: float = FRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        kept: int = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._most, self._clock = store, kept, clock
        self._fresh, self._stale = fresh_seconds, stale_seconds
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._reading: dict[Key, _Reading] = {}
        self._ahead: set[Key] = set()
        self.old_ones = 0

    def at_hand(self, tenant: str, user_id: str) -> _Kept | None:
        """What is kept of a user, if it may be used without asking the store."""
        kept = self._kept.get(key := (tenant, user_id))
        if kept is None or (age := self._clock() - kept.read_at) >= self._fresh:
            return None
        if 2 * age >= self._fresh and key not in self._ahead:
            self._ahead.add(key)
            asyncio.get_running_loop().call_later(AHEAD_SECONDS, self._read_ahead, key)
        return kept

    async def summary_of(self, tenant: str, user_id: str) -> StoredSummary | None:
        """The user's current summary; None where there is none.

        Raises:
            StoreError: it can't be read, or the store hangs: the chat has waited for its key already.
        """
        key = (tenant, user_id)
        while True:
            if (kept := self.at_hand(*key)) is not None:
                return kept.summary
            if self._store.hangs:
                if (old := self._old(key)) is not None:
                    return old
                raise StoreError("the store does not answer")
            reading = self._read(key)
            try:
                found = await self._answer(key, reading)
            except StoreError:
                if not reading.void and (old := self._old(key)) is not None:
                    return old
                raise
            if not reading.void:
                return found

    async def _answer(self, key: Key, reading: _Reading) -> StoredSummary | None:
        """What is read, or the old summary if that takes too long."""
        if self._bridge(key) is not None and not reading.task.done():
            left = reading.began + PATIENCE_SECONDS - self._clock()
            await asyncio.wait((reading.task,), timeout=max(0.0, left))
            if not reading.task.done() and not reading.void and (old := self._old(key)) is not None:
                return old
        return await asyncio.shield(reading.task)

    def _bridge(self, key: Key) -> StoredSummary | None:
        """The old summary, if it may still be used. That there was none bridges nothing."""
        kept = self._kept.get(key)
        return kept.summary if kept is not None and self._clock() < kept.read_at + self._stale else None

    def _old(self, key: Key) -> StoredSummary | None:
        """The same, to be used: counted."""
        old = self._bridge(key)
        self.old_ones += old is not None
        return old

    def _read(self, key: Key) -> _Reading:
        reading = self._reading.get(key)
        if reading is None:
            task = asyncio.get_running_loop().create_task(self._store.lookup(summaries.current_text, *key))
            reading = self._reading[key] = _Reading(task, self._clock())
            task.add_done_callback(lambda _: self._keep(key, reading))
        return reading

    def _read_ahead(self, key: Key) -> None:
        self._ahead.discard(key)
        if not self._store.hangs:
            self._read(key)

    def _keep(self, key: Key, reading: _Reading) -> None:
        task = reading.task
        if self._reading.get(key) is reading:
            del self._reading[key]
        if task.cancelled() or task.exception() is not None or reading.void:
            return
        self._kept[key] = _Kept(task.result(), reading.began)
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def drop_old(self) -> None:
        """Let go of what is too old to be used: users erased by another process stay in no memory."""
        end = self._clock() - self._stale
        while self._kept and next(iter(self._kept.values())).read_at <= end:  # the oldest first, but for slow readings
            self._kept.popitem(last=False)

    def forget(self, tenant: str, user_id: str) -> None:
        """The user's summary changed: ask the store next time, and use nothing of readings under way."""
        self._kept.pop((tenant, user_id), None)
        if (reading := self._reading.pop((tenant, user_id), None)) is not None:
            reading.void = True
