"""A short-lived cache of summaries for the proxy (interfaces.Summaries).

age        result
≤ 2 s      the cached summary
≤ 10 s     the store's, or the cached one if the store is slow or fails
older      the store's, or an error

Users in a conversation never wait for the store: their summaries are refreshed before they are 2 s old, in one query.
Summaries that another process changes are dropped within a fraction of a second (serving.follower). If this process
can't follow these changes, it uses no cached summary at all.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from popi.errors import StoreError
from popi.serving.interfaces import StoredSummary
from popi.serving.store import summaries
from popi.serving.store.changes import LEASE_SECONDS, user_hash
from popi.serving.store.threads import Store

FRESH_SECONDS = 2.0
"""How long a summary is used without querying the store. A change that no process reported, such as one by SQL, takes
effect after this."""
AHEAD_SECONDS = 0.5
"""Interval of checking which summaries need a refresh."""
ACTIVE_SECONDS = 30.0
"""How long after its last use a summary is refreshed."""
MAX_ACTIVE = 500
"""Maximum summaries to refresh, the most recently used ones, with one query per second."""
STALE_SECONDS = LEASE_SECONDS
"""Maximum age of a summary to use while the store is unavailable. No longer than the lease: erasures wait for that."""
PATIENCE_SECONDS = 0.025
"""How long a request with a stale summary waits for the store: a chat can spare 50 ms for all of popi's work."""
CACHE_SIZE = 50_000
"""Maximum number of users to cache."""

Key = tuple[str, str]


class _Cached(NamedTuple):
    summary: StoredSummary | None
    read_at: float


class _Reading:
    """A lookup in progress of one or more users' summaries, shared by all requests that wait for it.

    Attributes:
        task: reads the summaries.
        began: when the lookup started, which is the age of its results.
        void: users whose summaries have changed since; their results are ignored.
    """

    __slots__ = ("began", "task", "void")

    def __init__(self, task: "asyncio.Task[dict[Key, StoredSummary]]", began: float) -> None:
        self.task, self.began = task, began
        self.void: set[Key] = set()


