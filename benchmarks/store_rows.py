"""Queries on PostgreSQL with millions of users: time, scans and size of the tables.

.ci/postgres python benchmarks/store_rows.py [--users N] [--signals N] [--calls N] [--partitions N] [--url URL]

Fills a new database on the server of POPI_TEST_POSTGRES (or --url) with users by INSERT ... SELECT, bypassing the API:
each has one summary of 400 characters and some signals; one in a hundred waits for a renewal. Then it times popi's own
queries, each in a transaction as the gateway runs it, for users chosen at random, and asks the planner about each
statement: "reads whole" names tables that are scanned. CPU milliseconds per call, of this process and of the server's,
hardly depend on other load. With --partitions the tables are partitioned as by deploy/postgres/partition.sql. The
database is dropped afterwards. The result goes to runs/bench/store_rows-N.json.
"""

import argparse
import json
import os
import random
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from load.servers import cpu_seconds
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, event, text

from popi.profiles.fields import StoredClause
from popi.serving.api.stored import user_answer
from popi.serving.keys import new_key
from popi.serving.store import (
    audit,
    changes,
    erasure,
    expiry,
    jobs,
    keys,
    outbox,
    overview,
    signals,
    summaries,
    usage,
    users,
)
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.signals.types import StatementSignal

TENANT = "t"
NOW = 1.8e9
BIG = ("users", "signals", "summaries", "jobs", "audit")
CLAUSE = "Prefers short, direct answers with numbers and a formal tone; no small talk. Likes examples in Python. "
SIGNAL = json.dumps({"type": "statement", "text": "I work in a hospital and have little time to read. " * 5})

FILL = """
INSERT INTO users (tenant, user_id, created_at, next_position, signals_read)
    SELECT 't', 'user-' || lpad(n::text, 9, '0'), {now}, {signals}, {signals} FROM generate_series({a}, {b}) n;
INSERT INTO summaries (tenant, user_id, version, text, clauses, author, model, created_at)
    SELECT 't', 'user-' || lpad(n::text, 9, '0'), 1, '{text}', '{clauses}', 'model', 'm', {now}
    FROM generate_series({a}, {b}) n;
INSERT INTO signals (tenant, user_id, signal_id, position, added_at, signal)
    SELECT 't', 'user-' || lpad(n::text, 9, '0'), md5(n || '-' || s), s, {now}, '{signal}'
    FROM generate_series({a}, {b}) n, generate_series(0, {signals} - 1) s;
INSERT INTO jobs (tenant, user_id, revision, first_at, due_at, attempts, key_id, bulk)
    SELECT 't', 'user-' || lpad(n::text, 9, '0'), 1, {now}, {now} + n % 1000 - 500, 0, 'abc', n / 100 % 2
    FROM generate_series({a}, {b}) n WHERE n % 100 = 0;
INSERT INTO audit (entry, at, actor, role, way, action, tenant, user_id, user_hash)
    SELECT lpad(({now}::bigint * 1000000 + n)::text, 16, '0') || '-' || n, {now}, 'key:abc', 'app', 'api',
    'add_signals', 't', 'user-' || lpad(n::text, 9, '0'), md5(n::text)
    FROM generate_series({a}, {b}) n WHERE n % 10 = 0;
"""
CHUNK = 100_000
PARTITION = Path(__file__).parents[1] / "deploy/postgres/partition.sql"


def fill(url: str, count: int, per_user: int) -> float:
    """Insert the rows; returns the seconds that it took."""
    clauses = [StoredClause(id=f"c{n}", text=CLAUSE.strip()) for n in range(4)]
    values = {
        "now": NOW,
        "signals": per_user,
        "text": CLAUSE * 4,
        "clauses": json.dumps([one.model_dump(mode="json") for one in clauses]),
        "signal": SIGNAL,
    }
    began = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        for start in range(0, count, CHUNK):
            chunk = values | {"a": start, "b": min(count, start + CHUNK) - 1}
            for statement in FILL.format(**chunk).split(";\n"):
                if statement.strip():
                    connection.execute(statement)  # type: ignore[call-overload]
        connection.execute("VACUUM ANALYZE")
    return time.monotonic() - began


