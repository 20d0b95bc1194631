"""What one process on the store does, others drop from memory, and writers wait for that."""

import asyncio
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import pytest
from serving_client import Clock
from sqlalchemy import Connection

from popi.errors import StoreError
from popi.serving import follower as module
from popi.serving.follower import Follower
from popi.serving.store import changes, erasure, keys, summaries
from popi.serving.store.changes import LEASE_SECONDS, Change, user_hash
from popi.serving.store.database import Database
from popi.serving.store.threads import Store


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    database.write(keys.ensure_tenant, "t", 1.0)
    opened = Store(database)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


@dataclass
class Process:
    """A follower and what it was told to drop; `None`: everything."""

    store: Store
    clock: Clock = field(default_factory=Clock)
    dropped: list[Change | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        def apply(news: Collection[Change]) -> None:
            self.dropped += news

        self.follower = Follower(self.store, apply, lambda: self.dropped.append(None), self.clock)

    async def registered(self) -> None:
        await self.follower.start()
        assert self.follower.is_current()

    async def hears(self, *expected: Change) -> None:
        while not set(expected) <= set(self.dropped):
            await asyncio.sleep(0.005)


def put(database: Database, user: str) -> Change:
    database.write(summaries.put, "t", user, "likes tea", [], "user", 1.0, expected=None)
    return Change("user", user_hash("t", user))


def test_others_hear_of_edits_erasures_and_revocations_once(store: Store) -> None:
    async def follow() -> None:
        one, other = Process(store), Process(store)
        before = put(store.database, "before")
        await one.registered()
        await other.registered()
        edited = put(store.database, "ada")
        record = keys.KeyRecord("abc", "0" * 64, "user", "t", "ada", 1.0)
        store.database.write(keys.add, record)
        store.database.write(erasure.erase, "t", "ada", 2.0)
        expected = [edited, Change("erased", edited.subject), Change("key", "abc")]
        for process in (one, other):
            await asyncio.wait_for(process.hears(*expected), 30)
            await asyncio.sleep(0.1)
            assert process.dropped[0] is None  # on registering
            assert sorted(map(str, process.dropped[1:])) == sorted(map(str, expected))
            assert before not in process.dropped
        for process in (one, other):
            await process.follower.stop()
        assert not store.database.read(changes.others, None)

    asyncio.run(follow())


def test_a_change_that_is_committed_after_a_later_one_is_not_missed(store: Store) -> None:
    database = store.database
    if database.kind == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    begun, committed = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        changes.add_keys(connection, ["early"])
        begun.set()
        assert committed.wait(30)

    thread = threading.Thread(target=database.write, args=(slow,))
    cursor = database.write(changes.register, "me")
    thread.start()
    assert begun.wait(30)
    database.write(changes.add_keys, ["late"])
    seen = database.read(changes.news, "me", cursor)
    assert seen is not None and seen.changes == {Change("key", "late")}
    committed.set()
    thread.join()
    database.write(changes.add_keys, ["last"])
    seen = database.read(changes.news, "me", seen.cursor)
    assert seen is not None and seen.changes == {Change("key", "early"), Change("key", "last")}
    seen = database.read(changes.news, "me", seen.cursor)
    assert seen is not None and not seen.changes
    database.write(changes.forget, seen.cursor)
    seen = database.read(changes.news, "me", cursor)
    assert seen is not None and seen.changes == {Change("key", "last")}  # the others are deleted


def test_a_writer_waits_until_each_process_has_dropped_it(store: Store) -> None:
    async def follow() -> None:
        one, other = Process(store), Process(store)
        await one.registered()
        await other.registered()
        for n in range(5):
            changed = put(store.database, f"u{n}")
            await asyncio.wait_for(one.follower.everyone(), 30)
            assert changed in other.dropped
        changed = put(store.database, "many")
        await asyncio.wait_for(asyncio.gather(*(one.follower.everyone() for _ in range(50))), 30)
        assert changed in other.dropped
        assert await asyncio.to_thread(changes.wait_for_all, store.database) == []  # as the command line does
        for process in (one, other):
            await process.follower.stop()

    asyncio.run(follow())


def test_a_process_that_is_silent_is_waited_for_until_its_lease_ends(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(changes, "MARGIN_SECONDS", 0.1)

    async def follow() -> None:
        process = Process(store)
        await process.registered()
        heard = process.store.follow

        async def hangs(*_: object, **__: object) -> None:
            raise StoreError("the network is gone")

        monkeypatch.setattr(process.store, "follow", hangs)
        process.clock.now += LEASE_SECONDS - 0.1
        assert process.follower.is_current()
        process.clock.now += 0.2
        assert not process.follower.is_current()  # so it uses nothing that it has in memory
        monkeypatch.setattr(process.store, "write", hangs)
        silent = await asyncio.to_thread(changes.wait_for_all, store.database)
        assert silent == [process.follower.process]
        assert await asyncio.to_thread(changes.wait_for_all, store.database) == []  # nobody waits for it twice
        assert process.dropped.count(None) == 1
        monkeypatch.undo()
        assert process.store.follow == heard
        while process.dropped.count(None) < 2:  # it registers again, with nothing in memory
            await asyncio.sleep(0.005)
        assert process.follower.is_current()
        await process.follower.stop()

    asyncio.run(follow())


def test_a_dismissed_process_that_was_only_slow_drops_everything(store: Store) -> None:
    async def follow() -> None:
        process = Process(store)
        await process.registered()
        store.database.write(changes.leave, process.follower.process)
        while process.dropped.count(None) < 2:
            await asyncio.sleep(0.005)
        await process.follower.stop()

    asyncio.run(follow())
