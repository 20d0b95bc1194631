"""Requests designed to exhaust the profile API: the gateway keeps serving others promptly, in bounded memory."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from end_to_end.gateway_process import ADMIN, GatewayProcess, running

from popi.serving.store import signals
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.signals.types import StatementSignal

pytestmark = pytest.mark.timed

MIB = 2**20
POST = {"type": "post", "text": "x"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running(f"sqlite:///{tmp_path_factory.mktemp('store')}/popi.db") as started:
        yield started


@contextmanager
def client_of(gateway: GatewayProcess, key: str = ADMIN) -> Iterator[httpx2.Client]:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    with httpx2.Client(base_url=gateway.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def mallory(gateway: GatewayProcess) -> Iterator[httpx2.Client]:
    """A user key, which can only access that user's profile."""
    with client_of(gateway) as admin:
        made = admin.post("/keys", json={"scope": "user", "tenant": "shop", "user_id": "mallory"})
    with client_of(gateway, made.json()["key"]) as client:
        yield client


def megabytes(gateway: GatewayProcess, name: str) -> int:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


@contextmanager
def others_served(gateway: GatewayProcess, seconds: float = 1.0, growth: int = 150) -> Iterator[None]:
    """Run health checks and read another user's profile meanwhile: none takes longer, and memory growth is bounded."""
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")  # the peak counts from here
    before, begun, over, took = megabytes(gateway, "VmRSS"), threading.Event(), threading.Event(), []

    def ask() -> None:
        with client_of(gateway) as client:
            while not over.is_set() or not took:
                begun.set()
                for path, status in (("/healthz", 200), ("/users/ann", 404)):
                    began = time.monotonic()
                    assert client.get(path).status_code == status
                    took.append(time.monotonic() - began)
                time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        begun.wait(10)
        try:
            yield
        finally:
            over.set()
        asking.result()
    assert max(took) < seconds
    assert megabytes(gateway, "VmHWM") - before < growth


def unknown_keys(number: int, signals: int) -> bytes:
    bad = POST | {f"key{n}": n for n in range(number)}
    return json.dumps({"signals": [bad] * signals}).encode()


def text(body: bytes) -> bytes:
    return b'{"signals":[{"type":"post","text":"' + body + b'"}]}'


def prompts(messages: int, signals: int) -> bytes:
    prompt = [{"role": "user", "content": "x"}] * messages
    return json.dumps(
        {"signals": [{"type": "pair", "prompt": prompt, "chosen": "a", "rejected": "b"}] * signals}
    ).encode()


BODIES = {
    "40 signals of 300 unknown keys": (unknown_keys(300, 40), 422),
    "1,000 signals of 60 unknown keys": (unknown_keys(60, 1_000), 422),
    "lists": (b'{"signals":[' + b"[]," * 1_300_000 + b"1]}", 413),
    "as many lists as are allowed": (b'{"signals":[' + b"[]," * 120_000 + b"1]}", 422),
    "nested lists": (b"[" * 240_000, 400),
    "a key of brackets": (json.dumps({"signals": [POST | {"[" * 3_000_000: 1}]}).encode(), 422),
    "a long number": (b'{"signals":' + b"1" * 4_000_000 + b"}", 400),
    "escapes": (text(b"\\u0001" * 600_000), 413),
    "quotes and commas": (text(b'\\",' * 1_300_000), 413),
    "messages": (prompts(60_000, 1), 422),
    "messages in all signals": (prompts(900, 90), 200),
    "the same name again and again": (b'{"signals":[],' * 1 + b'"a":1,' * 600_000 + b'"a":1}', 413),
}


@pytest.mark.parametrize("name", BODIES)
def test_signals(gateway: GatewayProcess, mallory: httpx2.Client, name: str) -> None:
    body, status = BODIES[name]
    with others_served(gateway), ThreadPoolExecutor(6) as pool:
        sent = list(pool.map(lambda _: mallory.post("/users/mallory/signals", content=body), range(6)))
    assert {reply.status_code for reply in sent} <= {status, 429}, sent[0].text[:300]
    assert status in [reply.status_code for reply in sent]
    assert all(len(reply.content) < 20_000 for reply in sent)


EDITS: dict[str, dict[str, Any]] = {
    "a text that looks encoded": {"text": ". " * 9_999 + "x"},
    "clauses that look encoded": {"clauses": [{"text": ". " * 190 + "x"}] * 100},
    "long clauses": {"clauses": [{"text": f"likes tea number {n} " * 18} for n in range(100)]},
    "all forbidden": {
        "clauses": [{"text": f"likes tea number {n} " * 18} for n in range(100)],
        "forbidden": [{"text": f"hates a{n} b{n} c{n} " * 20} for n in range(100)],
    },
}


@pytest.mark.parametrize("name", EDITS)
def test_edits(gateway: GatewayProcess, mallory: httpx2.Client, name: str) -> None:
    with others_served(gateway):
        for _ in range(2):
            reply = mallory.get("/users/mallory/summary")
            seen = {"if-match": reply.headers["etag"]} if reply.status_code == 200 else {}
            edited = mallory.put("/users/mallory/summary", json=EDITS[name], headers=seen)
            assert edited.status_code == (422 if "encoded" in name else 200), edited.text[:300]


