"""A user's two switches: whether what is known of them is used, and whether anything is learned of them.

They can be set before anything is known of a user, and hold for all that comes later.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, select, update

from popi.serving.store import jobs, opt_outs, signals, users
from popi.serving.store.jobs import Debounce
from popi.serving.store.tables import answers
from popi.serving.store.tables import jobs as jobs_table
from popi.serving.store.tables import users as users_table

NOTED_SECONDS = 3600.0
"""How long a user who switched everything on again, and of whom nothing else is stored, is remembered: chats that were
under way while it was off are not kept."""


@dataclass(frozen=True)
class Switches:
    """How the two stand; both are on until somebody sets them."""

    use: bool = True
    learn: bool = True


def find(connection: Connection, tenant: str, user_id: str) -> Switches:
    """How a user's switches stand, whether or not anything is known of them."""
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
    """Set a user's switches; makes the user if need be. None leaves one as it is.

    Where learning goes off, answers that were kept for feedback go, and a renewal that waits or is under way: a worker
    at it has lost its lease, and writes nothing. Where it goes on again, signals that no summary has read yet are read.
    """
    users.lock(connection, tenant, user_id, now)
    before = find(connection, tenant, user_id)
    after = Switches(before.use if use is None else use, before.learn if learn is None else learn)
    values: dict[str, object] = {"paused": int(not after.use), "learn_off": int(not after.learn)}
    # On again, and nothing else is stored: nothing needs to be remembered (store.expiry).
    values["expires_at"] = now + NOTED_SECONDS if after == Switches() else None
    if after.learn and not before.learn:
        values["resumed_at"] = now
    connection.execute(update(users_table).where(*_mine(tenant, user_id)).values(**values))
    if not after.learn:
        for table in (answers, jobs_table):
            connection.execute(delete(table).where(table.c.tenant == tenant, table.c.user_id == user_id))
    elif not before.learn:
        reading = users.reading(connection, tenant, user_id)
        if reading.upto > (reading.read or 0) and signals.size(connection, tenant, user_id)[0]:
            jobs.request(connection, tenant, user_id, now, debounce, key_id=key_id)
    return after


def learned_since(connection: Connection, tenant: str, user_id: str, since: float) -> bool:
    """Whether learning is on, and was all the time from `since` (seconds since 1970) on."""
    columns = select(users_table.c.learn_off, users_table.c.resumed_at)
    row = connection.execute(columns.where(*_mine(tenant, user_id))).first()
    return row is None or not (row.learn_off or row.resumed_at > since)


def _mine(tenant: str, user_id: str) -> tuple[ColumnElement[bool], ...]:
    return users_table.c.tenant == tenant, users_table.c.user_id == user_id
