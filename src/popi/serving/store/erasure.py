"""Erasure of one user: every row with their id, and a reminder that the bytes must still be overwritten."""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, select, update

from popi.serving.store import audit, changes, opt_outs, outbox, users
from popi.serving.store.changes import user_hash
from popi.serving.store.database import upsert
from popi.serving.store.tables import (
    answers,
    chores,
    deleted_signals,
    erasures,
    forbidden_words,
    jobs,
    keys,
    sessions,
    signals,
    summaries,
    usage,
)
from popi.serving.store.tables import users as users_table

SCRUB = "scrub"
"""The chore of making erased rows unrecoverable (Database.scrub)."""
REMEMBERED_SECONDS = 3600.0
"""How long the hash of an erased user's id is stored, to reject chats in progress and links handed out before."""


@dataclass(frozen=True)
class Removed:
    """How many rows of each kind were removed."""

    users: int = 0
    signals: int = 0
    summary_versions: int = 0
    renewal_jobs: int = 0
    answers: int = 0
    sessions: int = 0
    keys: int = 0

    @property
    def any(self) -> bool:
        return any(asdict(self).values())


def erase(connection: Connection, tenant: str, user_id: str, now: float) -> Removed:
    """Remove a user. A worker renewing their summary loses its lease and writes nothing.

    What they had switched off stays off if the id comes back (store.opt_outs).
    """
    existed = users.lock_or_reserve(connection, tenant, user_id, now)  # waits for concurrent writes for this user
    is_user = (users_table.c.tenant == tenant, users_table.c.user_id == user_id)
    off = connection.execute(select(users_table.c.paused, users_table.c.learn_off).where(*is_user)).first()
    if off is not None and (off.paused or off.learn_off):
        opt_outs.remember(connection, tenant, user_id, off.paused, off.learn_off)
    removed: dict[str, int] = {}
    for uncounted in (forbidden_words, deleted_signals):
        connection.execute(delete(uncounted).where(uncounted.c.tenant == tenant, uncounted.c.user_id == user_id))
    own_keys = delete(keys).where(keys.c.tenant == tenant, keys.c.user_id == user_id).returning(keys.c.key_id)
    key_ids = list(connection.execute(own_keys).scalars())
    changes.add_keys(connection, key_ids)
    changes.add_user(connection, tenant, user_id, "erased")
    for name, table in (
        ("renewal_jobs", jobs),
        ("summary_versions", summaries),
        ("signals", signals),
        ("answers", answers),
        ("sessions", sessions),
        ("users", users_table),
    ):
        rows = delete(table).where(table.c.tenant == tenant, table.c.user_id == user_id)
        removed[name] = connection.execute(rows).rowcount
    connection.execute(delete(usage).where(usage.c.tenant == tenant, usage.c.user_id == user_id))
    removed |= {"keys": len(key_ids), "users": int(existed)}  # don't count a row that only the lock created
    done = Removed(**removed)
    note(connection, tenant, user_id, now)
    audit.forget(connection, tenant, user_id)
    audit.note(connection, now, "erase", tenant, [user_id], gone=True)
    if done.any:
        outbox.add(connection, tenant, user_id, "user.erased", now)
        scrub_later(connection, now)
    return done


def scrub_later(connection: Connection, now: float) -> None:
    """Schedule overwriting of deleted bytes."""
    connection.execute(
        upsert(connection, chores)
        .values(chore=SCRUB, due_at=now)
        .on_conflict_do_update(index_elements=["chore"], set_={"due_at": now})
    )


def note(connection: Connection, tenant: str, user_id: str, now: float) -> None:
    """Remember for a while that a user was erased: chats in progress are not stored, and earlier links don't open."""
    values = {"erased_at": now, "expires_at": now + REMEMBERED_SECONDS}
    connection.execute(
        upsert(connection, erasures)
        .values(user_hash=user_hash(tenant, user_id), **values)
        .on_conflict_do_update(index_elements=["user_hash"], set_=values)
    )


def erased_since(connection: Connection, tenant: str, user_id: str, since: float) -> bool:
    """Whether the user was erased at `since` (seconds since 1970, within the last hour) or later."""
    query = select(erasures.c.erased_at).where(erasures.c.user_hash == user_hash(tenant, user_id))
    at = connection.execute(query).scalar()
    return at is not None and at >= since


def any_ahead(connection: Connection, now: float) -> bool:
    """Whether `correct` would change anything. Needs only a read."""
    query = select(erasures.c.user_hash).where(erasures.c.erased_at > now).limit(1)
    return connection.execute(query).first() is not None


def correct(connection: Connection, now: float) -> None:
    """Let erasures that a clock was ahead for have happened now: links and answers from now on are newer than they."""
    values = {"erased_at": now, "expires_at": now + REMEMBERED_SECONDS}
    connection.execute(update(erasures).where(erasures.c.erased_at > now).values(**values))


def scrub_due(connection: Connection) -> float | None:
    """Since when erased bytes have been waiting to be overwritten; `None` if there are none."""
    return connection.execute(select(chores.c.due_at).where(chores.c.chore == SCRUB)).scalar()


def scrubbed(connection: Connection, due_at: float) -> None:
    """Mark everything that was due at `due_at` as overwritten, unless more has become due since."""
    # Not `<=`: a clock may have been set back since, and then a later deletion has an earlier time.
    connection.execute(delete(chores).where(chores.c.chore == SCRUB, chores.c.due_at == due_at))
