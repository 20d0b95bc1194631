"""A store on SQLite and, where POPI_TEST_POSTGRES names a server, the same tests on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_client import ADMIN, STORES, Clock, People, empty_store, gateway_client

from popi.serving.store import keys
from popi.serving.store.database import Database


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store."""
    with empty_store(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(store_url: str, clock: Clock) -> Iterator[Database]:
    """A store whose time stands still, with tenants `t` and `other`."""
    opened = Database.open(store_url, clock=clock)
    for tenant in ("default", "t", "other"):
        opened.write(keys.ensure_tenant, tenant, 0.0)
    yield opened
    opened.close()


@pytest.fixture
def people(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[People]:
    """A gateway with keys of every kind, and a client for it."""
    monkeypatch.setenv("POPI_ADMIN_KEY", ADMIN)
    opened = Database.open(store_url)
    with gateway_client(opened) as client:
        yield client


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Any]:
    with empty_store("sqlite", tmp_path) as url:
        opened = Database.open(url)
        for tenant in ("default", "t", "other"):
            opened.write(keys.ensure_tenant, tenant, 0.0)
        yield opened
        opened.close()
