"""A database by URL: connections, transactions, and all that SQLite and PostgreSQL do differently."""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, Row, Select, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.sql.schema import Table

from popi.errors import ConfigError, StoreError
from popi.serving.store.migrate import migrate

P = ParamSpec("P")
T = TypeVar("T")
Query = Callable[Concatenate[Connection, P], T]

BUSY_SECONDS = 10
"""How long a transaction waits for its turn and for another process's write (SQLite), or a statement for a lock
(PostgreSQL)."""
BUSY = "the store is too busy; try again"
_due: ContextVar[float | None] = ContextVar("due", default=None)
CONNECT_SECONDS = 5
PAGE = 2**20
"""Characters of text that a long answer is read in."""
TRIES = 3
"""How often a transaction is run that the database broke off for its own reasons (a deadlock)."""
BROKEN_OFF = {"40001", "40P01"}
_BEGIN = f"BEGIN; SET LOCAL lock_timeout = '{BUSY_SECONDS}s'; SET LOCAL synchronous_commit = on"
"""How a transaction begins on PostgreSQL."""
_COUNTED = ("users", "signals", "summaries")
"""Tables of whose user ids PostgreSQL keeps statistics; of no other column with a user's words or id does it."""
CHECKPOINT_SECONDS = 5.0
"""How long a scrub waits for readers of old pages to end."""


