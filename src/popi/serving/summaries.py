"""Summaries for the proxy, kept in memory for a moment (interfaces.Summaries).

age        what a request gets
≤ 2 s      what is kept; from 1 s on it is read anew behind the request, so that users who are active wait for no store
≤ 30 s     the store's answer, or what is kept where the store lets one wait or fails
older      the store's answer, or a fault
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import NamedTuple

from popi.errors import StoreError
from popi.serving.interfaces import StoredSummary
from popi.serving.store import summaries
from popi.serving.store.threads import Store

FRESH_SECONDS = 2.0
"""How long a summary is used without asking the store: so late another process's change is seen."""
AHEAD_SECONDS = 0.1
"""How long after its use a summary is read anew that will be old soon: with those of others who are active, in one
query, and not each behind a request of its own."""
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
    """A look-up under way of one user's summary or several, one for all who ask meanwhile.

    Attributes:
        task: finds the summaries that there are.
        began: when; what it finds is as old as that.
        void: whose summaries changed meanwhile: what it finds of them counts no more.
    """

    __slots__ = ("began", "task", "void")

    def __init__(self, task: "asyncio.Task[dict[Key, StoredSummary]]", began: float) -> None:
        self.task, self.began = task, began
        self.void: set[Key] = set()


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
            if not self._ahead:
                asyncio.get_running_loop().call_later(AHEAD_SECONDS, self._read_ahead)
            self._ahead.add(key)
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
            reading = self._reading.get(key) or self._read((key,))
            try:
                found = await self._answer(key, reading)
            except StoreError:
                if key not in reading.void and (old := self._old(key)) is not None:
                    return old
                raise
            if key not in reading.void:
                return found

    async def _answer(self, key: Key, reading: _Reading) -> StoredSummary | None:
        """What is read, or the old summary if that takes too long."""
        if self._bridge(key) is not None and not reading.task.done():
            left = reading.began + PATIENCE_SECONDS - self._clock()
            await asyncio.wait((reading.task,), timeout=max(0.0, left))
            if not reading.task.done() and key not in reading.void and (old := self._old(key)) is not None:
                return old
        return (await asyncio.shield(reading.task)).get(key)

    def _bridge(self, key: Key) -> StoredSummary | None:
        """The old summary, if it may still be used. That there was none bridges nothing."""
        kept = self._kept.get(key)
        return kept.summary if kept is not None and self._clock() < kept.read_at + self._stale else None

    def _old(self, key: Key) -> StoredSummary | None:
        """The same, to be used: counted."""
        old = self._bridge(key)
        self.old_ones += old is not None
        return old

    def _read(self, keys: Collection[Key]) -> _Reading:
        task = asyncio.get_running_loop().create_task(self._store.lookup(summaries.current_texts, keys))
        reading = _Reading(task, self._clock())
        self._reading.update(dict.fromkeys(keys, reading))
        task.add_done_callback(lambda _: self._keep(keys, reading))
        return reading

    def _read_ahead(self) -> None:
        keys, self._ahead = self._ahead - self._reading.keys(), set()
        if keys and not self._store.hangs:
            self._read(keys)

    def _keep(self, keys: Collection[Key], reading: _Reading) -> None:
        for key in keys:
            if self._reading.get(key) is reading:
                del self._reading[key]
        task = reading.task
        if task.cancelled() or task.exception() is not None:
            return
        found = task.result()
        for key in keys:
            if key not in reading.void:
                self._kept[key] = _Kept(found.get(key), reading.began)
                self._kept.move_to_end(key)
        while len(self._kept) > self._most:
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
            reading.void.add((tenant, user_id))
