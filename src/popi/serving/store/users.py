"""The users of a tenant: existence, locks, and how far their signals have been read."""

import re
from dataclasses import dataclass

from sqlalchemy import Connection, case, delete, func, select, update

from popi.serving.store import opt_outs
from popi.serving.store.database import upsert
from popi.serving.store.tables import signals, users


@dataclass(frozen=True)
class UserRecord:
    """A user; times are seconds since 1970."""

    user_id: str
    created_at: float
    signals: int
    last_signal_at: float | None
    use: bool = True
    learn: bool = True


def lock(connection: Connection, tenant: str, user_id: str, now: float) -> int:
    """Lock the user's row until the transaction ends, creating it if necessary; returns the next signal's position.

    Every write to a user's data starts here, so that writes and erasures of one user are serialised.
    """
    query = (
        upsert(connection, users)
        .values(**_new(tenant, user_id, now))
        .on_conflict_do_update(index_elements=["tenant", "user_id"], set_={"tenant": tenant})
        .returning(users.c.next_position, users.c.created_at)
    )
    row = connection.execute(query).one()
    if row.created_at == now:
        _take_opt_out(connection, tenant, user_id)
    return int(row.next_position)


def _take_opt_out(connection: Connection, tenant: str, user_id: str) -> None:
    """Apply the switches from before an erasure to a newly created user."""
    if (off := opt_outs.take(connection, tenant, user_id)) is not None:
        is_user = (users.c.tenant == tenant, users.c.user_id == user_id)
        values = {"paused": off.paused, "learn_off": off.learn_off, "expires_at": None}
        connection.execute(update(users).where(*is_user).values(**values))


def lock_for_capture(connection: Connection, tenant: str, user_id: str, now: float, until: float) -> None:
    """As `lock`, for data that expires at `until` (seconds since 1970): a user who is created for it, or has no other
    data, expires with it (store.expiry)."""
    made = upsert(connection, users).values(**_new(tenant, user_id, now) | {"expires_at": until})
    later = case((users.c.expires_at.is_not(None), until))
    query = made.on_conflict_do_update(index_elements=["tenant", "user_id"], set_={"expires_at": later})
    if connection.execute(query.returning(users.c.created_at)).scalar_one() == now:
        _take_opt_out(connection, tenant, user_id)


def lock_existing(connection: Connection, tenant: str, user_id: str) -> bool:
    """As `lock`, but don't create the user; returns False if the user does not exist."""
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    return connection.execute(update(users).where(*where).values(tenant=tenant)).rowcount > 0


def lock_or_reserve(connection: Connection, tenant: str, user_id: str, now: float) -> bool:
    """Lock a user who may not exist. Returns False if the user does not exist; then `release_reservation` must follow.

    PostgreSQL then has no row to lock, so one is created for the length of the transaction: this waits for running
    writes, and later ones wait for it. SQLite has one writer at a time, and an inserted id would leave bytes behind.
    """
    while not lock_existing(connection, tenant, user_id):
        if connection.dialect.name == "sqlite":
            return False
        made = upsert(connection, users).values(**_new(tenant, user_id, now)).on_conflict_do_nothing()
        if connection.execute(made.returning(users.c.user_id)).first() is not None:
            return False
    return True


def release_reservation(connection: Connection, tenant: str, user_id: str) -> None:
    """Delete the row that `lock_or_reserve` may have created."""
    connection.execute(delete(users).where(users.c.tenant == tenant, users.c.user_id == user_id))


def _new(tenant: str, user_id: str, now: float) -> dict[str, object]:
    values: dict[str, object] = {"tenant": tenant, "user_id": user_id, "created_at": now}
    return values | {"next_position": 0, "paused": 0, "resumed_at": 0.0, "learn_off": 0}


def find(connection: Connection, tenant: str, user_id: str) -> UserRecord | None:
    """One user."""
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    row = connection.execute(select(users.c.created_at, users.c.paused, users.c.learn_off).where(*where)).first()
    if row is None:
        return None
    is_user = (signals.c.tenant == tenant, signals.c.user_id == user_id)
    count, last = connection.execute(select(func.count(), func.max(signals.c.added_at)).where(*is_user)).one()
    return UserRecord(user_id, row.created_at, count, last, not row.paused, not row.learn_off)


def learns(connection: Connection, tenant: str, user_id: str) -> bool:
    """Whether popi may learn from a user (store.controls)."""
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    return not connection.execute(select(users.c.learn_off).where(*where)).scalar()


def list_ids(
    connection: Connection, tenant: str, after: str | None = None, limit: int = 1000, prefix: str = ""
) -> list[str]:
    """User ids that begin with `prefix`, in order, starting after `after`."""
    query = select(users.c.user_id).where(users.c.tenant == tenant).order_by(users.c.user_id).limit(limit)
    if prefix and connection.dialect.name == "sqlite":
        # LIKE would ignore case. It compares bytes, so that a range can use the index.
        query = query.where(func.substr(users.c.user_id, 1, len(prefix)) == prefix)
        query = query.where(users.c.user_id >= prefix, users.c.user_id <= prefix + "\U0010ffff")
    elif prefix:  # a range would depend on the collation; for LIKE there is an index without one
        query = query.where(users.c.user_id.like(re.sub(r"([\\%_])", r"\\\1", prefix) + "%"))
    if after is not None:
        query = query.where(users.c.user_id > after)
    return list(connection.execute(query).scalars())


@dataclass(frozen=True)
class Reading:
    """How far renewals have read; positions are signal positions.

    Attributes:
        next_position: the next signal's position.
        read: the current summary covers signals before this position; `None` rereads all signals.
        base_version: the version that renewals start from; `None` for the current one.
        base_read: the base covers signals before this position.
    """

    next_position: int = 0
    read: int | None = None
    base_version: int | None = None
    base_read: int | None = None


def reading(connection: Connection, tenant: str, user_id: str) -> Reading:
    """How far renewals have read a user's signals."""
    columns = (users.c.next_position, users.c.signals_read, users.c.base_version, users.c.base_read)
    row = connection.execute(select(*columns).where(users.c.tenant == tenant, users.c.user_id == user_id)).first()
    return Reading() if row is None else Reading(*row)


def set_base(connection: Connection, tenant: str, user_id: str, version: int | None, read: int | None) -> None:
    """Set the version that the next renewals start from, and how far it has read."""
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    connection.execute(update(users).where(*where).values(base_version=version, base_read=read))


def set_signals_read(
    connection: Connection, tenant: str, user_id: str, position: int | None, before: int | None = None
) -> None:
    """Set how far the current summary has read. A position is set only if the old one is still `before`, so that a
    concurrent request to reread everything is not lost.
    """
    where = [users.c.tenant == tenant, users.c.user_id == user_id]
    if position is not None:
        where.append(users.c.signals_read.is_(None) if before is None else users.c.signals_read == before)
    connection.execute(update(users).where(*where).values(signals_read=position))


def next_rebuild(connection: Connection, tenant: str, user_id: str, now: float, wait: float) -> float:
    """When a rebuild requested now is due: at least `wait` seconds after the previous one. Until then, further calls
    return the same time.
    """
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    before = connection.execute(select(users.c.rebuilt_at).where(*where)).scalar_one()
    if before > now + wait:  # by a clock that was ahead
        before = 0.0
    at = float(max(now, before if before > now else before + wait))
    connection.execute(update(users).where(*where).values(rebuilt_at=at))
    return at
