"""What other processes on the store must drop from memory: changed summaries and switches, erased users, revoked keys.

Each change adds a row in the same transaction. Processes that keep such data in memory register, read the
rows that are new to them several times a second (serving.follower), and drop what the rows name.

A writer who must know that no process uses the old data any more raises a fence for all registered processes. Each
removes its own mark after it has dropped everything that was committed before the fence (`wait_for_all`).

No clock is compared with another machine's, and rows hold hashes in place of user ids. Polling needs no state on a
connection, so it works behind any pooler.
"""

import logging
import secrets
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from sqlalchemy import Connection, bindparam, delete, func, insert, literal, select, text

from popi.errors import StoreError
from popi.serving.store.database import Database, upsert
from popi.serving.store.tables import changes, fences, processes

log = logging.getLogger("popi.gateway.store")

Kind = Literal["user", "erased", "key"]

LEASE_SECONDS = 10.0
"""How long a process may use what it has in memory after it last read the changes. One that hasn't confirmed a fence
after this time has nothing left to drop."""
MARGIN_SECONDS = 1.0
"""What a writer waits longer than that, for a process that began to serve a chat at the last moment."""
CHECK_SECONDS = 0.02
"""Interval of checking who has confirmed a fence."""

_FENCES = (
    select(processes.c.process, fences.c.fence)
    .outerjoin(fences, fences.c.process == processes.c.process)
    .where(processes.c.process == bindparam("me"))
)
_SNAPSHOT = {
    "postgresql": "txid_current_snapshot()::text",
    "sqlite": "coalesce((SELECT max(position) FROM changes), 0) + 1",
}
_NEWS = {
    dialect: text(
        f"SELECT {snapshot} AS snapshot, kind, subject FROM (SELECT 1) one "
        "LEFT JOIN changes ON position >= :next OR position IN :running"
    ).bindparams(bindparam("running", expanding=True))
    for dialect, snapshot in _SNAPSHOT.items()
}


@dataclass(frozen=True)
class Change:
    """What to drop: see the table in migrations/0017_changes.sql."""

    kind: Kind
    subject: str


@dataclass(frozen=True)
class Cursor:
    """What a process has read: all changes but those from `next` on, and those of transactions that were `running`.

    On PostgreSQL a transaction may commit after one that began later, so a single position would not do.

    Attributes:
        first: the first position that was not read.
        next: the position after the last one.
        running: positions in between that were not visible yet.
    """

    first: int
    next: int
    running: tuple[int, ...] = ()

    @classmethod
    def of(cls, snapshot: str | int) -> "Cursor":
        """From PostgreSQL's form of a snapshot, `first:next:running,...`, or SQLite's counter."""
        if isinstance(snapshot, int):
            return cls(snapshot, snapshot)
        first, following, running = snapshot.split(":")
        return cls(int(first), int(following), tuple(int(one) for one in running.split(",") if one))


@dataclass(frozen=True)
class News:
    """What a process has not read yet: changes, the fences to confirm once these are applied, and where to continue."""

    changes: frozenset[Change]
    fences: frozenset[str]
    cursor: Cursor


def user_hash(tenant: str, user_id: str) -> str:
    """SHA-256 of tenant and user id, in hex."""
    return sha256(f"{len(tenant)}:{tenant}:{user_id}".encode()).hexdigest()


def add_user(connection: Connection, tenant: str, user_id: str, kind: Literal["user", "erased"] = "user") -> None:
    """Record that a user's summary or switches have changed, or that something of theirs was erased."""
    _add(connection, kind, user_hash(tenant, user_id))


def add_keys(connection: Connection, key_ids: Iterable[str]) -> None:
    """Record that keys are revoked or belong to another user."""
    for key_id in key_ids:
        _add(connection, "key", key_id)


def _add(connection: Connection, kind: Kind, subject: str) -> None:
    counted = select(func.coalesce(func.max(changes.c.position), 0) + 1).scalar_subquery()
    position = func.txid_current() if connection.dialect.name == "postgresql" else counted
    row = upsert(connection, changes).values(position=position, kind=kind, subject=subject)
    connection.execute(row.on_conflict_do_nothing())


