"""Bodies designed to exhaust the gateway: it keeps serving others promptly, in bounded memory."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx2
import pytest
from end_to_end.gateway_process import ADMIN, GatewayProcess, running
from unit.serving.proxy.recording import recording_upstream

pytestmark = pytest.mark.timed

CHAT = "/v1/chat/completions"
MIB = 2**20


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/popi.db"
    with recording_upstream() as upstream, running(store, upstream=upstream.url) as started:
        yield started


def megabytes(gateway: GatewayProcess, name: str) -> int:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(name))


@contextmanager
def others_served(gateway: GatewayProcess, seconds: float = 3.0, growth: int = 700) -> Iterator[None]:
    """Run health checks and another client's chat meanwhile: none takes longer, and memory growth is bounded."""
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")  # the peak counts from here
    before, over, took = megabytes(gateway, "VmRSS"), threading.Event(), []
    chat = {"messages": [{"role": "user", "content": "hi"}], "user": "ann"}

    def ask() -> None:
        with httpx2.Client(base_url=gateway.url, timeout=60, trust_env=False) as client:
            while not over.is_set() or len(took) <= 5:
                for method, path, body in (("GET", "/healthz", None), ("POST", CHAT, chat)):
                    began = time.monotonic()
                    answer = client.request(method, path, json=body, headers={"Authorization": f"Bearer {ADMIN}"})
                    took.append(time.monotonic() - began)
                    assert answer.status_code == 200
                time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            over.set()
        asking.result()
    assert len(took) > 5 and max(took) < seconds
    assert megabytes(gateway, "VmHWM") - before < growth


def send(gateway: GatewayProcess, body: bytes, headers: dict[str, str], path: str = CHAT) -> tuple[int, str]:
    with httpx2.Client(base_url=gateway.url, timeout=60, trust_env=False) as client:
        answer = client.post(path, content=body, headers={"Authorization": f"Bearer {ADMIN}"} | headers)
    return answer.status_code, "" if answer.status_code == 200 else answer.json()["error"]["code"]


def at_once(
    gateway: GatewayProcess, body: bytes, number: int, headers: dict[str, str] | None = None, path: str = CHAT
) -> set[tuple[int, str]]:
    with ThreadPoolExecutor(number) as pool:
        return set(pool.map(lambda _: send(gateway, body, headers or {}, path), range(number)))


GZIP = {"Content-Encoding": "gzip"}
LISTS = b'{"user":"bob","messages":[%b[]]}' % (b"[]," * (20 * MIB))  # 60 MiB
PACKED = gzip.compress(LISTS, 9)


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
def test_a_small_body_that_inflates_to_a_large_one(gateway: GatewayProcess, path: str) -> None:
    assert len(PACKED) < 70_000
    with others_served(gateway, growth=150):
        assert at_once(gateway, PACKED, 8, GZIP, path) == {(413, "body_too_long")}


def test_many_values(gateway: GatewayProcess) -> None:
    noise = Random(1).randbytes(MIB // 16).hex().encode()  # to stay within the allowed ratio
    many = b'{"user":"bob","n":"%b","messages":[%b[]]}' % (noise, b"[]," * (2 * MIB))
    packed = gzip.compress(many, 1)
    assert len(packed) * 100 > len(many) and len(many) < 8 * MIB
    with others_served(gateway):
        statuses = at_once(gateway, packed, 8, GZIP) | at_once(gateway, many, 4)
    assert (
        statuses <= {(400, "body_too_many_values"), (429, "too_many_bytes")}
        and (400, "body_too_many_values") in statuses
    )


@pytest.mark.parametrize("value", [b"[]", b'{"a":1}', b'"\\u4e2d"'])
def test_as_many_values_as_are_allowed(gateway: GatewayProcess, value: bytes) -> None:
    """They are parsed, and serialised again to replace the id in them."""
    number = 240_000 if value == b"[]" else 160_000
    body = b'{"user":"bob","messages":[%b]}' % b",".join([value] * number)
    with others_served(gateway):
        assert at_once(gateway, body, 6) == {(200, "")}


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_nesting(gateway: GatewayProcess, opening: bytes) -> None:
    closing = {b"[": b"]", b'{"a":': b"}"}[opening]
    with others_served(gateway):
        for levels in (200, 5_000, 200_000):
            body = b'{"user":"bob","messages":%b}' % (opening * levels + b"1" + closing * levels)
            assert at_once(gateway, body, 4) == {(400, "body_too_deep")}
        assert at_once(gateway, b'{"messages":' + opening * (4 * MIB), 2) == {(400, "body_too_many_values")}


@pytest.mark.parametrize(
    "text",
    [
        "x" * (8 * MIB) + "😀",  # four bytes per character in memory
        "\\u4e2d" * (MIB),
        ",[{" * (2 * MIB),
        "\\n" * (4 * MIB),
    ],
    ids=["wide", "escapes", "separators", "newlines"],
)
def test_long_texts(gateway: GatewayProcess, text: str) -> None:
    body = f'{{"user":"bob","messages":[{{"role":"user","content":"{text}"}}]}}'.encode()
    with others_served(gateway, growth=400):
        assert at_once(gateway, body, 6) == {(200, "")}


def test_bytes_in_flight(gateway: GatewayProcess) -> None:
    """Six bodies of 30 MiB: as many as allowed are read, in turns; afterwards they no longer count."""
    body = b'{"user":"bob","messages":[{"role":"user","content":"%b"}]}' % (b"x" * (30 * MIB))
    with others_served(gateway):
        assert at_once(gateway, body, 6) == {(200, ""), (429, "too_many_bytes")}
        assert send(gateway, body, {}) == (200, "")


def test_many_members_of_gzip(gateway: GatewayProcess) -> None:
    with others_served(gateway, growth=200):
        assert at_once(gateway, gzip.compress(b"") * 500_000, 4, GZIP) == {(400, "content_encoding")}


def test_names_that_only_fill_memory(gateway: GatewayProcess) -> None:
    body = json.dumps({"user": "bob"} | {f"name {number}": number for number in range(150_000)}).encode()
    with others_served(gateway):
        assert at_once(gateway, body, 4) == {(200, "")}
