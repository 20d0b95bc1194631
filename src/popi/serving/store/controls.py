"""A user's two switches: whether popi uses what it knows about them, and whether it learns from them.

They can be set before anything is stored about the user.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, select, update

from popi.serving.store import changes, jobs, opt_outs, signals, users
from popi.serving.store.jobs import Debounce
from popi.serving.store.tables import answers
from popi.serving.store.tables import jobs as jobs_table
from popi.serving.store.tables import users as users_table

REMEMBERED_SECONDS = 3600.0
"""How long to remember that a user with no other data switched everything on again, so that chats that began while it
was off are not stored."""


@dataclass(frozen=True)
class Switches:
    """The state of both switches; on by default."""

    use: bool = True
    learn: bool = True


def find(connection: Connection, tenant: str, user_id: str) -> Switches:
    """The user's switches, whether or not anything is stored about them."""
    columns = select(users_table.c.paused, users_table.c.learn_off)
    row = connection.execute(columns.where(*_mine(tenant, user_id))).first()
    off = row if row is not None else opt_outs.find(connection, tenant, user_id)
    return Switches() if off is None else Switches(not off.paused, not off.learn_off)


def put(
    connection: Connection,
    tenant: str,
    user_id: str,
    now: float,
    debounce: Debounce,
    *,
    use: bool | None = None,
    learn: bool | None = None,
    key_id: str | None = None,
) -> Switches:
    """Set a user's switches, creating the user if necessary. `None` leaves a switch unchanged.

    Switching learning off deletes the answers stored for feedback and cancels a pending or running renewal: its worker
    loses the lease and writes nothing. Switching it on again schedules a renewal if there are unread signals.
    """
    users.lock(connection, tenant, user_id, now)
    before = find(connection, tenant, user_id)
    after = Switches(before.use if use is None else use, before.learn if learn is None else learn)
    values: dict[str, object] = {"paused": int(not after.use), "learn_off": int(not after.learn)}
    # With both switches on, a user with no other data need not be stored (store.expiry).
    values["expires_at"] = now + REMEMBERED_SECONDS if after == Switches() else None
    if after.learn and not before.learn:
        values["resumed_at"] = now
    connection.execute(update(users_table).where(*_mine(tenant, user_id)).values(**values))
    changes.add_user(connection, tenant, user_id)
    if not after.learn:
        for table in (answers, jobs_table):
            connection.execute(delete(table).where(table.c.tenant == tenant, table.c.user_id == user_id))
    elif not before.learn:
        reading = users.reading(connection, tenant, user_id)
        if reading.next_position > (reading.read or 0) and signals.size(connection, tenant, user_id)[0]:
            jobs.request(connection, tenant, user_id, now, debounce, key_id=key_id)
    return after


def learned_since(connection: Connection, tenant: str, user_id: str, since: float, now: float) -> bool:
    """Whether learning is on and has been ever since `since` (seconds since 1970). Needs a write transaction."""
    columns = select(users_table.c.learn_off, users_table.c.resumed_at)
    row = connection.execute(columns.where(*_mine(tenant, user_id))).first()
    if row is not None and row.resumed_at > now:  # by a clock that was ahead; from now on it is in the past
        connection.execute(update(users_table).where(*_mine(tenant, user_id)).values(resumed_at=now))
    return row is None or not (row.learn_off or row.resumed_at > since)


def _mine(tenant: str, user_id: str) -> tuple[ColumnElement[bool], ...]:
    return users_table.c.tenant == tenant, users_table.c.user_id == user_id