def register(connection: Connection, process: str) -> Cursor:
    """Register a process. It must then drop what it has, and read on from the result."""
    connection.execute(upsert(connection, processes).values(process=process).on_conflict_do_nothing())
    return Cursor.of(connection.execute(text(f"SELECT {_SNAPSHOT[connection.dialect.name]}")).scalar_one())


def leave(connection: Connection, process: str) -> None:
    """Remove a process that has nothing in memory any more."""
    connection.execute(delete(fences).where(fences.c.process == process))
    connection.execute(delete(processes).where(processes.c.process == process))


def news(connection: Connection, process: str, cursor: Cursor) -> News | None:
    """What a process has not read. None if it is not registered any more, since it was silent for longer than its
    lease: it must drop everything and register again.
    """
    # Fences first: a visible one was raised after what it is about was committed, so the second query sees that.
    fences = connection.execute(_FENCES, {"me": process}).all()
    if not fences:
        return None
    unread = {"next": cursor.next, "running": cursor.running}
    rows = connection.execute(_NEWS[connection.dialect.name], unread).all()
    return News(
        frozenset(Change(row.kind, row.subject) for row in rows if row.kind is not None),
        frozenset(row.fence for row in fences if row.fence is not None),
        Cursor.of(rows[0].snapshot),
    )


def confirm(connection: Connection, process: str, confirmed: Collection[str]) -> None:
    """Confirm fences."""
    connection.execute(delete(fences).where(fences.c.process == process, fences.c.fence.in_(confirmed)))


def forget(connection: Connection, cursor: Cursor) -> None:
    """Delete changes that had been read at a cursor older than the lease: by now every process has read them, or must
    register again.
    """
    newest = select(func.max(changes.c.position)).scalar_subquery()  # stays: SQLite continues from it
    connection.execute(delete(changes).where(changes.c.position < cursor.first, changes.c.position < newest))


def others(connection: Connection, process: str | None) -> bool:
    """Whether processes other than this one are registered."""
    query = select(processes.c.process).where(processes.c.process != (process or "")).limit(1)
    return connection.execute(query).first() is not None


def raise_fence(connection: Connection, fence: str, process: str | None) -> None:
    """Ask all other processes for a confirmation."""
    everyone = select(processes.c.process, literal(fence)).where(processes.c.process != (process or ""))
    connection.execute(insert(fences).from_select(["process", "fence"], everyone))


def unconfirmed(connection: Connection, fence: str) -> list[str]:
    """The processes that have not confirmed a fence."""
    return list(connection.execute(select(fences.c.process).where(fences.c.fence == fence)).scalars())


def dismiss(connection: Connection, fence: str) -> None:
    """Remove processes that have not confirmed a fence, so that nobody waits for them again."""
    for process in unconfirmed(connection, fence):
        leave(connection, process)


def wait_for_all(database: Database, process: str | None = None, stopping: threading.Event | None = None) -> list[str]:
    """Wait until no other process uses data from before this call: each has confirmed, or its lease has ended.

    It does not fail. While the store can't be reached, no process can renew its lease.

    Args:
        database: the store.
        process: the caller's name, if it is registered; it has dropped the data itself.
        stopping: set to return early, since the caller is about to end.

    Returns:
        The processes that did not confirm: they were killed, hang or can't reach the store.
    """
    end = time.monotonic() + LEASE_SECONDS + MARGIN_SECONDS
    fence, raised = secrets.token_hex(8), False
    stopping = stopping or threading.Event()
    while True:
        silent: list[str] | None = None
        try:
            if not raised:
                if not database.read(others, process):
                    return []
                database.write(raise_fence, fence, process)
                raised = True
            silent = database.read(unconfirmed, fence)
            if silent and time.monotonic() >= end:
                database.write(dismiss, fence)
        except StoreError:
            pass  # the next try may succeed
        if silent == [] or time.monotonic() >= end or stopping.wait(CHECK_SECONDS):
            break
    if silent is None or silent:
        log.warning("processes did not confirm a change", extra={"fields": {"processes": silent or "unknown"}})
    return silent or []
