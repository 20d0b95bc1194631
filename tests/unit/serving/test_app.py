import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import SecretStr
from serving_client import ADMIN
from starlette.testclient import TestClient

from popi.errors import ConfigError, StoreError, UpstreamError
from popi.serving import app as module
from popi.serving.api import removal
from popi.serving.app import Gateway
from popi.serving.keys import create
from popi.serving.proxy.ids import Pseudonyms
from popi.serving.settings import GatewaySettings, ProxySettings, RenewalSettings
from popi.serving.store import erasure, keys, signals, summaries
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.settings import ID_SECRET, get
from popi.serving.worker.inference import Provider
from popi.serving.worker.renewal import Worker
from popi.signals.types import Signal, StatementSignal
from popi.summary import Summary

SETTINGS = GatewaySettings(
    proxy=ProxySettings(upstream="http://127.0.0.1:9"), renewal=RenewalSettings(quiet_s=0, max_wait_s=0)
)
HEADERS = {"authorization": f"Bearer {ADMIN}"}


class Model:
    renews = False

    def renewable(self, summary: str) -> bool:
        return False

    def summarize(
        self, signals: Sequence[Signal], temperature: float = 0.0, previous: Summary | None = None
    ) -> Summary:
        return Summary(f"Heard {len(signals)}.", 3, model="fake")


def until(done: Any) -> None:
    give_up = time.monotonic() + 20
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_worker_inside_renews_and_the_proxy_sees_it_at_once(store_url: str) -> None:
    database = Database.open(store_url)
    database.write(keys.ensure_tenant, "default", 0.0)
    worker = Worker(database, Model(), RenewalSettings(poll_interval_s=0.02))
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
    monkeypatch.setattr(removal, "MAX_IMMEDIATE_SCRUB_BYTES", 0)
    monkeypatch.setattr(module, "CHORES_SECONDS", 0.05)
    database = sqlite_database
    database.write(signals.add, "default", "ada", [StatementSignal(text="SECRET")], 1.0, Debounce())
    database.write(summaries.put, "default", "ada", "SECRET", [], "user", 1.0, expected=0)
    with TestClient(Gateway(database, SETTINGS, None, ADMIN), headers=HEADERS) as client:
        assert client.delete("/users/ada").json()["data_on_disk"] == "scheduled"
        until(lambda: database.read(erasure.scrub_due) is None)
        assert database.file is not None
        assert not any(b"SECRET" in file.read_bytes() for file in database.file.parent.iterdir())
        assert client.delete("/users/ada").json()["data_on_disk"] == "overwritten"


