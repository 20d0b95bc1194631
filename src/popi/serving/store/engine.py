"""SQLAlchemy engines for SQLite and PostgreSQL: their settings, how a transaction begins, and how long it may wait."""

import os
import sqlite3
import time
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from popi.errors import ConfigError, StoreError

BUSY_SECONDS = 10
"""Maximum wait of a transaction for its turn and for other processes' writes (SQLite), or of a statement for a lock
(PostgreSQL)."""
BUSY = "the store is too busy; try again"
CONNECT_SECONDS = 5
_due: ContextVar[float | None] = ContextVar("due", default=None)
_BEGIN = f"BEGIN; SET LOCAL lock_timeout = '{BUSY_SECONDS}s'; SET LOCAL synchronous_commit = on"
"""How a transaction begins on PostgreSQL."""


def wait_from_now() -> None:
    """Start the clock for this context's next transaction: it must begin within BUSY_SECONDS, queueing included."""
    _due.set(time.monotonic() + BUSY_SECONDS)


def remaining() -> float:
    """Seconds that the current transaction may still wait.

    Raises:
        StoreError: its time is up.
    """
    due = _due.get()
    seconds = BUSY_SECONDS if due is None else due - time.monotonic()
    if seconds <= 0:
        raise StoreError(BUSY)
    return seconds


def parsed_url(url: str) -> URL:
    """A store's URL.

    Raises:
        ConfigError: it is not one.
    """
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


def new_engine(url: URL, connections: int) -> Engine:
    """An engine with at most `connections` connections, for a URL from `parsed_url`."""
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


def create_file(file: Path) -> None:
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


def check_file(connection: Any) -> None:
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
    check_file(connection.connection)
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {remaining() * 1000:.0f}")
    # A transaction that began as a reader can't always become a writer, so writers declare themselves at once.
    write = connection.get_execution_options().get("popi_write")
    cursor.execute("BEGIN IMMEDIATE" if write else "BEGIN")


def _postgresql_settings(connection: Any, _record: object) -> None:
    connection.autocommit = True  # we begin transactions ourselves (_postgresql_begin)


def _postgresql_begin(connection: Connection) -> None:
    # Settings of this transaction only, sent in one message with BEGIN.
    connection.connection.cursor().execute(_BEGIN)