class Database:
    """Transactions on one database, from any thread. The schema is brought up to date by `open`.

    Args:
        url: `sqlite:///file` or `postgresql://user:password@host/name`.
        connections: most connections at once.
        clock: seconds since 1970; by default the machine's, and PostgreSQL's own where several machines share one.

    Raises:
        ConfigError: the URL is none of these.
    """

    def __init__(self, url: str, *, connections: int = 16, clock: Callable[[], float] | None = None) -> None:
        parsed = _parse(url)
        self.kind: Literal["sqlite", "postgresql"] = "sqlite" if parsed.drivername == "sqlite" else "postgresql"
        self.file = Path(str(parsed.database)) if self.kind == "sqlite" else None
        self._clock = clock
        # SQLite has one writer at a time: in this process they queue here, in order, and not by its polling.
        self._writing = threading.RLock() if self.kind == "sqlite" else None
        self._engine = _engine(parsed, connections)
        # SQLAlchemy's, and the driver's own where nothing wraps them (_sqlite_begin).
        self._faults: tuple[type[Exception], ...] = (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error)

    @classmethod
    def open(cls, url: str, **options: Any) -> "Database":
        """Connect and migrate.

        Raises:
            ConfigError: the URL is not one of a store.
            StoreError: the database can't be reached, or was made by a newer popi.
        """
        database = cls(url, **options)
        if database.file is not None and not database.file.parent.is_dir():
            raise StoreError(f"{database.file}: there is no folder {database.file.parent}; make it first")
        database.write(lambda connection: migrate(connection, database.now(connection)))
        return database

    def now(self, connection: Connection) -> float:
        """Seconds since 1970, by one clock for all who share the database."""
        if self._clock is not None:
            return self._clock()
        if self.kind == "sqlite":
            return time.time()
        return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def read(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `query` on a connection that sees one state of the database.

        Raises:
            StoreError: the database can't be reached, failed, or was busy for too long.
        """
        try:
            _left()
            with self._engine.connect() as connection:
                return query(connection, *args, **kwargs)
        except self._faults as error:
            raise _told(error) from None

    def write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `query` in a transaction; when this returns, what it wrote is on disk.

        Raises:
            StoreError: the database can't be reached, failed, or was busy for too long; nothing was written.
        """
        for attempt in range(TRIES):
            try:
                return self._write(query, *args, **kwargs)
            except self._faults as error:
                if attempt + 1 == TRIES or getattr(getattr(error, "orig", None), "sqlstate", None) not in BROKEN_OFF:
                    raise _told(error) from None
        raise AssertionError("unreachable")

    def _write(self, query: Query[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._writing is not None and not self._writing.acquire(timeout=_left()):
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
        """Let nothing of deleted rows be left where it can be read. Says whether it is done; it can be tried again.

        PostgreSQL: no deleted user's id stays in `pg_stats`. SQLite: the file is rewritten without anything deleted,
        and the write-ahead log emptied.

        `secure_delete` overwrites deleted rows, but SQLite leaves copies of rows behind in unused parts of pages when
        it moves them between pages; only a rewrite is free of those. Not done where another process keeps reading or
        writing all the time.
        """
        if self._writing is None:
            try:
                for table in _COUNTED:
                    self.write(_count_again, table)
            except StoreError:
                return False
            return True
        try:
            with self._writing:
                raw = self._engine.raw_connection()
                try:
                    # A copy of all that is left. In memory it could be more than the process may have.
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
        except self._faults:
            return False

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def wait_from_now() -> None:
    """Let the next transaction of this context begin within BUSY_SECONDS from now, wherever it waits until then."""
    _due.set(time.monotonic() + BUSY_SECONDS)


def _left() -> float:
    """How many seconds the transaction at hand may still wait.

    Raises:
        StoreError: none.
    """
    due = _due.get()
    left = BUSY_SECONDS if due is None else due - time.monotonic()
    if left <= 0:
        raise StoreError(BUSY)
    return left


def upsert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that takes ON CONFLICT; the two dialects write it alike."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def page(connection: Connection, query: Select[Any], *columns: str, most: int = PAGE) -> list[Row[Any]]:
    """The first rows of a query, until the texts in `columns` have `most` characters; at least one, if there is any."""
    rows, size = [], 0
    # Fetched a few at a time: rows that were stored without a bound may have megabytes each.
    with connection.execute(query, execution_options={"yield_per": 8}) as result:
        for row in result:
            rows.append(row)
            size += sum(len(row._mapping[name]) for name in columns)
            if size >= most:
                break
    return rows


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError("the store's URL is not one; give sqlite:///popi.db or postgresql://host/name") from None
    if parsed.drivername == "sqlite":
        if parsed.database in (None, "", ":memory:") or parsed.query:
            raise ConfigError(f"the store must be a file: sqlite:///popi.db; got {url!r}")
        return parsed
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError(
        f"the store is a file (sqlite:///popi.db) or PostgreSQL (postgresql://host/name); got {parsed.drivername}://…"
    )


def _engine(url: URL, connections: int) -> Engine:
    # Parameters stay out of error messages: they are users' texts.
    if url.drivername == "sqlite":
        engine = create_engine(
            url, hide_parameters=True, pool_size=connections, max_overflow=0, pool_timeout=BUSY_SECONDS
        )
        event.listen(engine, "connect", _sqlite_settings)
        event.listen(engine, "begin", _sqlite_begin)
        return engine
    try:
        engine = create_engine(
            url,
            hide_parameters=True,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=BUSY_SECONDS,
            pool_pre_ping=True,  # a connection that died with a restart of the server fails no request
            # Behind a pooler (pgbouncer in transaction mode) each transaction may be on another of the server's
            # connections: nothing may be left on one for the next. That goes for prepared statements, too.
            connect_args={"connect_timeout": CONNECT_SECONDS, "prepare_threshold": None},
        )
    except ImportError:
        raise StoreError("PostgreSQL needs psycopg; install it with: pip install 'popi[serve]'") from None
    event.listen(engine, "connect", _postgresql_settings)
    event.listen(engine, "begin", _postgresql_begin)
    return engine


def _count_again(connection: Connection, table: str) -> None:
    """Have PostgreSQL's statistics of a table's user ids made of the rows that it has now."""
    if connection.execute(text(f"SELECT 1 FROM {table} LIMIT 1")).first() is not None:
        connection.execute(text(f"ANALYZE {table} (user_id)"))
    else:  # of an empty table ANALYZE would keep what there is; the type that a column has already drops it
        connection.execute(text(f"ALTER TABLE {table} ALTER COLUMN user_id TYPE TEXT"))


def _sqlite_settings(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours to say (_sqlite_begin)
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _write_ahead(cursor)
    for pragma in (
        "synchronous = FULL",  # a commit returns when the log is on disk
        "secure_delete = ON",
        "temp_store = MEMORY",  # no users' texts in files elsewhere; but see `scrub`
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """Switch a new file to the write-ahead log; where several do that at once, SQLite's own waiting doesn't hold."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _sqlite_begin(connection: Connection) -> None:
    # On the driver's own connection: it is a fifth of what a look-up takes otherwise.
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_left() * 1000:.0f}")
    # A transaction that began as a reader can't always become a writer: writers say so at once.
    write = connection.get_execution_options().get("popi_write")
    cursor.execute("BEGIN IMMEDIATE" if write else "BEGIN")


def _postgresql_settings(connection: Any, _record: object) -> None:
    connection.autocommit = True  # BEGIN is ours to say (_postgresql_begin)


def _postgresql_begin(connection: Connection) -> None:
    # Settings of this transaction alone, in one message with its beginning.
    connection.connection.cursor().execute(_BEGIN)


def _told(error: Exception) -> StoreError:
    """Without the database's own words: they quote rows."""
    name = type(error.orig if isinstance(error, DBAPIError) else error).__name__
    if isinstance(error, (OperationalError, sqlite3.OperationalError)):
        return StoreError(f"the store can't be reached, or is too busy ({name}); is its URL right, and is it up?")
    return StoreError(f"the store failed ({name})")
