"""Values that all processes on one store must share, such as secrets: the first process to need one sets it."""

import secrets

from sqlalchemy import Connection, select

from popi.serving.store.database import Database, upsert
from popi.serving.store.tables import settings

ID_SECRET = "id_secret"
"""Name of the setting with the secret for the hashes sent upstream in place of user ids."""


def get(connection: Connection, name: str) -> str | None:
    """A setting's value; `None` if it is not set."""
    return connection.execute(select(settings.c.value).where(settings.c.name == name)).scalar()


def set_default(connection: Connection, name: str, value: str) -> str:
    """Set a value unless there is one already; returns the stored value."""
    connection.execute(upsert(connection, settings).values(name=name, value=value).on_conflict_do_nothing())
    stored = get(connection, name)
    assert stored is not None
    return stored


def id_secret(database: Database) -> str:
    """The store's own secret, 64 hexadecimal digits; created on first use.

    Raises:
        StoreError: the database can't be reached or failed.
    """
    return database.read(get, ID_SECRET) or database.write(set_default, ID_SECRET, secrets.token_hex(32))
