"""Summaries for the proxy, kept in memory for a moment (interfaces.Summaries).

age        what a request gets
≤ 2 s      what is kept
≤ 30 s     the store's answer, or what is kept where the store lets one wait or fails
older      the store's answer, or a fault

Users amid a conversation wait for no store: their summaries are read anew before they are 2 s old, in one query.
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
AHEAD_SECONDS = 0.5
"""Between two looks at whose summaries will be old soon."""
ACTIVE_SECONDS = 30.0
"""How long after its last use a summary is kept fresh."""
MOST_ACTIVE = 500
"""Most summaries that are kept fresh, those last used: one query a second."""
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
        self._used: OrderedDict[Key, float] = OrderedDict()  # when last; the longest ago first
        self._looking: asyncio.TimerHandle | None = None
        self.old_ones = 0

    def at_hand(self, tenant: str, user_id: str) -> _Kept | None:
        """What is kept of a user, if it may be used without asking the store."""
        kept = self._kept.get(key := (tenant, user_id))
        if kept is None or (now := self._clock()) - kept.read_at >= self._fresh:
            return None
        if kept.summary is not None:
            self._note_use(key, now)
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
            if self._store.is_hanging:
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
                if found is not None:
                    self._note_use(key, self._clock())
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

    def _note_use(self, key: Key, now: float) -> None:
        self._used[key] = now
        self._used.move_to_end(key)
        if len(self._used) > MOST_ACTIVE:
            self._used.popitem(last=False)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(AHEAD_SECONDS, self._look_ahead)

    def _look_ahead(self) -> None:
        """Read anew what active users' next requests will ask for."""
        now, self._looking = self._clock(), None
        while self._used and next(iter(self._used.values())) <= now - ACTIVE_SECONDS:
            self._used.popitem(last=False)
        if not self._used:
            return
        self._looking = asyncio.get_running_loop().call_later(AHEAD_SECONDS, self._look_ahead)
        old = now - self._fresh / 2
        keys = [key for key in self._used if (kept := self._kept.get(key)) is not None and kept.read_at <= old]
        keys = [key for key in keys if key not in self._reading]
        if keys and not self._store.is_hanging:
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
                if key not in found:
                    self._used.pop(key, None)  # erased, perhaps
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
        self._used.pop((tenant, user_id), None)
        if (reading := self._reading.pop((tenant, user_id), None)) is not None:
            reading.void.add((tenant, user_id))
