"""Switches of erased users: what was off stays off if the id comes back. Stored by a keyed hash only."""

from typing import Any

from sqlalchemy import Connection, Row, delete, select

from popi.serving.store import settings
from popi.serving.store.database import upsert
from popi.serving.store.marks import SECRET, Marks, marks
from popi.serving.store.tables import opt_outs


def remember(connection: Connection, tenant: str, user_id: str, paused: int, learn_off: int) -> None:
    """Store what a user who is being erased had switched off."""
    store(connection, marks(connection).of(tenant, user_id), paused, learn_off)


def store(connection: Connection, mark: str, paused: int, learn_off: int) -> None:
    """Store what is switched off for the user with this mark."""
    values = {"paused": paused, "learn_off": learn_off}
    connection.execute(
        upsert(connection, opt_outs)
        .values(hash=mark, **values)
        .on_conflict_do_update(index_elements=["hash"], set_=values)
    )


def find(connection: Connection, tenant: str, user_id: str) -> Row[Any] | None:
    """What is switched off for an id without any other data; `None` if nothing is."""
    key = settings.get(connection, SECRET)
    if key is None:
        return None
    return connection.execute(select(opt_outs).where(opt_outs.c.hash == Marks(key).of(tenant, user_id))).first()


def take(connection: Connection, tenant: str, user_id: str) -> Row[Any] | None:
    """As `find`, for a user who is being created: removes the entry, as it is stored with the user from now on."""
    row = find(connection, tenant, user_id)
    if row is not None:
        connection.execute(delete(opt_outs).where(opt_outs.c.hash == row.hash))
    return row
