"""The store behind pgbouncer in transaction mode: tests of other files through it, and what only a pooler breaks."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from pgbouncer import SERVER_CONNECTIONS, Pooler, needs_pooler
from serving_client import empty_store
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from unit.serving.store.test_database import test_writers_in_many_threads_take_turns
from unit.serving.store.test_erasure import test_every_row_goes_and_no_other
from unit.serving.store.test_jobs import (
    test_a_dead_workers_job_is_taken_over_and_its_late_result_counts_for_nothing,
    test_workers_never_double_up,
)
from unit.serving.store.test_migrate import (
    test_a_new_step_is_applied_to_an_old_store,
    test_a_step_that_fails_leaves_nothing,
    test_many_may_start_together,
)

from popi.errors import StoreError
from popi.profiles.fields import StoredClause
from popi.serving.store import keys, signals, summaries
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.signals.types import StatementSignal

pytestmark = needs_pooler
__all__ = [
    "test_a_dead_workers_job_is_taken_over_and_its_late_result_counts_for_nothing",
    "test_a_new_step_is_applied_to_an_old_store",
    "test_a_step_that_fails_leaves_nothing",
    "test_every_row_goes_and_no_other",
    "test_many_may_start_together",
    "test_workers_never_double_up",
    "test_writers_in_many_threads_take_turns",
]
MANY = 12
"""Repetitions: the driver would prepare a statement by name from its sixth on."""


@pytest.fixture(scope="module")
def pooler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooler]:
    started = Pooler(tmp_path_factory.mktemp("pooler"))
    started.start()
    yield started
    started.kill()


@pytest.fixture
def store_url(pooler: Pooler, tmp_path: Path) -> Iterator[str]:
    """Of a store without tables, by way of the pooler; the fixtures of stores are made of it."""
    with empty_store("postgresql", tmp_path, schema=False) as url:
        yield pooler.through(url)


def at_once(count: int, work: Callable[[int], object]) -> list[Exception]:
    """Run `work(n)` in so many threads; the errors that came of it."""
    errors: list[Exception] = []

    def run(n: int) -> None:
        try:
            work(n)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_gateways_share_the_servers_connections(database: Database, store_url: str) -> None:
    """Two gateways, more threads than connections of the server, each statement often: none is prepared by name."""
    other = Database.open(store_url)
    pids: set[int] = set()

    def work(n: int) -> None:
        mine, user = (database, other)[n % 2], f"u{n // 2}"
        for number in range(MANY):
            mine.write(signals.add, "t", user, [StatementSignal(text="likes tea", id=f"{n}-{number}")], 1.0, Debounce())
            clauses = [StoredClause(id="c", text=f"{n}-{number}")]
            mine.write(summaries.put, "t", user, f"{n}-{number}", clauses, "user", 1.0, expected=None)
            assert mine.read(summaries.current_texts, [("t", user), ("t", "nobody")]).keys() == {("t", user)}
            assert mine.read(signals.page_after, "t", user)  # by a cursor of the server's
            pids.add(mine.read(lambda connection: connection.execute(text("SELECT pg_backend_pid()")).scalar_one()))

    assert at_once(8, work) == []
    assert 0 < len(pids) <= SERVER_CONNECTIONS
    for user in ("u0", "u1", "u2", "u3"):
        assert database.read(signals.size, "t", user)[0] == 2 * MANY
        assert database.read(summaries.count, "t", user) == 2 * MANY
    other.close()


def test_nothing_is_left_on_a_connection_for_others(database: Database, store_url: str) -> None:
    def waits(connection: Connection) -> object:
        return connection.execute(text("SHOW lock_timeout")).scalar_one()

    for n in range(MANY):
        database.write(keys.ensure_tenant, f"more-{n}", 0.0)
        assert database.read(keys.tenant_exists, f"more-{n}")
    assert (database.read(waits), database.write(waits)) == ("10s", "10s")
    url = make_url(store_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as stranger:
        for _ in range(2 * SERVER_CONNECTIONS):
            left = "SELECT current_setting('lock_timeout'), (SELECT count(*) FROM pg_prepared_statements)"
            assert stranger.execute(left).fetchone() == ("0", 0)


def test_a_killed_pooler_costs_what_was_under_way_and_no_more(database: Database, pooler: Pooler) -> None:
    database.write(keys.ensure_tenant, "before", 0.0)
    killed = threading.Event()

    def dies(connection: Connection) -> None:
        keys.ensure_tenant(connection, "never", 0.0)
        pooler.kill()
        killed.set()

    with pytest.raises(StoreError):
        database.write(dies)
    assert killed.is_set()
    with pytest.raises(StoreError, match="can't be reached"):
        database.read(keys.tenant_exists, "before")
    pooler.start()
    assert database.read(keys.tenant_exists, "before")
    assert not database.read(keys.tenant_exists, "never")
    assert at_once(8, lambda n: database.write(keys.ensure_tenant, f"after-{n}", 0.0)) == []
