import asyncio

import pytest
from serving_client import Clock

from popi.errors import AuthError, StoreError
from popi.serving import throttle as module
from popi.serving.settings import ServerSettings
from popi.serving.throttle import CLIENT, WRONG_AT_ONCE, Throttle, network_of


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TARPIT_SECONDS", 0)


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_what_counts_as_one_client(host: str, network: str) -> None:
    assert network_of(host) == network


def tried(throttle: Throttle, secret: str, client: str, right: bool) -> str:
    async def check() -> str | None:
        return secret if right else None

    async def run() -> str:
        CLIENT.set(client)
        try:
            return await throttle.attempt(secret, check) or "wrong"
        except AuthError as error:
            assert error.status == 429 and error.retry_after == 1
            return "throttled"

    return asyncio.run(run())


def test_wrong_ones_are_counted_by_address_and_right_ones_are_not() -> None:
    clock = Clock()
    throttle = Throttle(ServerSettings(wrong_keys_per_s=2.0), clock)
    assert tried(throttle, "known", "1.1.1.1", True) == "known"
    for n in range(WRONG_AT_ONCE):
        assert tried(throttle, f"right-{n}", "1.1.1.1", True) == f"right-{n}"
        assert tried(throttle, f"wrong-{n}", "1.1.1.1", False) == "wrong"
    assert tried(throttle, "wrong", "1.1.1.1", False) == "throttled"
    assert tried(throttle, "new", "1.1.1.1", True) == "throttled"
    assert tried(throttle, "new", "1.1.1.2", True) == "new"
    assert tried(throttle, "known", "1.1.1.1", True) == "known"
    assert tried(throttle, "known", "1.1.1.1", True) == "known"
    assert tried(throttle, "wrong", "1.1.1.1", False) == "throttled"  # the known one has given nothing back
    clock.now += 0.5
    assert tried(throttle, "wrong", "1.1.1.1", False) == "wrong"
    assert tried(throttle, "known", "1.1.1.1", False) == "wrong"  # revoked
    assert tried(throttle, "known", "1.1.1.1", False) == "throttled"


def test_a_fault_of_the_store_counts_for_nobody_and_a_client_that_leaves_does() -> None:
    throttle = Throttle(ServerSettings(wrong_keys_per_s=0.001), Clock())

    async def fault() -> None:
        raise StoreError("gone")

    async def leave() -> None:
        raise asyncio.CancelledError

    async def run() -> None:
        for n in range(2 * WRONG_AT_ONCE):
            with pytest.raises(StoreError):
                await throttle.attempt(f"a-{n}", fault)
        for n in range(WRONG_AT_ONCE):
            with pytest.raises(asyncio.CancelledError):
                await throttle.attempt(f"b-{n}", leave)
        with pytest.raises(AuthError):
            await throttle.attempt("c", fault)

    asyncio.run(run())


def test_right_ones_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BUCKETS", 3)
    throttle = Throttle(ServerSettings())
    for n in range(10):
        tried(throttle, f"right-{n}", "", True)
    assert len(throttle._valid) == 3
