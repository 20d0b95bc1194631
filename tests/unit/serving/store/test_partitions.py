"""deploy/postgres/partition.sql: a store with partitioned tables, which popi uses like any other.

POPI_TEST_PARTITIONS=4 .ci/postgres pytest tests/unit/serving runs all tests of the store and the gateway on one.
"""

import psycopg
import pytest
from postgres_copies import new_database, partition
from serving_client import without_postgres

from popi.serving.store import erasure, keys, signals, users
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.signals.types import StatementSignal

pytestmark = without_postgres
NAMES = """
SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(pg_constraint.oid) FROM pg_constraint
    JOIN pg_class c ON c.oid = conrelid
    WHERE connamespace = 'public'::regnamespace AND NOT c.relispartition AND conparentid = 0
    AND contype IN ('p', 'u', 'c', 'f')
UNION ALL
SELECT indrelid::regclass::text, indexrelid::regclass::text, 'i', NULL FROM pg_index JOIN pg_class c ON c.oid = indrelid
    WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition
ORDER BY 1, 2, 3
"""


def test_a_partitioned_store_keeps_its_constraints_and_indexes_and_works() -> None:
    with new_database() as url:
        database = Database.open(url)
        with psycopg.connect(url, autocommit=True) as connection:
            before = connection.execute(NAMES).fetchall()
            partition(connection, 3)
            assert connection.execute(NAMES).fetchall() == before and len(before) > 30
            kinds = "SELECT relname FROM pg_class WHERE relkind = 'p' ORDER BY 1"
            tables = [name for (name,) in connection.execute(kinds)]
            assert tables == ["answers", "deleted_signals", "forbidden_words", "signals", "summaries", "users"]

            database.write(keys.ensure_tenant, "t", 0.0)
            names = [f"user-{n}" for n in range(40)]
            for name in names:
                said = StatementSignal(text="I like tea.", id="s1")
                database.write(signals.add, "t", name, [said], 0.0, Debounce())
            assert all(connection.execute(f"SELECT 1 FROM signals_p{n}").fetchone() for n in range(3))
            database.write(erasure.erase, "t", names[0], 1.0)
            assert database.read(users.list_ids, "t", None, 101) == sorted(names[1:])
            with pytest.raises(psycopg.errors.RaiseException, match="table users has rows"):
                partition(connection, 3)
        database.close()
        Database.open(url).close()  # nothing to migrate
