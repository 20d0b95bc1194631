import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from serving_client import Clock

from popi.errors import StoreError
from popi.serving import summaries as module
from popi.serving.interfaces import StoredSummary
from popi.serving.store import erasure, summaries
from popi.serving.store.database import Database
from popi.serving.store.threads import MAX_LOOKUPS, Store
from popi.serving.summaries import SummaryCache


@pytest.fixture
def store(sqlite_database: Database) -> Iterator[Store]:
    opened = Store(sqlite_database)
    yield opened
    opened.close()


def put(store: Store, text: str, user: str = "u") -> None:
    store.database.write(summaries.put, "t", user, text, [], "user", 1.0, expected=None)


def counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows with each reading of the store."""
    reads: list[Any] = []
    read = store.database.read

    def noted(*args: Any, **more: Any) -> Any:
        reads.append(args)
        return read(*args, **more)

    monkeypatch.setattr(store.database, "read", noted)
    return reads


def test_read_once_in_a_while_and_after_a_change(store: Store) -> None:
    clock = Clock()
    cache = SummaryCache(store, fresh_seconds=2.0, clock=clock)

    async def ask() -> None:
        assert await cache.summary_of("t", "u") is None
        put(store, "a")
        assert await cache.summary_of("t", "u") is None  # remembered: another process wrote
        clock.now += 2.0
        assert await cache.summary_of("t", "u") == StoredSummary("a", 1)
        put(store, "b")
        cache.forget("t", "u")  # this process wrote
        assert await cache.summary_of("t", "u") == StoredSummary("b", 2)
        assert await cache.summary_of("other", "u") is None

    asyncio.run(ask())


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_SECONDS", 0.01)


@pytest.mark.usefixtures("often")
def test_one_that_is_in_use_is_read_again_before_it_is_old(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    cache = SummaryCache(store, fresh_seconds=2.0, clock=clock)
    reads = counted(store, monkeypatch)

    async def ask() -> None:
        put(store, "a")
        await cache.summary_of("t", "u")
        clock.now += 0.9
        await asyncio.sleep(0.1)
        assert len(reads) == 1  # too early
        put(store, "b")  # by another process
        clock.now += 0.2
        while len(reads) == 1 or cache._reading:
            await asyncio.sleep(0.001)
        clock.now += 1.9  # the first reading is old by now
        kept = cache.cached("t", "u")
        assert kept is not None and kept.summary == StoredSummary("b", 2)
        for further in range(15):  # and so on for half a minute behind its last use
            clock.now += 1.9
            while len(reads) < 3 + further or cache._reading:
                await asyncio.sleep(0.001)
        clock.now += 1.9
        while cache._used:
            await asyncio.sleep(0.001)
        clock.now += 1.9
        await asyncio.sleep(0.1)
        assert len(reads) == 17 and cache.cached("t", "u") is None

    asyncio.run(ask())


@pytest.mark.usefixtures("often")
def test_users_who_are_active_are_read_again_in_one_query(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    cache = SummaryCache(store, fresh_seconds=2.0, clock=clock)
    reads = counted(store, monkeypatch)
    monkeypatch.setattr(module, "MAX_ACTIVE", 14)

    async def ask() -> None:
        people = [f"u{n}" for n in range(20)]
        for user in people[:15]:
            put(store, f"of {user}", user)
        for user in people:
            await cache.summary_of("t", user)
        assert len(reads) == 20
        clock.now += 1.5
        for user in people[:15]:
            put(store, f"new of {user}", user)  # by another process
        while len(reads) == 20:
            await asyncio.sleep(0.001)
        cache.forget("t", "u3")  # changed while it is read: what is found of it counts no more
        await asyncio.sleep(0.1)
        assert len(reads) == 21
        clock.now += 1.0
        for user in people:
            kept = cache.cached("t", user)
            if user in ("u0", "u3", *people[15:]):  # the longest unused, the changed one, those without a summary
                assert kept is None
            else:
                assert kept is not None and kept.summary == StoredSummary(f"new of {user}", 2)

    asyncio.run(ask())


@pytest.mark.usefixtures("often")
def test_one_who_was_erased_by_another_process_is_soon_forgotten(store: Store) -> None:
    clock = Clock()
    cache = SummaryCache(store, clock=clock)

    async def ask() -> None:
        put(store, "a")
        await cache.summary_of("t", "u")
        store.database.write(erasure.erase, "t", "u", 2.0)
        clock.now += 1.5
        while cache._used:
            await asyncio.sleep(0.001)
        kept = cache.cached("t", "u")
        assert kept is not None and kept.summary is None and not cache._used
        clock.now += 40.0
        cache.drop_old()
        assert not cache._cached

    asyncio.run(ask())


def test_a_reading_from_before_a_change_is_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SummaryCache(store, 1000.0)
    read, gate, begun = store.database.read, threading.Event(), threading.Event()

    def slow(*args: Any, **more: Any) -> Any:
        found = read(*args, **more)
        begun.set()
        gate.wait(5)
        return found

    async def ask() -> None:
        put(store, "old")
        monkeypatch.setattr(store.database, "read", slow)
        early = asyncio.create_task(cache.summary_of("t", "u"))
        await asyncio.to_thread(begun.wait, 5)
        monkeypatch.setattr(store.database, "read", read)
        put(store, "new")
        cache.forget("t", "u")
        gate.set()
        assert await early == StoredSummary("new", 2)  # nobody gets the old one any more
        assert await cache.summary_of("t", "u") == StoredSummary("new", 2)

    asyncio.run(ask())


def test_bounded(store: Store) -> None:
    cache = SummaryCache(store, size=3)

    async def ask() -> None:
        for n in range(10):
            await cache.summary_of("t", f"u{n}")

    asyncio.run(ask())
    assert len(cache._cached) == 3 and not cache._reading


def test_faults_are_told_and_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SummaryCache(store)

    def fail(*_: Any) -> Any:
        raise StoreError("gone")

    async def ask() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(store.database, "read", fail)
            with pytest.raises(StoreError):
                await cache.summary_of("t", "u")
        assert await cache.summary_of("t", "u") is None

    asyncio.run(ask())


def test_behind_a_store_that_hangs_lookups_do_not_pile_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, gate = SummaryCache(store), threading.Event()
    monkeypatch.setattr(store.database, "read", lambda *_: {} if gate.wait(10) else {})

    async def ask() -> None:
        waiting = [asyncio.create_task(cache.summary_of("t", f"u{n}")) for n in range(MAX_LOOKUPS)]
        await asyncio.sleep(0.05)
        for task in waiting[:10]:
            task.cancel()  # the proxy waits 50 ms
        with pytest.raises(StoreError, match="too busy"):
            await cache.summary_of("t", "one more")
        gate.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await cache.summary_of("t", "later") is None

    asyncio.run(ask())


def test_a_store_that_a_key_was_waited_for_in_vain_is_not_waited_for_again(store: Store) -> None:
    cache = SummaryCache(store)

    async def ask() -> None:
        await cache.summary_of("t", "known")
        store.report_timeout()
        assert await cache.summary_of("t", "known") is None  # remembered
        with pytest.raises(StoreError, match="does not respond"):
            await cache.summary_of("t", "u")

    asyncio.run(ask())


class SlowStore:
    """Holds look-ups back while `gate` is shut; `fault` is raised instead of an answer."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.fault, self.asked = threading.Event(), False, 0
        self.gate.set()
        read = store.database.read

        def slowly(*args: Any, **more: Any) -> Any:
            self.asked += 1
            self.gate.wait(10)
            if self.fault:
                raise StoreError("gone")
            return read(*args, **more)

        monkeypatch.setattr(store.database, "read", slowly)


