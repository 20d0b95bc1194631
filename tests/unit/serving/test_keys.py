import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving_client import ADMIN, Clock

from popi.errors import AuthError, ConfigError, DataError, StoreError
from popi.serving import keys as module
from popi.serving.interfaces import Caller
from popi.serving.keys import FRESH_SECONDS, GRACE_SECONDS, KeyRing, create, first_admin_key
from popi.serving.store import keys
from popi.serving.store.database import Database
from popi.serving.store.threads import Store


@pytest.fixture
def store(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.delenv("POPI_ADMIN_KEY", raising=False)
    opened = Store(sqlite_database)
    yield opened
    opened.close()


def refused(ring: KeyRing, key: str | None) -> AuthError:
    async def ask() -> AuthError:
        with pytest.raises(AuthError) as caught:
            await ring.authenticate(key)
        return caught.value

    return asyncio.run(ask())


def test_a_key_says_who_calls_and_is_stored_as_a_hash(store: Store, tmp_path: Any) -> None:
    key, record, new = create(store.database, "user", "acme", "ada")
    assert new and record.key_hash not in key and len(record.key_hash) == 64
    assert asyncio.run(KeyRing(store).authenticate(key)) == Caller(record.key_id, "user", "acme", "ada")
    secret = key.rsplit("_", 1)[1].encode()
    assert not any(secret in file.read_bytes() for file in tmp_path.iterdir())


def test_wrong_keys(store: Store) -> None:
    key, record, _ = create(store.database, "app")
    changed = key[:-1] + ("A" if key[-1] != "A" else "B")
    nobody = f"popi_{'0' * 12}_{'x' * 43}"
    for wrong in (None, "", "x", key[:-1], key + "x", key.upper(), changed, nobody, "popi_\ud800", "ü" * 50):
        assert refused(KeyRing(store), wrong).status == 401
    store.database.write(keys.revoke, record.key_id, 1.0)
    assert refused(KeyRing(store), key).status == 401


def test_a_key_in_use_is_looked_up_anew_before_anybody_waits(store: Store) -> None:
    clock = Clock()
    ring = KeyRing(store, clock=clock)
    key, record, _ = create(store.database, "app")

    async def ask() -> None:
        caller = await ring.authenticate(key)
        for _ in range(3):
            clock.now += 0.6 * FRESH_SECONDS
            assert ring.cached(key) == caller
            await asyncio.gather(*ring._lookups.values())
        clock.now += 0.4 * FRESH_SECONDS
        assert ring.cached(key) == caller and not ring._lookups  # too early for another
        store.database.write(keys.revoke, record.key_id, 1.0)
        clock.now += 0.2 * FRESH_SECONDS
        assert ring.cached(key) == caller
        await asyncio.gather(*ring._lookups.values())
        assert ring.cached(key) is None

    asyncio.run(ask())


def test_a_revocation_by_another_process_is_seen(store: Store) -> None:
    clock = Clock()
    ring = KeyRing(store, clock=clock)
    key, record, _ = create(store.database, "app")

    async def ask() -> None:
        await ring.authenticate(key)
        store.database.write(keys.revoke, record.key_id, 1.0)
        await ring.authenticate(key)  # known a moment ago
        clock.now += FRESH_SECONDS
        with pytest.raises(AuthError):
            await ring.authenticate(key)
        with pytest.raises(AuthError):
            await ring.authenticate(key)

    asyncio.run(ask())


def fail(*_: Any, **__: Any) -> Any:
    raise StoreError("gone")


def hang(*_: Any, **__: Any) -> Any:
    time.sleep(1.0)


@pytest.mark.parametrize("fault", [fail, hang])
def test_a_fault_of_the_store_stops_no_known_key_and_lets_no_other_in(
    store: Store, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any]
) -> None:
    clock = Clock()
    ring = KeyRing(store, clock=clock)
    key, other = create(store.database, "app")[0], create(store.database, "app")[0]
    monkeypatch.setattr(module, "AUTH_SECONDS", 0.1)

    async def ask() -> None:
        caller = await ring.authenticate(key)
        asked: list[object] = []
        monkeypatch.setattr(store.database, "read", lambda *args, **more: (asked.append(args), fault())[1])
        clock.now += FRESH_SECONDS
        began = time.perf_counter()
        assert await ring.authenticate(key) == caller
        assert time.perf_counter() - began < 0.8  # PATIENCE_SECONDS, on a busy machine
        assert store.is_hanging == (fault is hang) and len(asked) == 1
        assert await ring.authenticate(key) == caller  # the store was asked just now, and is not asked again
        assert len(asked) == 1
        with pytest.raises(AuthError) as caught:
            await ring.authenticate(other)
        assert caught.value.status == 503
        clock.now += GRACE_SECONDS
        with pytest.raises(AuthError) as caught:
            await ring.authenticate(key)
        assert caught.value.status == 503

    asyncio.run(ask())


def test_erased_users_keys_are_forgotten(store: Store) -> None:
    ring = KeyRing(store)
    key, record, _ = create(store.database, "user", "t", "ada")

    async def ask() -> None:
        await ring.authenticate(key)
        store.database.write(keys.revoke, record.key_id, 1.0)
        ring.forget("t", "ada")
        with pytest.raises(AuthError):
            await ring.authenticate(key)

    asyncio.run(ask())


def test_the_admin_key_of_the_environment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPI_ADMIN_KEY", ADMIN)
    assert first_admin_key(store.database) is None
    ring = KeyRing(store)
    assert asyncio.run(ring.authenticate(ADMIN)) == Caller("env", "admin", "default")
    assert refused(ring, ADMIN + "x").status == 401
    assert store.database.read(keys.list_keys, None) == []
    monkeypatch.setenv("POPI_ADMIN_KEY", "short")
    with pytest.raises(ConfigError, match="at least 16"):
        KeyRing(store)


def test_the_first_start_makes_an_admin_key_once(store: Store) -> None:
    key = first_admin_key(store.database)
    assert key is not None and first_admin_key(store.database) is None
    assert asyncio.run(KeyRing(store).authenticate(key)).scope == "admin"
    (record,) = store.database.read(keys.list_keys, None)
    store.database.write(keys.revoke, record.key_id, 1.0)
    assert first_admin_key(store.database) is not None  # nobody is locked out for good


@pytest.mark.parametrize(
    ("scope", "tenant", "user", "error"),
    [
        ("user", "t", None, DataError),
        ("app", "t", "ada", DataError),
        ("user", "t", "x" * 201, DataError),
        ("user", "t", " ", DataError),
        ("app", "a tenant", None, ConfigError),
        ("app", "", None, ConfigError),
        ("app", "x" * 65, None, ConfigError),
    ],
)
def test_keys_that_make_no_sense(store: Store, scope: Any, tenant: str, user: str | None, error: type) -> None:
    with pytest.raises(error):
        create(store.database, scope, tenant, user)
    assert store.database.read(keys.list_keys, None) == []


def test_a_tenant_is_new_once(database: Database) -> None:
    assert create(database, "app", "fresh")[2] is True
    assert create(database, "app", "fresh")[2] is False
