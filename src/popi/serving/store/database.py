"""A database by URL: transactions, migration, and the removal of deleted data. `engine` has its connections."""

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from sqlalchemy import Connection, Row, Select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.sql.schema import Table

from popi.errors import StoreError
from popi.serving.store.engine import BUSY, BUSY_SECONDS, check_file, create_file, new_engine, parsed_url, remaining
from popi.serving.store.migrate import migrate

P = ParamSpec("P")
T = TypeVar("T")
Query = Callable[Concatenate[Connection, P], T]

PAGE = 2**20
"""Characters of text per page of a long answer."""
TRIES = 3
"""Maximum number of times a transaction is run when the database aborts it (on a deadlock, for example)."""
ABORTED = {"40001", "40P01"}
LOCKED = "55P03"
"""PostgreSQL's code for a lock that was not available in time."""
MIGRATE_SECONDS = 60.0
"""How long a step of the schema is tried again."""
_ANALYZED = ("users", "signals", "summaries")
"""Tables for whose user ids PostgreSQL keeps statistics; it keeps none for other columns with user text or ids."""
CHECKPOINT_SECONDS = 5.0
"""How long a scrub waits for readers of old pages to finish."""


class Database:
    """Transactions on one database, from any thread. `open` brings the schema up to date.

    Args:
        url: `sqlite:///file` or `postgresql://user:password@host/name`.
        connections: maximum number of open connections.
        clock: returns seconds since 1970; by default the machine's clock for SQLite and the server's for PostgreSQL.

    Raises:
        ConfigError: the URL has neither form.
    """

    def __init__(self, url: str, *, connections: int = 16, clock: Callable[[], float] | None = None) -> None:
        parsed = parsed_url(url)
        self.kind: Literal["sqlite", "postgresql"] = "sqlite" if parsed.drivername == "sqlite" else "postgresql"
        self.file = Path(str(parsed.database)) if self.kind == "sqlite" else None
        self._clock = clock
        # SQLite allows one writer at a time. Within this process, writers queue here in order instead of polling.
        self._writing = threading.RLock() if self.kind == "sqlite" else None
        self._engine = new_engine(parsed, connections)
        # The driver's own exceptions are not always wrapped (engine._sqlite_begin).
        self._errors: tuple[type[Exception], ...] = (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error)

    @classmethod
    def open(cls, url: str, **options: Any) -> "Database":
        """Connect and migrate.

        Raises:
            ConfigError: the URL is not a store's.
            StoreError: the database can't be reached, or was created by a newer popi.
        """
        database = cls(url, **options)
        if database.file is not None:
            create_file(database.file)
        database._migrate()
        return database

    def _migrate(self) -> None:
        """Take all missing steps. One that doesn't get its locks soon gives way, and is tried again."""
        give_up = time.monotonic() + MIGRATE_SECONDS
        while True:
            try:
                if not self._write(lambda connection: migrate(connection, self.now(connection))):
                    return
            except self._errors as error:
                state = getattr(getattr(error, "orig", None), "sqlstate", None)
                if state not in ABORTED | {LOCKED} or time.monotonic() > give_up:
                    raise _store_error(error) from None
                time.sleep(random.uniform(0.1, 0.5))

    def now(self, connection: Connection) -> float:
        """Seconds since 1970, by one clock for everything that shares the database."""
        if self._clock is not None:
            return self._clock()
        if self.kind == "sqlite":
            return time.time()
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def read(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `query` on a connection with a consistent view of the database.

        Raises:
            StoreError: the database can't be reached, failed, or was busy for too long.
        """
        try:
            remaining()
            with self._engine.connect() as connection:
                return query(connection, *args, **kwargs)
        except self._errors as error:
            raise _store_error(error) from None

    def write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `query` in a transaction. When this returns, its writes are on disk.

        Raises:
            StoreError: the database can't be reached, failed, or was busy for too long; nothing was written.
        """
        for attempt in range(TRIES):
            try:
                return self._write(query, *args, **kwargs)
            except self._errors as error:
                if attempt + 1 == TRIES or getattr(getattr(error, "orig", None), "sqlstate", None) not in ABORTED:
                    raise _store_error(error) from None
        raise AssertionError("unreachable")

    def _write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._writing is not None and not self._writing.acquire(timeout=remaining()):
            raise StoreError(BUSY)
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(popi_write=True)
                with connection.begin():
                    return query(connection, *args, **kwargs)
        finally:
            if self._writing is not None:
                self._writing.release()

    def size(self) -> int:
        """Bytes of the SQLite file; 0 for PostgreSQL."""
        try:
            return self.file.stat().st_size if self.file is not None else 0
        except OSError:
            return 0

    def scrub(self) -> bool:
        """Make deleted rows unrecoverable. Returns whether this succeeded; if not, it can be tried again.

        PostgreSQL: deleted users' ids are removed from `pg_stats`. SQLite: the file is rewritten without deleted data,
        and the write-ahead log is emptied.

        `secure_delete` overwrites deleted rows, but SQLite leaves copies in unused parts of pages when it moves rows
        between pages; only a rewrite removes those. It fails while another process keeps reading or writing.
        """
        if self._writing is None:
            try:
                for table in _ANALYZED:
                    self.write(_analyze, table)
            except StoreError:
                return False
            return True
        try:
            with self._writing:
                raw = self._engine.raw_connection()
                try:
                    check_file(raw)
                    # VACUUM makes a full copy, which might not fit in memory.
                    raw.cursor().execute("PRAGMA temp_store = FILE")
                    raw.cursor().execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
                    try:
                        raw.cursor().execute("VACUUM")
                    finally:
                        raw.cursor().execute("PRAGMA temp_store = MEMORY")
                    raw.cursor().execute("PRAGMA busy_timeout = 50")
                    give_up = time.monotonic() + CHECKPOINT_SECONDS
                    while True:
                        (busy, _, _) = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                        if not busy:
                            return True
                        if time.monotonic() > give_up:
                            return False
                        time.sleep(0.05)
                finally:
                    raw.close()
        except StoreError:
            return False
        except self._errors:
            return False

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def upsert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that supports ON CONFLICT, which both dialects write the same way."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def page(connection: Connection, query: Select[Any], *columns: str, max_characters: int = PAGE) -> list[Row[Any]]:
    """The first rows of a query, up to `max_characters` of text in `columns`; at least one row, if there are any."""
    rows, size = [], 0
    # Fetch a few at a time: rows may have megabytes each.
    with connection.execute(query, execution_options={"yield_per": 8}) as result:
        for row in result:
            rows.append(row)
            size += sum(len(row._mapping[name]) for name in columns)
            if size >= max_characters:
                break
    return rows


def _analyze(connection: Connection, table: str) -> None:
    """Recompute PostgreSQL's statistics of a table's user ids from its current rows."""
    if connection.execute(text(f"SELECT 1 FROM {table} LIMIT 1")).first() is not None:
        connection.execute(text(f"ANALYZE {table} (user_id)"))
    else:  # ANALYZE keeps an empty table's old statistics; setting a column's type, even to the same one, drops them
        connection.execute(text(f"ALTER TABLE {table} ALTER COLUMN user_id TYPE TEXT"))


def _store_error(error: Exception) -> StoreError:
    """Drop the database's own message: it quotes rows."""
    name = type(error.orig if isinstance(error, DBAPIError) else error).__name__
    if isinstance(error, (OperationalError, sqlite3.OperationalError)):
        return StoreError(f"the store can't be reached or is too busy ({name}); check its URL, and that it is running")
    return StoreError(f"the store failed ({name})")
