import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, text

from popi.errors import ConfigError, StoreError
from popi.serving.store import engine as module
from popi.serving.store import keys, threads
from popi.serving.store.database import Database
from popi.serving.store.threads import Store

pytestmark = pytest.mark.timed


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process's write goes on and on."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://a/b", "http://a"])
def test_urls_that_are_no_store(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        Database(url)


def test_a_password_is_not_told() -> None:
    with pytest.raises(ConfigError) as caught:
        Database("mysql://someone:hush@host/name")
    assert "hush" not in str(caught.value)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Database.open(f"sqlite:///{tmp_path}/no/popi.db")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "popi.db").write_bytes(b"this is a diary, and no database at all\n" * 100)
    with pytest.raises(StoreError, match="store failed"):
        Database.open(f"sqlite:///{tmp_path}/popi.db")


def moved(file: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    file.rename(folder / file.name)


def test_a_file_that_was_moved_takes_no_writes_until_it_is_back(tmp_path: Path) -> None:
    """SQLite would write on, to a file that the next start does not find."""
    file = tmp_path / "popi.db"
    database, beside = Database.open(f"sqlite:///{file}"), Database.open(f"sqlite:///{file}")
    database.write(keys.ensure_tenant, "before", 0.0)
    moved(file, tmp_path / "away")
    for one in (database, beside, Database(f"sqlite:///{file}")):
        with pytest.raises(StoreError, match="gone; put it back|can't be reached"):
            one.write(keys.ensure_tenant, "meanwhile", 0.0)
        with pytest.raises(StoreError, match="gone; put it back|can't be reached"):
            one.read(keys.tenant_exists, "before")
        assert not one.scrub() and not file.exists()
    moved(tmp_path / "away/popi.db", tmp_path)
    database.write(keys.ensure_tenant, "after", 0.0)
    again = Database.open(f"sqlite:///{file}")
    exist = [again.read(keys.tenant_exists, name) for name in ("before", "meanwhile", "after")]
    assert exist == [True, False, True]
    for one in (database, beside, again):
        one.close()


def test_a_file_that_was_replaced_takes_no_writes(tmp_path: Path) -> None:
    file = tmp_path / "popi.db"
    database = Database.open(f"sqlite:///{file}")
    Database.open(f"sqlite:///{tmp_path}/other.db").close()
    moved(file, tmp_path / "away")
    (tmp_path / "other.db").rename(file)
    with pytest.raises(StoreError, match="was replaced while popi used it; restart popi"):
        database.write(keys.ensure_tenant, "t", 0.0)
    database.close()


def test_no_store_begins_beside_the_log_of_a_missing_file(tmp_path: Path) -> None:
    """SQLite would delete the log, and with it writes that were acknowledged."""
    file = tmp_path / "popi.db"
    database = Database.open(f"sqlite:///{file}")
    database.write(keys.ensure_tenant, "t", 0.0)
    moved(file, tmp_path / "away")
    with pytest.raises(StoreError, match="popi.db-wal is there"):
        Database.open(f"sqlite:///{file}")
    moved(tmp_path / "away/popi.db", tmp_path)
    assert Database.open(f"sqlite:///{file}").read(keys.tenant_exists, "t")


def test_no_server() -> None:
    with pytest.raises(StoreError, match="can't be reached"):
        Database.open("postgresql://nobody@127.0.0.1:1/popi")


def test_sqlite_is_set_up_for_durability_and_erasure(sqlite_database: Database) -> None:
    def pragma(connection: Connection, name: str) -> object:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

    for name, value in {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "temp_store": 2}.items():
        assert sqlite_database.read(pragma, name) == value, name


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    def half(connection: Connection) -> None:
        keys.ensure_tenant(connection, "half", 0.0)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.write(half)
    assert not database.read(keys.tenant_exists, "half")


def test_errors_quote_nothing(database: Database) -> None:
    def doubled(connection: Connection) -> None:
        for _ in range(2):
            connection.execute(text("INSERT INTO tenants VALUES (:name, 0)"), {"name": "a-secret-name"})

    with pytest.raises(StoreError) as caught:
        database.write(doubled)
    assert "a-secret-name" not in str(caught.value) and caught.value.__cause__ is None


def test_a_file_that_another_process_keeps_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    database = Database.open(f"sqlite:///{tmp_path}/popi.db")
    with locked(tmp_path / "popi.db"), pytest.raises(StoreError, match="too busy"):
        database.write(keys.ensure_tenant, "t", 0.0)
    database.write(keys.ensure_tenant, "t", 0.0)
    assert database.read(keys.tenant_exists, "t")
    database.close()


HOLDS = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def test_all_who_wait_for_another_process_fail_in_one_and_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(Database.open(f"sqlite:///{tmp_path}/popi.db"))
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.8)
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "popi.db")]

    async def timed(query: Awaitable[object]) -> tuple[bool, float]:
        began = time.monotonic()
        try:
            await query
        except StoreError as error:
            assert "too busy" in str(error)
            return False, time.monotonic() - began
        return True, time.monotonic() - began

    async def all_at_once() -> None:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            many = [timed(store.write(keys.ensure_tenant, f"t{n}", 0.0)) for n in range(30)]
            # The worker's own, which queue for the same lock.
            many += [timed(asyncio.to_thread(store.database.write, keys.ensure_tenant, "u", 0.0)) for _ in range(4)]
            reads = [timed(store.read(keys.tenant_exists, "t0")) for _ in range(20)]
            for done, seconds in await asyncio.gather(*many):
                assert not done and 0.7 < seconds < 2.4
            for done, seconds in await asyncio.gather(*reads):
                assert done and seconds < 2.4
            holder.communicate("")
        assert (await timed(store.write(keys.ensure_tenant, "t0", 0.0)))[0]
        assert await store.read(keys.tenant_exists, "t0")

    asyncio.run(all_at_once())
    store.close()


