import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from serving_client import ADMIN
from starlette.testclient import TestClient

from popi.errors import StoreError
from popi.serving import app as module
from popi.serving.app import Gateway
from popi.serving.keys import create
from popi.serving.profiles import service
from popi.serving.renewal import Pace, Worker
from popi.serving.settings import GatewaySettings, ProxySettings
from popi.serving.store import erasure, keys, signals, summaries
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.signals.types import Signal, StatementSignal
from popi.summary import Summary

SETTINGS = GatewaySettings(ProxySettings(upstream="http://127.0.0.1:9"), Debounce(0, 0))
HEADERS = {"authorization": f"Bearer {ADMIN}"}


class Model:
    def summarize(self, signals: Sequence[Signal], temperature: float = 0.0) -> Summary:
        return Summary(f"Heard {len(signals)}.", 3, model="fake")


def until(done: Any) -> None:
    give_up = time.monotonic() + 20
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_worker_inside_renews_and_the_proxy_sees_it_at_once(store_url: str) -> None:
    database = Database.open(store_url)
    database.write(keys.ensure_tenant, "default", 0.0)
    worker = Worker(database, Model(), Pace(idle=0.02))
    gateway = Gateway(database, SETTINGS, worker, ADMIN)
    gateway.summaries._fresh = 1000.0  # so that only being told helps
    with TestClient(gateway, headers=HEADERS) as client:

        def seen() -> Any:
            return client.portal.call(gateway.summaries.summary_of, "default", "ada")  # type: ignore[union-attr]

        assert seen() is None
        body = {"signals": [{"type": "statement", "text": "keep it short"}]}
        assert client.post("/users/ada/signals", json=body).status_code == 200
        until(lambda: seen() is not None)
        assert seen().text == "Heard 1."
        assert 'popi_renewals_total{outcome="renewed"} 1.0' in client.get("/metrics").text
        assert 'popi_renewal_jobs{state="failed"} 0.0' in client.get("/metrics").text
        assert client.get("/users/ada").json()["renewal"] is None


def test_erased_bytes_of_a_large_file_are_overwritten_soon(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SCRUB_AT_ONCE", 0)
    monkeypatch.setattr(module, "CHORES_SECONDS", 0.05)
    database = sqlite_database
    database.write(signals.add, "default", "ada", [StatementSignal(text="SECRET")], 1.0, Debounce())
    database.write(summaries.put, "default", "ada", "SECRET", [], "user", 1.0, expected=0)
    with TestClient(Gateway(database, SETTINGS, None, ADMIN), headers=HEADERS) as client:
        assert client.delete("/users/ada").json()["bytes"] == "scheduled"
        until(lambda: database.read(erasure.scrub_due) is None)
        assert database.file is not None
        assert not any(b"SECRET" in file.read_bytes() for file in database.file.parent.iterdir())
        assert client.delete("/users/ada").json()["bytes"] == "overwritten"


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def chat(client: TestClient, user: str = "ada") -> Any:
    return client.post("/v1/chat/completions", json=CHAT, headers={"x-popi-user": user})


def test_a_chat_gets_the_summary_of_the_store(sqlite_database: Database, upstream: Any) -> None:
    settings = GatewaySettings(ProxySettings(upstream=upstream.url))
    with TestClient(Gateway(sqlite_database, settings, None, ADMIN), headers=HEADERS) as client:
        assert chat(client).headers["x-popi-personalized"] == "none"
        assert client.put("/users/ada/summary", json={"text": "Likes tea."}).status_code == 200
        reply = chat(client)
        assert reply.status_code == 200 and reply.headers["x-popi-personalized"] == "applied"
        assert reply.headers["x-popi-summary-version"] == "1"
        assert "Likes tea." in str(upstream.received[-1].body["messages"])
        client.delete("/users/ada")
        assert chat(client).headers["x-popi-personalized"] == "none"
        assert "Likes tea." not in str(upstream.received[-1].body["messages"])
        assert chat(client, "\x7f" * 300).status_code == 200


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_fault_of_the_store_breaks_no_chat(
    sqlite_database: Database, upstream: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    database = sqlite_database
    key = create(database, "app", "t")[0]
    settings = GatewaySettings(ProxySettings(upstream=upstream.url))
    over = threading.Event()

    def fault(*_: Any, **__: Any) -> Any:
        if how == "fails":
            raise StoreError("gone")
        over.wait(30)

    with TestClient(Gateway(database, settings, None, ADMIN), headers={"authorization": f"Bearer {key}"}) as client:
        assert chat(client).headers["x-popi-personalized"] == "none"
        monkeypatch.setattr(database, "read", fault)
        time.sleep(1.1)  # what was known of the key is no longer fresh
        for n in range(3):
            began = time.perf_counter()
            reply = chat(client, f"other-{n}")
            assert reply.status_code == 200 and reply.headers["x-popi-personalized"] == "failed"
            assert time.perf_counter() - began < 1.0  # 75 ms of ours, and a busy machine
        stranger = client.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key[:-1]}x"})
        assert stranger.status_code in (401, 503)
        over.set()