def scans_in(plan: dict[str, Any]) -> set[str]:
    """The big tables that a plan reads as a whole."""
    table = re.sub(r"_p\d+$", "", plan.get("Relation Name", ""))
    whole = {table} if plan["Node Type"] == "Seq Scan" and table in BIG else set()
    return whole.union(*(scans_in(one) for one in plan.get("Plans", ())))


class Planned:
    """Asks the planner about the statements of a transaction."""

    def __init__(self, database: Database) -> None:
        self._engine = database._engine

    def scans(self, call: Callable[[Connection], object]) -> set[str]:
        statements: list[tuple[str, Any]] = []

        def note(_c: Any, _k: Any, statement: str, parameters: Any, _x: Any, many: bool) -> None:
            if not many and statement.lstrip().startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
                statements.append((statement, parameters))

        whole: set[str] = set()
        with self._engine.connect() as connection:
            event.listen(self._engine, "before_cursor_execute", note)
            call(connection)
            event.remove(self._engine, "before_cursor_execute", note)
            for statement, parameters in statements:
                rows = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
                whole |= scans_in(rows[0]["Plan"])
            connection.rollback()
        return whole


def queries(count: int, key_id: str, chance: random.Random) -> dict[str, tuple[bool, Callable[[Connection], object]]]:
    """The queries by name: whether it writes, and the call."""

    def one() -> str:
        return f"user-{chance.randrange(count):09}"

    def signal(connection: Connection) -> None:
        new = StatementSignal(text="I like tea. " * 20, id=secrets.token_hex(8))
        signals.add(connection, TENANT, one(), [new], NOW, Debounce(), key_id)

    def edit(connection: Connection) -> None:
        clauses = [StoredClause(id=f"c{n}", text=CLAUSE) for n in range(4)]
        summaries.put(connection, TENANT, one(), CLAUSE * 4, clauses, "user", NOW, expected=None)

    def renew(connection: Connection) -> None:
        job = jobs.claim(connection, NOW, 60.0)
        assert job is not None
        usage.charge(connection, [usage.Quota("user_quota", (TENANT, job.user_id, ""), usage.HOUR)], NOW)
        jobs.finish(connection, job)

    gone = iter(range(10**9))
    return {
        "chat: current summary": (False, lambda c: summaries.current_text(c, TENANT, one())),
        "chat: refresh of 500 summaries": (
            False,
            lambda c: summaries.current_texts(c, [(TENANT, one()) for _ in range(500)]),
        ),
        "chat: key": (False, lambda c: keys.find(c, key_id)),
        "changes of other processes": (False, lambda c: changes.news(c, "me", changes.Cursor(0, 0))),
        "signal (feedback)": (True, signal),
        "summary edited": (True, edit),
        "renewal: any due": (False, lambda c: jobs.any_due(c, NOW)),
        "renewal: claimed, charged, finished": (True, renew),
        "profile of a user": (False, lambda c: user_answer(c, TENANT, one(), NOW)),
        "a user's signals": (False, lambda c: signals.search(c, TENANT, one(), 50)),
        "admin: page of users": (False, lambda c: users.list_ids(c, TENANT, one(), 101)),
        "admin: users by prefix": (False, lambda c: users.list_ids(c, TENANT, None, 101, one()[:-2])),
        "admin: users by a prefix nobody has": (False, lambda c: users.list_ids(c, TENANT, None, 101, "zzz")),
        "admin: waiting renewals": (False, lambda c: overview.renewals(c, TENANT, "waiting", one(), 50)),
        "admin: failed renewals": (False, lambda c: overview.renewals(c, TENANT, "failed", "", 50)),
        "admin: overview of tenants": (False, lambda c: overview.of_tenants(c, 0.0)),
        "admin: audit log of a tenant": (False, lambda c: audit.list_entries(c, "nobody's", None, None, 50)),
        "every 10 s: jobs by state": (False, lambda c: jobs.counts(c, NOW)),
        "every 10 s: anything expired": (False, lambda c: expiry.any_expired(c, NOW)),
        "webhook pending": (False, lambda c: outbox.has_pending(c, TENANT, one())),
        "erasure": (True, lambda c: erasure.erase(c, TENANT, f"user-{next(gone):09}", NOW)),
    }