class SummaryCache:
    """A read-through cache, which also remembers that a user has no summary.

    While the store is slow, a stale summary is used for a limited time. The store is always queried first, so that an
    erasure is never missed for longer than that; and after `forget` nothing stale is used.

    Args:
        store: where summaries are stored.
        fresh_seconds: see FRESH_SECONDS.
        stale_seconds: see STALE_SECONDS.
        size: see CACHE_SIZE.
        clock: monotonic seconds.
        is_current: whether cached summaries may be used at all (Follower.is_current).

    Attributes:
        stale_uses: how often a stale summary was used.
    """

    def __init__(
        self,
        store: Store,
        fresh_seconds: float = FRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        size: int = CACHE_SIZE,
        clock: Callable[[], float] = time.monotonic,
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store, self._size, self._clock, self._is_current = store, size, clock, is_current
        self._fresh, self._stale = fresh_seconds, stale_seconds
        self._cached: OrderedDict[Key, _Cached] = OrderedDict()
        self._reading: dict[Key, _Reading] = {}
        self._by_hash: dict[str, Key] = {}  # of all in the two above
        self._used: OrderedDict[Key, float] = OrderedDict()  # time of last use, least recent first
        self._refresh_timer: asyncio.TimerHandle | None = None
        self.stale_uses = 0

    def cached(self, tenant: str, user_id: str) -> _Cached | None:
        """The cached result for a user, if it is fresh enough to use without querying the store."""
        cached = self._cached.get(key := (tenant, user_id))
        if cached is None or (now := self._clock()) - cached.read_at >= self._fresh or not self._is_current():
            return None
        if cached.summary is not None:
            self._note_use(key, now)
        return cached

    async def summary_of(self, tenant: str, user_id: str) -> StoredSummary | None:
        """The user's current summary, if any.

        Raises:
            StoreError: it can't be read, or the store hangs, in which case the chat has already waited for its key.
        """
        key = (tenant, user_id)
        while True:
            if (cached := self.cached(*key)) is not None:
                return cached.summary
            if self._store.is_hanging:
                if (old := self._use_stale(key)) is not None:
                    return old
                raise StoreError("the store does not respond")
            reading = self._reading.get(key)
            if reading is None or reading.began + self._stale <= self._clock():
                reading = self._read((key,))
            try:
                summary = await self._wait_for(key, reading)
            except StoreError:
                if key not in reading.void and (old := self._use_stale(key)) is not None:
                    return old
                raise
            if key not in reading.void:
                if summary is not None:
                    self._note_use(key, self._clock())
                return summary

    async def _wait_for(self, key: Key, reading: _Reading) -> StoredSummary | None:
        """The result of a lookup, or the stale summary if that takes too long."""
        if self._stale_summary(key) is not None and not reading.task.done():
            remaining = reading.began + PATIENCE_SECONDS - self._clock()
            await asyncio.wait((reading.task,), timeout=max(0.0, remaining))
            if not reading.task.done() and key not in reading.void and (old := self._use_stale(key)) is not None:
                return old
        return (await asyncio.shield(reading.task)).get(key)

    def _stale_summary(self, key: Key) -> StoredSummary | None:
        """The cached summary, if it is not too old to use. Not for users who had none."""
        cached = self._cached.get(key)
        usable = cached is not None and self._clock() < cached.read_at + self._stale and self._is_current()
        return cached.summary if cached is not None and usable else None

    def _use_stale(self, key: Key) -> StoredSummary | None:
        """The same, counted as a use."""
        old = self._stale_summary(key)
        self.stale_uses += old is not None
        return old

    def _read(self, keys: Collection[Key]) -> _Reading:
        task = asyncio.get_running_loop().create_task(self._store.lookup(summaries.current_texts, keys))
        reading = _Reading(task, self._clock())
        self._reading.update(dict.fromkeys(keys, reading))
        self._by_hash.update((user_hash(*key), key) for key in keys)
        task.add_done_callback(lambda _: self._store_results(keys, reading))
        return reading

    def _note_use(self, key: Key, now: float) -> None:
        self._used[key] = now
        self._used.move_to_end(key)
        if len(self._used) > MAX_ACTIVE:
            self._used.popitem(last=False)
        if self._refresh_timer is None:
            self._refresh_timer = asyncio.get_running_loop().call_later(AHEAD_SECONDS, self._refresh)

    def _refresh(self) -> None:
        """Refresh the summaries of active users before their next requests."""
        now, self._refresh_timer = self._clock(), None
        while self._used and next(iter(self._used.values())) <= now - ACTIVE_SECONDS:
            self._used.popitem(last=False)
        if not self._used:
            return
        self._refresh_timer = asyncio.get_running_loop().call_later(AHEAD_SECONDS, self._refresh)
        old = now - self._fresh / 2
        keys = [key for key in self._used if (cached := self._cached.get(key)) is not None and cached.read_at <= old]
        keys = [key for key in keys if key not in self._reading]
        if keys and not self._store.is_hanging:
            self._read(keys)

    def _store_results(self, keys: Collection[Key], reading: _Reading) -> None:
        for key in keys:
            if self._reading.get(key) is reading:
                del self._reading[key]
        task = reading.task
        if task.cancelled() or task.exception() is not None:
            for key in keys:
                self._forget_hash(key)
            return
        rows = task.result()
        for key in keys:
            if key not in reading.void:
                self._cached[key] = _Cached(rows.get(key), reading.began)
                self._cached.move_to_end(key)
                if key not in rows:
                    self._used.pop(key, None)  # possibly erased
        while len(self._cached) > self._size:
            self._drop_oldest()

    def drop_old(self) -> None:
        """Drop summaries that are too old to use, so that users erased by another process don't stay in memory."""
        end = self._clock() - self._stale
        # The oldest come first, apart from slow lookups.
        while self._cached and next(iter(self._cached.values())).read_at <= end:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        key, _ = self._cached.popitem(last=False)
        self._forget_hash(key)

    def _forget_hash(self, key: Key) -> None:
        if key not in self._cached and key not in self._reading:
            self._by_hash.pop(user_hash(*key), None)

    def forget(self, tenant: str, user_id: str) -> None:
        """The user's summary has changed: query the store next time, and ignore lookups in progress."""
        self._cached.pop((tenant, user_id), None)
        self._used.pop((tenant, user_id), None)
        if (reading := self._reading.pop((tenant, user_id), None)) is not None:
            reading.void.add((tenant, user_id))
        self._forget_hash((tenant, user_id))

    def forget_hashed(self, hashes: Iterable[str]) -> None:
        """`forget` for users whom another process has changed, by their hashes (store.changes)."""
        for hashed in hashes:
            if (key := self._by_hash.get(hashed)) is not None:
                self.forget(*key)

    def forget_all(self) -> None:
        """`forget` for everyone."""
        for key in list(self._by_hash.values()):
            self.forget(*key)
