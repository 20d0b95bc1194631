"""What users had switched off who were erased: it stays off, should the id come again. Kept by a keyed hash alone."""

import hmac
import secrets
from typing import Any

from sqlalchemy import Connection, Row, delete, select

from popi.serving.store import settings
from popi.serving.store.database import upsert
from popi.serving.store.tables import opt_outs

SECRET = "opt_out_secret"
"""The secret of the hashes."""


def remember(connection: Connection, tenant: str, user_id: str, paused: int, learn_off: int) -> None:
    """Keep what a user who is being erased had switched off."""
    key = settings.keep_first(connection, SECRET, secrets.token_hex(32))
    values = {"paused": paused, "learn_off": learn_off}
    connection.execute(
        upsert(connection, opt_outs)
        .values(hash=_hash(key, tenant, user_id), **values)
        .on_conflict_do_update(index_elements=["hash"], set_=values)
    )


def find(connection: Connection, tenant: str, user_id: str) -> Row[Any] | None:
    """What is switched off for an id of which nothing else is stored; None: nothing."""
    key = settings.kept(connection, SECRET)
    if key is None:
        return None
    return connection.execute(select(opt_outs).where(opt_outs.c.hash == _hash(key, tenant, user_id))).first()


def take(connection: Connection, tenant: str, user_id: str) -> Row[Any] | None:
    """The same for a user who is being made: it is kept with them from now on."""
    found = find(connection, tenant, user_id)
    if found is not None:
        connection.execute(delete(opt_outs).where(opt_outs.c.hash == found.hash))
    return found


def _hash(key: str, tenant: str, user_id: str) -> str:
    text = f"{len(tenant)}:{tenant}:{user_id}"
    return hmac.digest(bytes.fromhex(key), text.encode("utf-8", "surrogatepass"), "sha256").hex()