def measure(database: Database, calls: int, count: int) -> list[dict[str, Any]]:
    _, record = new_key("app", TENANT, None, NOW)
    database.write(keys.add, record)
    rows, planned = [], Planned(database)
    for name, (writes, call) in queries(count, record.key_id, random.Random(0)).items():
        run = database.write if writes else database.read
        before = cpu(database)
        taken, end = [], time.monotonic() + 20
        while len(taken) < calls and (time.monotonic() < end or len(taken) < 3):
            began = time.perf_counter()
            run(call)
            taken.append((time.perf_counter() - began) * 1000)
        used = [(after - first) * 1000 / len(taken) for first, after in zip(before, cpu(database), strict=True)]
        taken.sort()
        rows.append(
            {
                "query": name,
                "calls": len(taken),
                "p50_ms": round(taken[len(taken) // 2], 2),
                "p99_ms": round(taken[len(taken) * 99 // 100], 2),
                "cpu_ms": round(used[0], 2),
                "server_cpu_ms": round(used[1], 2),
                "scans": sorted(planned.scans(call)),
            }
        )
        print(rows[-1], flush=True)
    return rows


def cpu(database: Database) -> tuple[float, float]:
    """CPU seconds so far, of this process and of its connection's server process, which is on this machine."""
    pid = database.read(lambda c: c.execute(text("SELECT pg_backend_pid()")).scalar_one())
    return time.process_time(), cpu_seconds(pid)


def sizes(database: Database, count: int) -> dict[str, dict[str, int]]:
    """Bytes per user of each table and of its indexes."""
    query = text(
        "SELECT regexp_replace(relname, '_p[0-9]+$', '') AS relname, sum(pg_table_size(oid))::bigint AS rows, "
        "sum(pg_indexes_size(oid))::bigint AS indexes FROM pg_class WHERE relkind = 'r' "
        "AND relnamespace = 'public'::regnamespace GROUP BY 1 HAVING sum(pg_total_relation_size(oid)) > :least"
    )
    tables = database.read(lambda c: c.execute(query, {"least": count}).all())
    return {row.relname: {"table": row.rows // count, "indexes": row.indexes // count} for row in tables}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--signals", type=int, default=5, help="per user")
    parser.add_argument("--calls", type=int, default=2000, help="per query, for at most 20 seconds")
    parser.add_argument("--url", default=os.environ.get("POPI_TEST_POSTGRES"), help="a server to make a database on")
    parser.add_argument("--partitions", type=int, help="per table with rows per user (default: none)")
    options = parser.parse_args()
    if not options.url:
        parser.error("no PostgreSQL: run it with .ci/postgres, or name a server with --url")
    name = f"popi_rows_{secrets.token_hex(4)}"
    with psycopg.connect(options.url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
    url = f"{options.url.rsplit('/', 1)[0]}/{name}"
    try:
        database = Database.open(url)
        database.write(keys.ensure_tenant, TENANT, NOW)
        if options.partitions:
            with psycopg.connect(url) as connection:
                connection.execute(f"SET popi.partitions = {options.partitions}")  # type: ignore[call-overload]
                connection.execute(PARTITION.read_text(encoding="utf-8"))  # type: ignore[call-overload]
        filled = fill(url, options.users, options.signals)
        print(f"filled in {filled:.0f} s", flush=True)
        size = sizes(database, options.users)
        rows = measure(database, options.calls, options.users)
        database.close()
    finally:
        with psycopg.connect(options.url, autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]
    table = Table("query", "calls", "p50 ms", "p99 ms", "CPU ms", "server's CPU ms", "reads whole")
    for row in rows:
        figures = (str(row[name]) for name in ("calls", "p50_ms", "p99_ms", "cpu_ms", "server_cpu_ms"))
        table.add_row(row["query"], *figures, ", ".join(row["scans"]))
    Console(width=120).print(table)
    print("bytes per user:", json.dumps(size))
    result = {
        "users": options.users,
        "signals": options.signals,
        "partitions": options.partitions,
        "fill_s": filled,
        "bytes_per_user": size,
    }
    out = Path(f"runs/bench/store_rows-{options.users}{'-partitioned' if options.partitions else ''}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result | {"load": os.getloadavg()[0], "queries": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
