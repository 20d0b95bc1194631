"""Erasure of one user: every row that bears their id, and a note that the bytes are still to be overwritten."""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, select

from popi.serving.store import users
from popi.serving.store.database import upsert
from popi.serving.store.tables import chores, jobs, keys, signals, summaries
from popi.serving.store.tables import users as users_table

SCRUB = "scrub"
"""The chore of overwriting erased bytes (Database.scrub)."""


@dataclass(frozen=True)
class Removed:
    """How many rows of each kind were removed."""

    users: int = 0
    signals: int = 0
    summary_versions: int = 0
    renewal_jobs: int = 0
    keys: int = 0

    @property
    def any(self) -> bool:
        return any(asdict(self).values())


def erase(connection: Connection, tenant: str, user_id: str, now: float) -> Removed:
    """Remove a user. A worker that is at their renewal has lost its lease with the job, and writes nothing."""
    users.lock_existing(connection, tenant, user_id)  # who writes for this user now is waited for
    removed: dict[str, int] = {}
    for name, table in (
        ("renewal_jobs", jobs),
        ("summary_versions", summaries),
        ("signals", signals),
        ("keys", keys),
        ("users", users_table),
    ):
        rows = delete(table).where(table.c.tenant == tenant, table.c.user_id == user_id)
        removed[name] = connection.execute(rows).rowcount
    done = Removed(**removed)
    if done.any:
        connection.execute(
            upsert(connection, chores)
            .values(chore=SCRUB, due_at=now)
            .on_conflict_do_update(index_elements=["chore"], set_={"due_at": now})
        )
    return done


def scrub_due(connection: Connection) -> float | None:
    """Since when erased bytes wait to be overwritten; None where none do."""
    return connection.execute(select(chores.c.due_at).where(chores.c.chore == SCRUB)).scalar()


def scrubbed(connection: Connection, due_at: float) -> None:
    """What was due at `due_at` is overwritten."""
    connection.execute(delete(chores).where(chores.c.chore == SCRUB, chores.c.due_at <= due_at))
