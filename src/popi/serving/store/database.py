"""A database by URL: connections, transactions, and everything that differs between SQLite and PostgreSQL."""

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from urllib.parse import quote

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
"""Maximum wait of a transaction for its turn and for other processes' writes (SQLite), or of a statement for a lock
(PostgreSQL)."""
BUSY = "the store is too busy; try again"
_due: ContextVar[float | None] = ContextVar("due", default=None)
CONNECT_SECONDS = 5
PAGE = 2**20
"""Characters of text per page of a long answer."""
TRIES = 3
"""Maximum number of times a transaction is run when the database aborts it (on a deadlock, for example)."""
ABORTED = {"40001", "40P01"}
LOCKED = "55P03"
"""PostgreSQL's code for a lock that was not available in time."""
MIGRATE_SECONDS = 60.0
"""How long a step of the schema is tried again."""
_BEGIN = f"BEGIN; SET LOCAL lock_timeout = '{BUSY_SECONDS}s'; SET LOCAL synchronous_commit = on"
"""How a transaction begins on PostgreSQL."""
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
        parsed = _parse(url)
        self.kind: Literal["sqlite", "postgresql"] = "sqlite" if parsed.drivername == "sqlite" else "postgresql"
        self.file = Path(str(parsed.database)) if self.kind == "sqlite" else None
        self._clock = clock
        # SQLite allows one writer at a time. Within this process, writers queue here in order instead of polling.
        self._writing = threading.RLock() if self.kind == "sqlite" else None
        self._engine = _engine(parsed, connections)
        # The driver's own exceptions are not always wrapped (_sqlite_begin).
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
            _create(database.file)
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
            _remaining()
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
        if self._writing is not None and not self._writing.acquire(timeout=_remaining()):
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
                    _check_file(raw)
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


def wait_from_now() -> None:
    """Start the clock for this context's next transaction: it must begin within BUSY_SECONDS, queueing included."""
    _due.set(time.monotonic() + BUSY_SECONDS)


def _remaining() -> float:
    """Seconds that the current transaction may still wait.

    Raises:
        StoreError: its time is up.
    """
    due = _due.get()
    seconds = BUSY_SECONDS if due is None else due - time.monotonic()
    if seconds <= 0:
        raise StoreError(BUSY)
    return seconds


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


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError("the store's URL is invalid; use sqlite:///popi.db or postgresql://host/name") from None
    if parsed.drivername == "sqlite":
        if parsed.database in (None, "", ":memory:") or parsed.query:
            given = f"sqlite:///{parsed.database or ''}{'?...' if parsed.query else ''}"
            raise ConfigError(f"the store must be a file: sqlite:///popi.db; got {given!r}")
        return parsed
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    raise ConfigError(
        "the store must be a file (sqlite:///popi.db) or PostgreSQL (postgresql://host/name); got "
        f"{parsed.drivername}://…"
    )


def _engine(url: URL, connections: int) -> Engine:
    # Hide parameters from error messages: they are users' texts.
    if url.drivername == "sqlite":
        file = str(Path(str(url.database)).absolute())

        def connect() -> sqlite3.Connection:
            # `rw` never creates a file: an empty one in place of one that was moved away would do harm.
            return sqlite3.connect(f"file:{quote(file)}?mode=rw", uri=True, check_same_thread=False)

        engine = create_engine(
            url,
            creator=connect,
            hide_parameters=True,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=BUSY_SECONDS,
        )
        known: list[tuple[int, int]] = []

        def remember(_connection: Any, record: Any) -> None:
            if not known:
                known.append(_file_id(file))
            record.info["file"] = file, known[0]

        event.listen(engine, "connect", remember)
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
            pool_pre_ping=True,  # connections that died in a server restart must not fail requests
            # Behind a pooler (pgbouncer in transaction mode), each transaction may run on a different server
            # connection, so no state may outlive a transaction. That includes prepared statements.
            connect_args={"connect_timeout": CONNECT_SECONDS, "prepare_threshold": None},
        )
    except ImportError:
        raise StoreError("PostgreSQL needs psycopg; install it with: pip install 'popi[serve]'") from None
    event.listen(engine, "connect", _postgresql_settings)
    event.listen(engine, "begin", _postgresql_begin)
    return engine


def _analyze(connection: Connection, table: str) -> None:
    """Recompute PostgreSQL's statistics of a table's user ids from its current rows."""
    if connection.execute(text(f"SELECT 1 FROM {table} LIMIT 1")).first() is not None:
        connection.execute(text(f"ANALYZE {table} (user_id)"))
    else:  # ANALYZE keeps an empty table's old statistics; setting a column's type, even to the same one, drops them
        connection.execute(text(f"ALTER TABLE {table} ALTER COLUMN user_id TYPE TEXT"))


def _sqlite_settings(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves (_sqlite_begin)
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _write_ahead(cursor)
    for pragma in (
        "synchronous = FULL",  # a commit returns when the log is on disk
        "secure_delete = ON",
        "temp_store = MEMORY",  # keep users' texts out of temporary files; but see `scrub`
        "foreign_keys = ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _create(file: Path) -> None:
    """Create a store's file, empty, if there is none.

    Raises:
        StoreError: its folder does not exist, or its write-ahead log is there without it: SQLite would delete the log.
    """
    if file.exists():
        return
    if not file.parent.is_dir():
        raise StoreError(f"{file}: the folder {file.parent} does not exist; create it first")
    log = Path(f"{file}-wal")
    if log.exists() and log.stat().st_size:
        raise StoreError(
            f"{file}: there is no such file, but its write-ahead log {log.name} is there, with changes that belong to "
            "it; put the file back, or move the log away to begin with an empty store"
        )
    with suppress(OSError):  # SQLite's error says more
        file.touch()


def _file_id(file: str) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _check_file(connection: Any) -> None:
    """Check that a connection's file is still where it was.

    SQLite goes on writing to a file that was deleted or replaced: such writes are lost at the next start.

    Raises:
        StoreError: it isn't.
    """
    file, known = connection.info["file"]
    try:
        if _file_id(file) == known:
            return
    except OSError:
        raise StoreError("the store's file is gone; put it back") from None
    raise StoreError("the store's file was replaced while popi used it; restart popi")


def _write_ahead(cursor: Any) -> None:
    """Switch a new file to the write-ahead log. SQLite's busy timeout doesn't apply when several processes do this."""
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
    # Going through SQLAlchemy would take a fifth of a lookup's time.
    _check_file(connection.connection)
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_remaining() * 1000:.0f}")
    # A transaction that began as a reader can't always become a writer, so writers declare themselves at once.
    write = connection.get_execution_options().get("popi_write")
    cursor.execute("BEGIN IMMEDIATE" if write else "BEGIN")


def _postgresql_settings(connection: Any, _record: object) -> None:
    connection.autocommit = True  # we begin transactions ourselves (_postgresql_begin)


def _postgresql_begin(connection: Connection) -> None:
    # Settings of this transaction only, sent in one message with BEGIN.
    connection.connection.cursor().execute(_BEGIN)


def _store_error(error: Exception) -> StoreError:
    """Drop the database's own message: it quotes rows."""
    name = type(error.orig if isinstance(error, DBAPIError) else error).__name__
    if isinstance(error, (OperationalError, sqlite3.OperationalError)):
        return StoreError(f"the store can't be reached or is too busy ({name}); check its URL, and that it is running")
    return StoreError(f"the store failed ({name})")