@pytest.fixture
def slow(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    made = SlowStore(store, monkeypatch)
    yield made
    made.gate.set()


def test_an_old_summary_bridges_a_slow_store_and_is_read_again(store: Store, slow: SlowStore) -> None:
    clock = Clock()
    cache = SummaryCache(store, fresh_seconds=2.0, stale_seconds=30.0, clock=clock)

    async def ask() -> None:
        put(store, "a")
        assert await cache.summary_of("t", "u") == StoredSummary("a", 1)
        assert await cache.summary_of("t", "nobody") is None
        put(store, "b")
        clock.now += 10.0
        slow.gate.clear()
        assert await cache.summary_of("t", "u") == StoredSummary("a", 1)
        assert (cache.stale_uses, slow.asked) == (1, 3)
        with pytest.raises(TimeoutError):  # that there was no summary bridges nothing
            await asyncio.wait_for(cache.summary_of("t", "nobody"), 0.1)
        slow.gate.set()
        while cache._reading:  # read in the background
            await asyncio.sleep(0.005)
        asked = slow.asked
        assert await cache.summary_of("t", "u") == StoredSummary("b", 2)
        assert (cache.stale_uses, slow.asked) == (1, asked)

    asyncio.run(ask())


def test_a_store_that_answers_is_believed(store: Store, slow: SlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process's erasure is seen when the fresh seconds are over, and not when the old ones are."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 20.0)
    clock = Clock()
    cache = SummaryCache(store, fresh_seconds=2.0, stale_seconds=30.0, clock=clock)

    async def ask() -> None:
        put(store, "a")
        assert await cache.summary_of("t", "u") == StoredSummary("a", 1)
        store.database.write(erasure.erase, "t", "u", 2.0)
        clock.now += 2.0
        assert await cache.summary_of("t", "u") is None
        assert cache.stale_uses == 0

    asyncio.run(ask())


@pytest.mark.parametrize("how", ["slow", "fails", "hangs"])
def test_an_old_summary_is_used_for_so_long_and_no_longer(store: Store, slow: SlowStore, how: str) -> None:
    clock = Clock()
    cache = SummaryCache(store, fresh_seconds=2.0, stale_seconds=30.0, clock=clock)

    async def ask() -> None:
        put(store, "a")
        await cache.summary_of("t", "u")
        if how == "slow":
            slow.gate.clear()
        slow.fault = how == "fails"
        clock.now += 29.9
        if how == "hangs":
            store.report_timeout()
        assert await cache.summary_of("t", "u") == StoredSummary("a", 1)
        clock.now += 0.1
        with pytest.raises(TimeoutError if how == "slow" else StoreError):
            await asyncio.wait_for(cache.summary_of("t", "u"), 0.1)

    asyncio.run(ask())


@pytest.mark.parametrize("how", ["slow", "fails", "hangs"])
def test_what_was_forgotten_bridges_nothing(store: Store, slow: SlowStore, how: str) -> None:
    clock = Clock()
    cache = SummaryCache(store, clock=clock)

    async def ask() -> None:
        put(store, "a")
        await cache.summary_of("t", "u")
        clock.now += 5.0
        if how == "slow":
            slow.gate.clear()
        slow.fault = how == "fails"
        cache.forget("t", "u")
        if how == "hangs":
            store.report_timeout()
        with pytest.raises(TimeoutError if how == "slow" else StoreError):
            await asyncio.wait_for(cache.summary_of("t", "u"), 0.1)
        assert cache.stale_uses == 0

    asyncio.run(ask())


def test_forgotten_while_one_waits_for_a_slow_store(
    store: Store, slow: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had begun to wait gets neither the old summary nor what was read before it was forgotten."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.1)
    clock = Clock()
    cache = SummaryCache(store, clock=clock)

    async def ask() -> None:
        put(store, "a")
        await cache.summary_of("t", "u")
        clock.now += 5.0
        slow.gate.clear()
        waiting = asyncio.create_task(cache.summary_of("t", "u"))
        await asyncio.sleep(0.01)
        store.database.write(erasure.erase, "t", "u", 2.0)
        cache.forget("t", "u")
        await asyncio.sleep(0.15)
        assert not waiting.done()
        slow.gate.set()
        assert await waiting is None and cache.stale_uses == 0

    asyncio.run(ask())


def test_what_is_too_old_stays_in_no_memory(store: Store) -> None:
    clock = Clock()
    cache = SummaryCache(store, stale_seconds=30.0, clock=clock)

    async def ask() -> None:
        for user in ("u", "v"):
            put(store, "a", user)
            await cache.summary_of("t", user)
            clock.now += 20.0
        cache.drop_old()
        assert [user for _, user in cache._cached] == ["v"]
        clock.now += 20.0
        cache.drop_old()
        assert not cache._cached

    asyncio.run(ask())
