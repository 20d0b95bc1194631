"""Databases of a PostgreSQL server for tests: with popi's tables or without, and empty."""

import atexit
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from popi.serving.store.database import Database
from popi.serving.store.tables import metadata, migrations

POSTGRES = os.environ.get("POPI_TEST_POSTGRES")
"""The URL of a server where tests make databases and drop them again."""
PARTITIONS = int(os.environ.get("POPI_TEST_PARTITIONS", "0"))
"""If not 0, the tests' databases have their tables partitioned into this many (deploy/postgres/partition.sql)."""
PARTITION = Path(__file__).parents[1] / "deploy/postgres/partition.sql"


@contextmanager
def new_database() -> Iterator[str]:
    """The URL of a database without tables, for as long as the block lasts."""
    name = _create()
    try:
        yield _url(name)
    finally:
        _drop(name)


@contextmanager
def empty_copy() -> Iterator[str]:
    """The URL of a database with the store's tables, all empty, for as long as the block lasts.

    One is copied where none is free. Making and dropping it takes the server longer than most tests: afterwards it is
    emptied and lent again, unless a test changed more than rows.
    """
    template = _template()
    copy = template.free.pop() if template.free else _Copy(_create(f"TEMPLATE {template.name}"))
    try:
        yield _url(copy.name)
    finally:
        if copy.emptied(template.shape):
            template.free.append(copy)
        else:
            copy.drop()


class _Copy:
    """A database, and a connection that stays: the server has its tables at hand there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._connection = psycopg.connect(_url(name), autocommit=True)

    def emptied(self, shape: list[Any]) -> bool:
        """Whether it is as the template again; what a test left open in it is closed."""
        self._connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        if _shape(self._connection) != shape:
            return False
        tables = [table for table in metadata.tables if table != migrations.name]
        filled = " UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in tables)
        if found := [table for (table,) in self._connection.execute(filled)]:
            self._connection.execute(f"TRUNCATE {', '.join(found)} CASCADE")
        return True

    def drop(self) -> None:
        self._connection.close()
        _drop(self.name)


@dataclass(frozen=True)
class _Template:
    name: str
    shape: list[Any]
    free: list[_Copy] = field(default_factory=list)

    def drop(self) -> None:
        for copy in self.free:
            copy.drop()
        _drop(self.name)


@cache
def _template() -> _Template:
    name = _create()
    Database.open(_url(name)).close()
    with psycopg.connect(_url(name), autocommit=True) as connection:
        if PARTITIONS:
            partition(connection, PARTITIONS)
        template = _Template(name, _shape(connection))
    atexit.register(template.drop)
    return template


def partition(connection: psycopg.Connection, partitions: int) -> None:
    """Partition the tables of a new store."""
    connection.execute(f"SET popi.partitions = {partitions}")  # type: ignore[call-overload]
    connection.execute(PARTITION.read_text(encoding="utf-8"))  # type: ignore[call-overload]


def _shape(connection: psycopg.Connection) -> list[Any]:
    """What emptying tables leaves of a database: columns, indexes, the schema's steps, statistics of rows."""
    columns = (
        "SELECT md5(string_agg((c.oid, relname, attname, atttypid, attnotnull)::text, ' ' ORDER BY c.oid, attnum)) "
        "FROM pg_class c JOIN pg_attribute ON attrelid = c.oid WHERE relnamespace = 'public'::regnamespace"
    )
    steps = f"SELECT string_agg(m::text, ' ' ORDER BY number) FROM {migrations.name} m"
    statistics = "SELECT count(*) FROM pg_statistic WHERE starelid >= 16384"  # below are the server's own tables
    return [connection.execute(query).fetchone() for query in (columns, steps, statistics)]


def _url(name: str) -> str:
    assert POSTGRES is not None
    return f"{POSTGRES.rsplit('/', 1)[0]}/{name}"


def _create(how: str = "") -> str:
    name = f"popi_{secrets.token_hex(6)}"
    _on_the_server(f"CREATE DATABASE {name} {how}")
    return name


def _drop(name: str) -> None:
    _on_the_server(f"DROP DATABASE {name} WITH (FORCE)")


def _on_the_server(statement: str) -> None:
    assert POSTGRES is not None
    with psycopg.connect(POSTGRES, autocommit=True) as server:
        server.execute(statement)  # type: ignore[call-overload]
