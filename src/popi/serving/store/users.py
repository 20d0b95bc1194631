"""The users of a tenant: who there is."""

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
    """Make the user if need be, and hold their row until the transaction ends; returns the next signal's position.

    Every write of a user's data begins here, so that writes and the erasure of one user come one after another.
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
    """What was off before an erasure is off for the user who was just made."""
    if (off := opt_outs.take(connection, tenant, user_id)) is not None:
        mine = (users.c.tenant == tenant, users.c.user_id == user_id)
        values = {"paused": off.paused, "learn_off": off.learn_off, "expires_at": None}
        connection.execute(update(users).where(*mine).values(**values))


def lock_for_capture(connection: Connection, tenant: str, user_id: str, now: float, until: float) -> None:
    """The same for what is kept until a time (seconds since 1970) only: a user who is made for it, or of whom nothing
    else is stored, goes with it (store.expiry)."""
    made = upsert(connection, users).values(**_new(tenant, user_id, now) | {"expires_at": until})
    later = case((users.c.expires_at.is_not(None), until))
    query = made.on_conflict_do_update(index_elements=["tenant", "user_id"], set_={"expires_at": later})
    if connection.execute(query.returning(users.c.created_at)).scalar_one() == now:
        _take_opt_out(connection, tenant, user_id)


def lock_existing(connection: Connection, tenant: str, user_id: str) -> bool:
    """The same for a user who must be there; False where they are not."""
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    return connection.execute(update(users).where(*where).values(tenant=tenant)).rowcount > 0


def lock_even_absent(connection: Connection, tenant: str, user_id: str, now: float) -> bool:
    """The same whether or not there is such a user; False where there is none, and `unlock_absent` must follow.

    PostgreSQL has no row to hold then, so one is made for as long as the transaction lasts: a write that is under
    way is waited for, and later ones wait. SQLite has one writer at a time, and would keep the id's bytes.
    """
    while not lock_existing(connection, tenant, user_id):
        if connection.dialect.name == "sqlite":
            return False
        made = upsert(connection, users).values(**_new(tenant, user_id, now)).on_conflict_do_nothing()
        if connection.execute(made.returning(users.c.user_id)).first() is not None:
            return False
    return True


def unlock_absent(connection: Connection, tenant: str, user_id: str) -> None:
    """Take away what the lock of a user who was not there may have made."""
    connection.execute(delete(users).where(users.c.tenant == tenant, users.c.user_id == user_id))


def _new(tenant: str, user_id: str, now: float) -> dict[str, object]:
    known: dict[str, object] = {"tenant": tenant, "user_id": user_id, "created_at": now}
    return known | {"next_position": 0, "paused": 0, "resumed_at": 0.0, "learn_off": 0}


def find(connection: Connection, tenant: str, user_id: str) -> UserRecord | None:
    """One user."""
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    row = connection.execute(select(users.c.created_at, users.c.paused, users.c.learn_off).where(*where)).first()
    if row is None:
        return None
    mine = (signals.c.tenant == tenant, signals.c.user_id == user_id)
    count, last = connection.execute(select(func.count(), func.max(signals.c.added_at)).where(*mine)).one()
    return UserRecord(user_id, row.created_at, count, last, not row.paused, not row.learn_off)


def learns(connection: Connection, tenant: str, user_id: str) -> bool:
    """Whether anything may be learned of a user (store.controls)."""
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    return not connection.execute(select(users.c.learn_off).where(*where)).scalar()


def listed(
    connection: Connection, tenant: str, after: str | None = None, limit: int = 1000, prefix: str = ""
) -> list[str]:
    """User ids in order, those behind `after` that begin with `prefix`."""
    query = select(users.c.user_id).where(users.c.tenant == tenant).order_by(users.c.user_id).limit(limit)
    if prefix:  # LIKE would ignore case in SQLite, and a range of texts PostgreSQL's collation
        query = query.where(func.substr(users.c.user_id, 1, len(prefix)) == prefix)
        if connection.dialect.name == "sqlite":  # which compares bytes, so that the index finds the range
            query = query.where(users.c.user_id >= prefix, users.c.user_id <= prefix + "\U0010ffff")
    if after is not None:
        query = query.where(users.c.user_id > after)
    return list(connection.execute(query).scalars())


@dataclass(frozen=True)
class Reading:
    """How far renewals have read; positions are those of signals.

    Attributes:
        upto: the position that the next signal gets.
        read: up to where the signals are in the current summary; None: all are to be read.
        base_version: the version that renewals start from; None: the current one.
        base_read: up to where they are in that one.
    """

    upto: int = 0
    read: int | None = None
    base_version: int | None = None
    base_read: int | None = None


def reading(connection: Connection, tenant: str, user_id: str) -> Reading:
    """How far renewals have read a user's signals."""
    columns = (users.c.next_position, users.c.signals_read, users.c.base_version, users.c.base_read)
    row = connection.execute(select(*columns).where(users.c.tenant == tenant, users.c.user_id == user_id)).first()
    return Reading() if row is None else Reading(*row)


def set_base(connection: Connection, tenant: str, user_id: str, version: int | None, read: int | None) -> None:
    """Say from which version the next renewals start, and what that one has read."""
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    connection.execute(update(users).where(*where).values(base_version=version, base_read=read))


def set_signals_read(
    connection: Connection, tenant: str, user_id: str, position: int | None, before: int | None = None
) -> None:
    """Say up to where they are in it. With a position, only where it still is at `before`: who called meanwhile for all
    to be read is heard.
    """
    where = [users.c.tenant == tenant, users.c.user_id == user_id]
    if position is not None:
        where.append(users.c.signals_read.is_(None) if before is None else users.c.signals_read == before)
    connection.execute(update(users).where(*where).values(signals_read=position))


def next_rebuild(connection: Connection, tenant: str, user_id: str, now: float, wait: float) -> float:
    """When the rebuild that is called for now is due, `wait` seconds after the one before it; the same again until
    then.
    """
    where = (users.c.tenant == tenant, users.c.user_id == user_id)
    before = connection.execute(select(users.c.rebuilt_at).where(*where)).scalar_one()
    at = float(max(now, before if before > now else before + wait))
    connection.execute(update(users).where(*where).values(rebuilt_at=at))
    return at