def test_a_history_in_which_everything_changes(gateway: GatewayProcess, mallory: httpx2.Client) -> None:
    for n in range(12):
        reply = mallory.get("/users/mallory/summary")
        seen = {"if-match": reply.headers["etag"]} if reply.status_code == 200 else {}
        clauses = [{"id": f"c{i}", "text": ("tea and milk " if n % 2 else "milk and tea ") * 30} for i in range(100)]
        edit = mallory.put("/users/mallory/summary", json={"clauses": clauses}, headers=seen)
        assert edit.status_code == 200, edit.text[:300]
    with client_of(gateway) as admin, httpx2.Client(follow_redirects=True, timeout=60, trust_env=False) as browser:
        link = admin.post("/users/mallory/link", headers={"x-popi-tenant": "shop"}).json()["url"]
        assert browser.get(link).status_code == 200
        with others_served(gateway):
            page = browser.get(f"{gateway.url}/me/history")
        assert page.status_code == 200 and page.text.count("milk and tea") > 100


def test_an_import_of_line_ends(gateway: GatewayProcess) -> None:
    with client_of(gateway) as app, others_served(gateway):
        jsonl = {"content-type": "application/jsonl"}
        for body, status in ((b"\n" * 15 * MIB, 413), (b"{}\n" * 160_000, 422), (b"[" * 240_000 + b"\n", 400)):
            assert app.post("/users/import", content=body, headers=jsonl).status_code == status


def test_a_profile_does_not_grow_without_end(gateway: GatewayProcess, mallory: httpx2.Client) -> None:
    upload = json.dumps({"signals": [POST | {"text": "x" * 90_000 + f"{{n}} {i}"} for i in range(40)]})
    with others_served(gateway):
        for n in range(12):
            reply = mallory.post("/users/mallory/signals", content=upload.replace("{n}", str(n)).encode())
            if reply.status_code != 200:
                break
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "profile_full")
    assert "signals_bytes" in reply.text and 0 < n < 10
    with others_served(gateway):
        whole = mallory.get("/users/mallory/export")
    assert len(whole.json()["signals"]) >= 40 * n


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with a user whose 60 signals of 4 MB were stored before there were limits."""
    url = f"sqlite:///{tmp_path_factory.mktemp('large')}/popi.db"
    with running(url) as started:
        database = Database.open(url)
        for n in range(60):
            old = [StatementSignal(text=f"{n} {'x' * 4_000_000}", id=str(n))]
            database.write(signals.add, "default", "old", old, 1.0, Debounce(9e9, 9e9))
        database.close()
        yield started


def test_an_export_of_what_was_stored_without_bounds(large: GatewayProcess) -> None:
    ids = []
    with client_of(large) as client, others_served(large), client.stream("GET", "/users/old/export") as reply:
        assert reply.status_code == 200 and "content-length" not in reply.headers
        size, tail = 0, b""
        for piece in reply.iter_bytes():
            size += len(piece)
            ids += re.findall(rb'"id": "(\d+)"', tail[-20:] + piece)
            tail = piece
    assert size > 240_000_000 and {int(one) for one in ids} == set(range(60)) and tail.endswith(b"]}")


def test_exports_that_nobody_reads_or_that_are_broken_off(large: GatewayProcess) -> None:
    """Slow readers hold no thread and no transaction."""
    with client_of(large) as client, ExitStack() as left:
        with others_served(large):
            for _ in range(12):
                reply = left.enter_context(client.stream("GET", "/users/old/export"))
                assert next(reply.iter_bytes())
            began = time.monotonic()
            assert client.head("/users/old/export").status_code == 405
            assert client.get("/readyz").status_code == 200
            assert client.post("/users/new/signals", json={"signals": [POST]}).status_code == 200
            assert time.monotonic() - began < 5
        left.close()
        with others_served(large):
            assert client.get("/users/new/export").json()["signals"]
        assert client.delete("/users/new").json()["removed"]["signals"] == 1


def test_who_may_not_call_is_told_before_the_body_is_there(gateway: GatewayProcess, mallory: httpx2.Client) -> None:
    place = urlsplit(gateway.url)
    for path, key, status in (
        ("/users/bob/signals", mallory.headers["authorization"], b"403"),
        ("/users/import", mallory.headers["authorization"], b"403"),
        ("/keys", mallory.headers["authorization"], b"403"),
        ("/users/mallory/signals", "Bearer popi_none", b"401"),
        ("/users/mallory/signals?x=1", mallory.headers["authorization"], b"400"),
    ):
        with socket.create_connection((place.hostname, place.port), timeout=10) as raw:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 1000000\r\n\r\n"
            raw.sendall(head.encode())
            assert raw.recv(100).split()[1] == status, path


def test_a_key_is_made_and_revoked_for_all_processes_on_the_store(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/popi.db"
    with running(store) as one, running(store) as other, client_of(one) as admin:
        made = admin.post("/keys", json={"scope": "app", "tenant": "shop"}).json()
        with client_of(one, made["key"]) as client, client_of(other, made["key"]) as other_client:
            assert client.get("/users").status_code == other_client.get("/users").status_code == 200
            assert admin.delete(f"/keys/{made['key_id']}").status_code == 200
            assert client.get("/users").status_code == 401
            give_up = time.monotonic() + 10
            while other_client.get("/users").status_code == 200 and time.monotonic() < give_up:
                time.sleep(0.05)
            assert other_client.get("/users").status_code == 401


def test_no_line_of_log_where_none_is_wanted(tmp_path: Path) -> None:
    settings = tmp_path / "gateway.toml"
    for wanted in (True, False):
        settings.write_text(f"[proxy]\nlog_requests = {str(wanted).lower()}\n")
        with running(f"sqlite:///{tmp_path}/popi.db", "--config", str(settings)) as gateway:
            with client_of(gateway) as client:
                for path in ("/users/u", "/keys", "/tenants", "/me", "/admin", "/pages/style.css"):
                    client.get(path)
                client.post("/users/u/signals", content=b"{")
        assert ('"event": "request"' in "".join(gateway.lines)) == wanted
