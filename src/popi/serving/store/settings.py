"""What all processes on one store must agree on: drawn by the first that asks, the same for all after it."""

import secrets

from sqlalchemy import Connection, select

from popi.serving.store.database import Database, upsert
from popi.serving.store.tables import settings

ID_SECRET = "id_secret"
"""The secret of the hashes that go upstream in place of user ids."""


def kept(connection: Connection, name: str) -> str | None:
    """A setting's value; None where nobody has set it."""
    return connection.execute(select(settings.c.value).where(settings.c.name == name)).scalar()


def keep_first(connection: Connection, name: str, value: str) -> str:
    """Set what is not set yet; returns what is kept now."""
    connection.execute(upsert(connection, settings).values(name=name, value=value).on_conflict_do_nothing())
    found = kept(connection, name)
    assert found is not None
    return found


def id_secret(database: Database) -> str:
    """The store's own secret, 64 hexadecimal digits; drawn at the first call.

    Raises:
        StoreError: the database can't be reached or failed.
    """
    return database.read(kept, ID_SECRET) or database.write(keep_first, ID_SECRET, secrets.token_hex(32))