def test_no_queue_waits_for_another_nor_grows_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MAX_CHECKS", 5)
    store, gate = Store(Database.open(f"sqlite:///{tmp_path}/popi.db")), threading.Event()

    async def ask() -> None:
        checks = [asyncio.create_task(store.check(lambda _: gate.wait(10))) for _ in range(5)]
        await asyncio.sleep(0.05)
        checks[-1].cancel()  # whoever leaves stays in the queue
        with pytest.raises(StoreError, match="too busy"):
            await store.check(keys.tenant_exists, "t")
        assert await asyncio.wait_for(store.lookup(lambda _: 1), 5) == 1
        assert await asyncio.wait_for(store.read(lambda _: 1), 5) == 1
        gate.set()
        assert await asyncio.gather(*checks, return_exceptions=True)
        while store._checks._waiting:
            await asyncio.sleep(0.01)
        assert await store.check(lambda _: 1) == 1

    asyncio.run(ask())
    store.close()


@pytest.mark.parametrize("busy", [False, True])
def test_a_rewrite_takes_no_memory_for_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    said: list[str] = []
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    database = Database.open(f"sqlite:///{tmp_path}/popi.db")
    event.listen(database._engine, "checkout", lambda connection, *_: connection.set_trace_callback(said.append))
    if busy:
        with locked(tmp_path / "popi.db"):
            assert not database.scrub()
    else:
        assert database.scrub()
    at = said.index("VACUUM")
    assert [line for line in said[:at] if "temp_store" in line][-1] == "PRAGMA temp_store = FILE"
    assert [line for line in said[at:] if "temp_store" in line] == ["PRAGMA temp_store = MEMORY"]
    assert database.read(lambda c: c.exec_driver_sql("PRAGMA temp_store").scalar()) == 2
    database.close()


def test_writers_in_many_threads_take_turns(database: Database) -> None:
    database.write(lambda c: c.execute(text("INSERT INTO chores VALUES ('count', 0)")) and None)

    def add(connection: Connection) -> None:
        lock = "" if database.kind == "sqlite" else " FOR UPDATE"
        before = connection.execute(text(f"SELECT due_at FROM chores WHERE chore = 'count'{lock}")).scalar_one()
        connection.execute(text("UPDATE chores SET due_at = :n WHERE chore = 'count'"), {"n": before + 1})

    threads = [threading.Thread(target=lambda: [database.write(add) for _ in range(20)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert database.read(lambda c: c.execute(text("SELECT due_at FROM chores")).scalar_one()) == 120


def test_readers_see_one_state_while_another_process_writes(store_url: str) -> None:
    one, other = Database.open(store_url), Database.open(store_url)
    one.write(keys.ensure_tenant, "seen", 0.0)
    assert other.read(keys.tenant_exists, "seen")
    one.close()
    other.close()
