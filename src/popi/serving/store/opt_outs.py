"""What users had switched off who were erased: it stays off, should the id come again. Kept by a keyed hash alone."""

from typing import Any

from sqlalchemy import Connection, Row, delete, select

from popi.serving.store import settings
from popi.serving.store.database import upsert
from popi.serving.store.marks import SECRET, Marks, marks
from popi.serving.store.tables import opt_outs


def remember(connection: Connection, tenant: str, user_id: str, paused: int, learn_off: int) -> None:
    """Keep what a user who is being erased had switched off."""
    keep(connection, marks(connection).of(tenant, user_id), paused, learn_off)


def keep(connection: Connection, mark: str, paused: int, learn_off: int) -> None:
    """Keep what is switched off for whom a mark stands."""
    values = {"paused": paused, "learn_off": learn_off}
    connection.execute(
        upsert(connection, opt_outs)
        .values(hash=mark, **values)
        .on_conflict_do_update(index_elements=["hash"], set_=values)
    )


def find(connection: Connection, tenant: str, user_id: str) -> Row[Any] | None:
    """What is switched off for an id of which nothing else is stored; None: nothing."""
    key = settings.kept(connection, SECRET)
    if key is None:
        return None
    return connection.execute(select(opt_outs).where(opt_outs.c.hash == Marks(key).of(tenant, user_id))).first()


def take(connection: Connection, tenant: str, user_id: str) -> Row[Any] | None:
    """The same for a user who is being made: it is kept with them from now on."""
    found = find(connection, tenant, user_id)
    if found is not None:
        connection.execute(delete(opt_outs).where(opt_outs.c.hash == found.hash))
    return found
