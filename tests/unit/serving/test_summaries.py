import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from serving_client import Clock

from popi.errors import StoreError
from popi.serving.interfaces import StoredSummary
from popi.serving.store import summaries
from popi.serving.store.database import Database
from popi.serving.store.threads import MOST_LOOKUPS, Store
from popi.serving.summaries import SummaryCache


@pytest.fixture
def store(sqlite_database: Database) -> Iterator[Store]:
    opened = Store(sqlite_database)
    yield opened
    opened.close()


def put(store: Store, text: str, user: str = "u") -> None:
    store.database.write(summaries.put, "t", user, text, [], "user", 1.0, expected=None)


def test_read_once_in_a_while_and_after_a_change(store: Store) -> None:
    clock = Clock()
    cache = SummaryCache(store, 2.0, clock=clock)

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
        assert await early == StoredSummary("old", 1)
        assert await cache.summary_of("t", "u") == StoredSummary("new", 2)

    asyncio.run(ask())


def test_bounded(store: Store) -> None:
    cache = SummaryCache(store, kept=3)

    async def ask() -> None:
        for n in range(10):
            await cache.summary_of("t", f"u{n}")

    asyncio.run(ask())
    assert len(cache._kept) == 3 and not cache._reading


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
    monkeypatch.setattr(store.database, "read", lambda *_: gate.wait(10) and None)

    async def ask() -> None:
        waiting = [asyncio.create_task(cache.summary_of("t", f"u{n}")) for n in range(MOST_LOOKUPS)]
        await asyncio.sleep(0.05)
        for task in waiting[:10]:
            task.cancel()  # the proxy waits 50 ms
        with pytest.raises(StoreError, match="too slowly"):
            await cache.summary_of("t", "one more")
        gate.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await cache.summary_of("t", "later") is None

    asyncio.run(ask())


def test_a_store_that_a_key_was_waited_for_in_vain_is_not_waited_for_again(store: Store) -> None:
    cache = SummaryCache(store)

    async def ask() -> None:
        await cache.summary_of("t", "known")
        store.waited_in_vain()
        assert await cache.summary_of("t", "known") is None  # remembered
        with pytest.raises(StoreError, match="does not answer"):
            await cache.summary_of("t", "u")

    asyncio.run(ask())