def test_a_fault_ends_no_chores(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CHORES_SECONDS", 0.01)
    gateway, times = Gateway(sqlite_database, SETTINGS, None, ADMIN), 0

    async def fault() -> None:
        nonlocal times
        times += 1
        raise RuntimeError("a user's text")

    monkeypatch.setattr(gateway.profiles, "expire", fault)
    with caplog.at_level("ERROR", "popi.gateway"), TestClient(gateway):
        until(lambda: times > 2)
    told = [record for record in caplog.records if record.getMessage() == "the chores failed"]
    assert told and told[0].__dict__["fields"]["error"] == "RuntimeError" and "a user's text" not in caplog.text


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def chat(client: TestClient, user: str = "ada") -> Any:
    return client.post("/v1/chat/completions", json=CHAT, headers={"x-popi-user": user})


def test_a_chat_gets_the_summary_of_the_store(sqlite_database: Database, upstream: Any) -> None:
    gateway = Gateway(sqlite_database, GatewaySettings(proxy=ProxySettings(upstream=upstream.url)), None, ADMIN)
    with TestClient(gateway, headers=HEADERS) as client:
        assert chat(client).headers["x-popi-personalized"] == "none"
        assert client.put("/users/ada/summary", json={"text": "Likes tea."}).status_code == 200
        reply = chat(client)
        assert reply.status_code == 200 and reply.headers["x-popi-personalized"] == "applied"
        assert reply.headers["x-popi-summary-version"] == "1"
        assert "Likes tea." in str(upstream.received[-1].body["messages"])
        blocks = gateway._proxy.gateway._bodies._blocks
        assert blocks.text.cache_info().currsize == 1
        client.delete("/users/ada")
        assert blocks.text.cache_info().currsize == 0  # no memory of this process holds it
        assert chat(client).headers["x-popi-personalized"] == "none"
        assert "Likes tea." not in str(upstream.received[-1].body["messages"])
        assert chat(client, "\x7f" * 300).status_code == 200


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_fault_of_the_store_breaks_no_chat(
    sqlite_database: Database, upstream: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    database = sqlite_database
    key = create(database, "app", "t")[0]
    settings = GatewaySettings(proxy=ProxySettings(upstream=upstream.url))
    over = threading.Event()

    def fault(*_: Any, **__: Any) -> Any:
        if how == "fails":
            raise StoreError("gone")
        over.wait(30)

    with TestClient(Gateway(database, settings, None, ADMIN), headers={"authorization": f"Bearer {key}"}) as client:
        until(lambda: chat(client).headers["x-popi-personalized"] == "none")  # a busy machine takes its 50 ms, too
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


def hashed(client: TestClient, upstream: Any) -> str:
    client.post("/v1/chat/completions", json=CHAT | {"user": "ada"})
    return str(upstream.received[-1].body["user"])


def test_hashed_ids_are_the_same_after_a_restart_and_in_every_process(store_url: str, upstream: Any) -> None:
    database = Database.open(store_url)
    database.write(keys.ensure_tenant, "default", 0.0)
    proxy = ProxySettings(upstream=upstream.url)
    found = []
    for settings in (proxy, proxy, proxy.model_copy(update={"id_secret": SecretStr("ours")})):
        with TestClient(
            Gateway(Database.open(store_url), GatewaySettings(proxy=settings), None, ADMIN), headers=HEADERS
        ) as client:
            found.append(hashed(client, upstream))
    assert len(found[0]) == 64 and found[0] == found[1]
    assert found[2] == Pseudonyms(b"ours").of("default", "ada") != found[0]
    secret = database.read(get, ID_SECRET)
    assert secret is not None and found[0] == Pseudonyms(secret.encode()).of("default", "ada")
    database.close()


def test_the_secret_of_hashed_ids_may_be_in_the_environment(
    sqlite_database: Database, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GatewaySettings(proxy=ProxySettings(upstream=upstream.url, id_secret_env="POPI_TEST_SECRET"))
    with pytest.raises(ConfigError, match="POPI_TEST_SECRET"):
        Gateway(sqlite_database, settings)
    monkeypatch.setenv("POPI_TEST_SECRET", "ours")
    sqlite_database.write(keys.ensure_tenant, "default", 0.0)
    with TestClient(Gateway(sqlite_database, settings, None, ADMIN), headers=HEADERS) as client:
        assert hashed(client, upstream) == Pseudonyms(b"ours").of("default", "ada")
    with pytest.raises(ConfigError, match="only one of id_secret and id_secret_env"):
        ProxySettings(upstream=upstream.url, id_secret_env="POPI_TEST_SECRET", id_secret="ours")


def test_no_secret_is_drawn_where_none_is_needed(sqlite_database: Database) -> None:
    Gateway(
        sqlite_database, GatewaySettings(proxy=ProxySettings(upstream="http://127.0.0.1:9", ids_upstream="stripped"))
    )
    assert sqlite_database.read(get, ID_SECRET) is None


def test_chats_and_profiles_draw_on_one_account(sqlite_database: Database, upstream: Any) -> None:
    settings = GatewaySettings(proxy=ProxySettings(upstream=upstream.url, requests_per_s=0.001, burst=2))
    with TestClient(Gateway(sqlite_database, settings, None, ADMIN), headers=HEADERS) as client:
        assert client.get("/users/ada").status_code == 404
        assert chat(client).status_code == 200
        assert (client.get("/users/ada").status_code, chat(client).status_code) == (429, 429)


def test_an_old_summary_bridges_a_slow_store_until_its_user_is_erased(
    sqlite_database: Database, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = sqlite_database
    settings = GatewaySettings(proxy=ProxySettings(upstream=upstream.url, summary_timeout_ms=2_000))
    gateway = Gateway(database, settings, None, ADMIN)
    gateway.summaries._fresh = 0.0
    read, over, slow = database.read, threading.Event(), True

    def slowly(query: Any, *args: Any, **more: Any) -> Any:
        if slow and query is summaries.current_texts:
            over.wait(30)
        return read(query, *args, **more)

    with TestClient(gateway, headers=HEADERS) as client:
        client.put("/users/ada/summary", json={"text": "Likes tea."})
        assert chat(client).headers["x-popi-personalized"] == "applied"
        monkeypatch.setattr(database, "read", slowly)
        assert chat(client).headers["x-popi-personalized"] == "applied"
        assert "popi_stale_summaries_total 1.0" in client.get("/metrics").text
        assert client.delete("/users/ada").json()["data_on_disk"] == "overwritten"
        assert chat(client).headers["x-popi-personalized"] == "failed"
        assert "Likes tea." not in str(upstream.received[-1].body)
        slow = False
        over.set()
        assert chat(client).headers["x-popi-personalized"] == "none"


def test_readiness_tells_how_the_inference_model_does(store_url: str) -> None:
    database = Database.open(store_url)
    provider = Provider(Model())
    worker = Worker(database, Model(), RenewalSettings(poll_interval_s=0.02), provider=provider)
    with TestClient(Gateway(database, SETTINGS, worker, ADMIN), headers=HEADERS) as client:
        assert client.get("/readyz").json() == {"status": "ok", "inference": {"state": "unchecked", "reason": None}}
        assert "popi_inference_up 1.0" in client.get("/metrics").text
        provider.record_failure(
            ("t", "u"), UpstreamError("no", status=401, affects_all=True, server_message="Incorrect key: likes tea")
        )
        ready = client.get("/readyz")
        told = {"state": "failing", "reason": "the provider answered 401: Incorrect key …"}
        assert ready.status_code == 200 and ready.json()["inference"] == told
        assert "popi_inference_up 0.0" in client.get("/metrics").text
