"""Renewal storms against real processes: nobody waits for another tenant's renewals, and no quota is exceeded."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from end_to_end.gateway_process import GatewayProcess, running
from fake_upstream import FakeUpstream
from serving_client import STORES, empty_store

from popi.serving.keys import create
from popi.serving.store.database import Database

pytestmark = pytest.mark.timed

CALLS = 2
"""Calls to the inference model per renewal: one for the summary, one for the reasons."""


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request.param, tmp_path) as url:
        yield url


def gateway(stack: ExitStack, store: str, upstream: FakeUpstream, folder: Path, **settings: float) -> GatewayProcess:
    """A gateway with a worker."""
    config = folder / "gateway.toml"
    lines = (f"{name} = {value}" for name, value in settings.items())
    config.write_text("\n".join(("[renewal]", "quiet_s = 0.2", "poll_interval_s = 0.05", *lines)))
    inference = ("--inference-url", f"{upstream.url}/v1", "--inference-model", "m")
    return stack.enter_context(running(store, "--config", str(config), *inference))


def app(store: str, tenant: str) -> httpx2.Client:
    """A client with an app key of the tenant; paths are appended to a gateway's URL."""
    database = Database.open(store)
    key = create(database, "app", tenant)[0]
    database.close()
    return httpx2.Client(headers={"authorization": f"Bearer {key}"}, timeout=30, trust_env=False)


def ask(client: httpx2.Client, method: str, url: str, **more: Any) -> Any:
    answer = client.request(method, url, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def says(*texts: str) -> dict[str, Any]:
    return {"signals": [{"type": "statement", "text": text} for text in texts]}


def crowd(number: int) -> dict[str, Any]:
    return {"users": [{"user_id": f"u{n}", **says(f"i like tea number {n}.")} for n in range(number)]}


def until(reached: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for it."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)


@contextmanager
def healthy(url: str) -> Iterator[None]:
    """Check that the gateway keeps responding meanwhile."""
    over, slowest = threading.Event(), [0.0]

    def look() -> None:
        with httpx2.Client(trust_env=False) as client:
            while not over.wait(0.05):
                began = time.monotonic()
                assert client.get(f"{url}/healthz").status_code == 200
                slowest.append(time.monotonic() - began)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert max(slowest) < 1.0


def test_a_storm_of_one_tenant_delays_no_other(store: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    with ExitStack() as stack:
        upstream.delay = 0.1
        url = gateway(stack, store, upstream, tmp_path).url
        big, small = (stack.enter_context(app(store, tenant)) for tenant in ("big", "small"))
        with healthy(url):
            assert ask(big, "POST", f"{url}/users/import", json=crowd(300))["added"] == 300
            until(lambda: len(upstream.received) > 8)
            for who, client in (("ada", small), ("live", big)):
                ask(client, "POST", f"{url}/users/{who}/signals", json=says("i like coffee."))
                until(lambda: ask(client, "GET", f"{url}/users/{who}")["summary"])  # noqa: B023
            assert ask(big, "GET", f"{url}/users/u99")["renewal"]["state"] == "waiting"  # the last of the import
            assert len(read(upstream, "tea number")) < 150 * CALLS
            before = len(read(upstream, "coffee"))
            for _ in range(40):
                answer = ask(small, "POST", f"{url}/users/ada/summary/rebuild")
            until(lambda: len(read(upstream, "coffee")) > before)
            assert answer["renewal"]["due_at"] > moment(200)
        assert len(read(upstream, "coffee")) <= before + CALLS


def test_processes_keep_to_a_quota_together(store: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    most, users = 15, 60
    day = time.time() // 86400
    with ExitStack() as stack:
        upstream.delay = 0.02
        urls = [gateway(stack, store, upstream, tmp_path, key_renewals_per_day=most).url for _ in range(2)]
        greedy, other = (stack.enter_context(app(store, tenant)) for tenant in ("greedy", "other"))
        with healthy(urls[0]):
            ask(greedy, "POST", f"{urls[0]}/users/import", json=crowd(users))

            def last() -> Any:
                return ask(greedy, "GET", f"{urls[1]}/users/u{users - 1}")["renewal"]

            until(lambda: last()["held_by"] == "key_quota")
            ask(other, "POST", f"{urls[1]}/users/ada/signals", json=says("i like coffee."))
            until(lambda: ask(other, "GET", f"{urls[1]}/users/ada")["summary"])
            assert last()["state"] == "waiting" and moment(0) < last()["due_at"] <= moment(86400)
        days = 1 + time.time() // 86400 - day
        assert len(read(upstream, "tea number")) <= most * CALLS * days


def read(upstream: FakeUpstream, words: str) -> list[Any]:
    """Calls to the inference model that contain these words."""
    return [one for one in list(upstream.received) if words in json.dumps(one.body)]


def moment(seconds: float) -> str:
    """The time some seconds from now, in the profile API's format."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + seconds))
