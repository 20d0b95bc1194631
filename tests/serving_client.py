"""What tests of the gateway share: stores, a clock to set, and a gateway in this process with keys of every kind."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from postgres_copies import POSTGRES, empty_copy, new_database
from sqlalchemy import Connection, select
from starlette.testclient import TestClient

from popi.serving.app import Gateway
from popi.serving.keys import create
from popi.serving.settings import read
from popi.serving.store.database import Database
from popi.serving.store.tables import metadata

ADMIN = "an-admin-key-of-the-tests"
without_postgres = pytest.mark.skipif(POSTGRES is None, reason="POPI_TEST_POSTGRES names no server")
STORES = ["sqlite", pytest.param("postgresql", marks=without_postgres)]
"""Parameters of a fixture that is a store of each kind (`empty_store`)."""


@contextmanager
def empty_store(kind: str, folder: Path, *, schema: bool = True) -> Iterator[str]:
    """The URL of an empty store: a file in the folder, or a database of its own.

    Args:
        kind: sqlite or postgresql.
        folder: for the file.
        schema: it has its tables already, copied from a store that was opened once: opening it takes a fifth of the
            time.
    """
    if kind == "sqlite":
        if schema:
            (folder / "popi.db").write_bytes(_sqlite_with_schema())
        yield f"sqlite:///{folder}/popi.db"
        return
    with empty_copy() if schema else new_database() as url:
        yield url


@cache
def _sqlite_with_schema() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        Database.open(f"sqlite:///{folder}/popi.db").close()
        return Path(folder, "popi.db").read_bytes()


def whole_store(database: Database) -> str:
    """All that a store holds: the bytes of SQLite's files, as they are; every row of PostgreSQL's tables."""
    if database.file is not None:
        files = sorted(database.file.parent.glob(database.file.name + "*"))
        return "".join(file.read_bytes().decode("utf-8", "replace") for file in files)

    def rows(connection: Connection) -> str:
        return "\n".join(str(row) for table in metadata.tables.values() for row in connection.execute(select(table)))

    return database.read(rows)


@dataclass
class Clock:
    """Seconds that pass when told to."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class People:
    """A gateway and who may call it.

    Attributes:
        client: sends requests without a key.
        gateway: the application.
        app: an app key of tenant `acme`.
        other_app: an app key of tenant `other`.
        ada: ada's own key, of tenant `acme`.
    """

    client: TestClient
    gateway: Gateway
    app: str
    other_app: str
    ada: str

    def ask(self, method: str, path: str, key: str | None = "app", **more: Any) -> Any:
        """Send a request; `key` is an attribute's name, `admin`, a key, or None."""
        headers = dict(more.pop("headers", {}))
        if key is not None:
            text = ADMIN if key == "admin" else getattr(self, key, key)
            headers["authorization"] = f"Bearer {text}"
        return self.client.request(method, path, headers=headers, **more)


@contextmanager
def gateway_client(database: Database, **tables: Any) -> Iterator[People]:
    """A gateway on a store, with ada's signals in it; `tables` of the settings other than the defaults."""
    settings = read(None, upstream="http://127.0.0.1:9").model_copy(update=tables)
    gateway = Gateway(database, settings)
    app, other = create(database, "app", "acme")[0], create(database, "app", "other")[0]
    ada = create(database, "user", "acme", "ada")[0]
    with TestClient(gateway, raise_server_exceptions=True) as client:
        yield People(client, gateway, app, other, ada)
