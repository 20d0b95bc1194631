"""Faults of the upstream, of clients, of the stores: who gets to see what."""

import asyncio
import gzip
import http.client
import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from unit.serving.proxy.recording import (
    APP_KEY,
    OTHER_KEY,
    SUMMARY,
    USER_KEY,
    Received,
    RecordingUpstream,
    RunningGateway,
    fixed,
    message,
    running_gateway,
    until,
)

from popi.errors import AuthError

CHAT = b'{"messages":[{"role":"user","content":"hi"}]}'
ANN = {"x-popi-user": "ann"}


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("429 Too Many Requests", ["Retry-After: 17", "x-ratelimit-remaining-requests: 0"]),
        ("500 Internal Server Error", []),
        ("503 Service Unavailable", ["Retry-After: 2"]),
        ("529 Overloaded", []),
        ("400 Bad Request", []),
        ("401 Unauthorized", []),
    ],
)
def test_error_answers_as_the_upstream_sent_them(gateway: RunningGateway, status: str, headers: list[str]) -> None:
    gateway.upstream.reply = fixed(b'{"error": {"message" :"not now"}}', status, *headers)
    answer = gateway.call(body=CHAT, headers=ANN)
    assert answer.status == int(status[:3]) and answer.body == b'{"error": {"message" :"not now"}}'
    for line in headers:
        name, value = line.split(": ")
        assert answer.header(name.lower()) == value
    assert answer.header("x-popi-personalized") == "applied"
    assert len(gateway.upstream.received) == 1  # asked once: retries are the client's


def test_a_cut_stream_is_cut_for_the_client(gateway: RunningGateway) -> None:
    async def cut(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nwo")
        await writer.drain()
        writer.close()

    gateway.upstream.reply = cut
    with pytest.raises(http.client.IncompleteRead) as cut_short:
        gateway.call(body=CHAT)
    assert cut_short.value.partial == b"hellowo"  # all that had come
    assert gateway.counted("popi_upstream_failures_total", kind="cut", upstream="default") >= 1


def test_a_cut_body_of_known_length(gateway: RunningGateway) -> None:
    async def cut(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        writer.close()

    gateway.upstream.reply = cut
    with pytest.raises(http.client.IncompleteRead) as cut_short:
        gateway.call(body=CHAT)
    assert cut_short.value.partial == b"half"


BOTH_WAYS = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
"""With a body that is read and edited, and with one that is passed on as it comes."""


@BOTH_WAYS
def test_a_reset_amid_an_answer_without_a_length_cuts_it(gateway: RunningGateway, path: str) -> None:
    async def reset(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf")
        await writer.drain()
        await asyncio.sleep(0.05)
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()

    gateway.upstream.reply = reset
    with pytest.raises(http.client.IncompleteRead) as cut_short:
        gateway.call(path, CHAT)
    assert cut_short.value.partial == b"half"


@BOTH_WAYS
def test_an_answer_without_a_length_ends_with_its_connection(gateway: RunningGateway, path: str) -> None:
    async def whole(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    gateway.upstream.reply = whole
    assert gateway.call(path, CHAT).body == b"all of it"


@BOTH_WAYS
@pytest.mark.parametrize("apart", [False, True])
def test_what_is_no_http_amid_an_answer_cuts_it(gateway: RunningGateway, path: str, apart: bool) -> None:
    async def garbled(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"5\r\nhello\r\n")
        if apart:
            await asyncio.sleep(0.05)
        writer.write(b"ZZ\r\n")
        await asyncio.sleep(60)

    gateway.upstream.reply = garbled
    before = gateway.counted("popi_upstream_failures_total", kind="cut", upstream="default")
    with pytest.raises(http.client.IncompleteRead) as cut_short:
        gateway.call(path, CHAT)
    assert cut_short.value.partial == b"hello"
    assert gateway.counted("popi_upstream_failures_total", kind="cut", upstream="default") == before + 1


@BOTH_WAYS
def test_silence_after_an_answer_that_only_announces_one(upstream: RecordingUpstream, path: str) -> None:
    async def announce(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await asyncio.sleep(60)

    async def announced(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" + message(b"{}"))

    with running_gateway(upstream, connect_timeout_s=0.2, first_byte_timeout_s=0.2, read_timeout_s=0.2) as gateway:
        upstream.reply = announce
        answer = gateway.call(path, CHAT)
        assert answer.status == 504 and answer.json["error"]["code"] == "upstream_timeout"
        upstream.reply = announced
        for _ in range(2):
            assert gateway.call(path, CHAT).body == b"{}"
            time.sleep(0.3)  # an idle connection is not waited for
        assert upstream.connections == 2


@pytest.mark.parametrize("head", [b"", b"no HTTP\r\n\r\n", b"HTTP/1.1 2"])
def test_an_upstream_that_hangs_up_or_speaks_no_http(gateway: RunningGateway, head: bytes) -> None:
    async def close(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        writer.close()

    gateway.upstream.reply = close
    answer = gateway.call(body=CHAT)
    assert answer.status == 502 and answer.json["error"]["code"] == "upstream_broken"


def test_nobody_at_the_upstreams_address(upstream: RecordingUpstream) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with running_gateway(upstream, upstream=url) as gateway:
        answer = gateway.call("/v1/messages", CHAT)
        assert answer.status == 502
        assert answer.json == {
            "type": "error",
            "error": {"type": "api_error", "message": "the upstream can't be reached"},
        }


async def hang(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def hang_amid(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await asyncio.sleep(60)


def test_a_hang_ends_at_the_limit(upstream: RecordingUpstream) -> None:
    with running_gateway(upstream, read_timeout_s=0.2, first_byte_timeout_s=0.2) as gateway:
        upstream.reply = hang
        answer = gateway.call(body=CHAT)
        assert answer.status == 504 and answer.json["error"]["code"] == "upstream_timeout"
        upstream.reply = hang_amid
        with pytest.raises(http.client.IncompleteRead) as cut_short:
            gateway.call(body=CHAT)
        assert cut_short.value.partial == b"hello"
        until(lambda: upstream.closed == 2)


@pytest.mark.parametrize("reply", [hang, hang_amid])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_a_client_that_hangs_up_stops_the_upstream_call(gateway: RunningGateway, reply: object, path: str) -> None:
    gateway.upstream.reply = reply  # type: ignore[assignment]
    gone, closed = gateway.counted("popi_client_disconnects_total"), gateway.upstream.closed
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {APP_KEY}\r\n"
            f"Content-Length: {len(CHAT)}\r\n\r\n".encode()
            + CHAT
        )
        until(lambda: len(gateway.upstream.received) == 1)
        if reply is hang_amid:
            assert client.recv(100)
        assert gateway.upstream.closed == closed
    until(lambda: gateway.upstream.closed == closed + 1)
    until(lambda: gateway.counted("popi_client_disconnects_total") == gone + 1)
    until(lambda: gateway.counted("popi_requests_in_flight") == 0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
def test_a_client_that_hangs_up_amid_its_body(gateway: RunningGateway, path: str) -> None:
    gone = gateway.counted("popi_client_disconnects_total")
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {APP_KEY}\r\n".encode()
            + b"Content-Length: 99\r\n\r\nhalf"
        )
        until(lambda: gateway.counted("popi_requests_in_flight") == 1)
    until(lambda: gateway.counted("popi_client_disconnects_total") == gone + 1)
    assert gateway.upstream.received == []


def test_a_slow_client_holds_up_the_upstream_and_not_our_memory(gateway: RunningGateway) -> None:
    written = 0

    async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"x" * 65_536
        while True:
            writer.write(b"10000\r\n" + piece + b"\r\n")
            await writer.drain()
            written += len(piece)

    gateway.upstream.reply = endless
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {APP_KEY}\r\n\r\n".encode())
        client.recv(100)
        last = -1
        while written != last:
            last = written
            time.sleep(0.5)
        assert written < 40_000_000  # what the sockets' buffers hold


def test_a_store_that_is_slow_delays_by_50_ms_at_most(gateway: RunningGateway) -> None:
    gateway.call(body=CHAT)
    quick = min(_seconds(gateway, {}) for _ in range(10))
    gateway.summaries.delay = 5.0
    for stubborn in (False, True):
        gateway.summaries.stubborn = stubborn
        slow = min(_seconds(gateway, ANN) for _ in range(5))
        assert 0.04 < slow - quick < 0.09  # 50 ms, and what a busy machine adds
    answer = gateway.call(body=CHAT, headers=ANN)
    assert (answer.status, answer.header("x-popi-personalized")) == (200, "failed")
    assert answer.header("x-popi-summary-version") is None
    assert gateway.upstream.last.body == CHAT
    assert gateway.counted("popi_personalization_failures_total", reason="slow") >= 11
    gateway.summaries.delay = 0.0
    assert gateway.call(body=CHAT, headers=ANN).header("x-popi-personalized") == "applied"


def _seconds(gateway: RunningGateway, headers: dict[str, str]) -> float:
    began = time.perf_counter()
    assert gateway.call(body=CHAT, headers=headers).status == 200
    return time.perf_counter() - began


@pytest.mark.parametrize("fault", [OSError("down"), RuntimeError(), AuthError("odd"), asyncio.CancelledError()])
def test_a_store_that_is_down_breaks_no_chat(gateway: RunningGateway, fault: BaseException) -> None:
    gateway.summaries.fault = fault
    before = gateway.counted("popi_personalization_failures_total", reason="store")
    answer = gateway.call(body=CHAT, headers=ANN)
    assert (answer.status, answer.header("x-popi-personalized")) == (200, "failed")
    assert gateway.upstream.last.body == CHAT
    assert gateway.counted("popi_personalization_failures_total", reason="store") == before + 1


@pytest.mark.parametrize("body", [b'{"messages":"hi"}', b"{}", b'{"messages":[7]}'])
def test_a_body_without_a_place_for_the_summary_passes(gateway: RunningGateway, body: bytes) -> None:
    answer = gateway.call(body=body, headers=ANN)
    assert (answer.status, answer.header("x-popi-personalized")) == (200, "failed")
    assert gateway.upstream.last.body == body
    assert gateway.call(body=body).header("x-popi-personalized") == "none"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "body_json"),
        (b"not json", "body_json"),
        (b'{"messages":[{"role":"user","content":"hi"}]', "body_json"),
        (b'{"user":"bert"} trailing', "body_json"),
        (b'{"user":"bert"}{"user":"ann"}', "body_json"),
        (b'[{"user":"bert"}]', "body_json"),
        (b'{"messages":[],"n":NaN,"user":"bert"}', "body_json"),
        (b'{"messages":[{"role":"user","content":"\xff\xfe\x80"}],"user":"bert"}', "body_encoding"),
        (b'{"user":"ann","messages":[],"user":"bert"}', "body_duplicate_name"),
        (b'{"User":"bert"}', "body_name"),
        (b'{"metadata":{"USER_ID":"bert"}}', "body_name"),
        (b'{"user":["bert"]}', "body_user_id"),
        (b"--x\r\nContent-Disposition: form-data; name=user\r\n\r\nbert\r\n--x--", "body_json"),
        (b"user=bert", "body_json"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_bodies_that_are_refused(gateway: RunningGateway, path: str, body: bytes, code: str) -> None:
    for headers in (ANN, ANN | {"Content-Type": "multipart/form-data; boundary=x"}):
        answer = gateway.call(path, body, headers)
        error = answer.json["error"]
        assert (answer.status, error["type"]) == (400, "invalid_request_error")
        assert "bert" not in error["message"]
        if path != "/v1/messages":
            assert error["code"] == code
    assert gateway.upstream.received == []


NAMED = '{"messages":[{"role":"user","content":"hi"}],"user":"ann"}'


def test_a_body_behind_a_mark_of_utf8_is_read(gateway: RunningGateway) -> None:
    body = b"\xef\xbb\xbf" + NAMED.encode()
    assert gateway.call(body=body).header("x-popi-personalized") == "applied"
    sent = gateway.upstream.last.body
    assert sent.startswith(b'{"messages":[{"role":"system"') and b'"ann"' not in sent
    assert SUMMARY in json.loads(sent)["messages"][0]["content"]
    assert gateway.call(body=body.replace(b"ann", b"bert"), key=USER_KEY).status == 403


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_json_in_another_encoding_is_refused(gateway: RunningGateway, encoding: str, packed: bool) -> None:
    """Upstreams in Python would read it, with the plain ids in it."""
    body = NAMED.encode(encoding)
    assert json.loads(body)["user"] == "ann"
    headers = {"Content-Encoding": "gzip"} if packed else {}
    answer = gateway.call(body=gzip.compress(body) if packed else body, headers=headers)
    assert (answer.status, answer.json["error"]["code"]) == (400, "body_encoding")
    assert gateway.upstream.received == []


def test_json_that_is_nested_too_deep_is_refused(gateway: RunningGateway) -> None:
    def nested(levels: int) -> bytes:
        content = b"[" * levels + b"]" * levels
        return b'{"messages":[{"role":"system","content":' + content + b'}],"user":"ann"}'

    answer = gateway.call(body=nested(50_000))
    assert (answer.status, answer.json["error"]["code"]) == (400, "body_too_deep")
    assert gateway.upstream.received == []
    assert gateway.call(body=nested(125)).status == 200
    assert gateway.call(body=nested(126)).status == 400
    assert not any(b'"ann"' in got.body for got in gateway.upstream.received)


def test_bytes_in_flight(upstream: RecordingUpstream) -> None:
    """While one large chat of a key waits for its answer, the next is refused; other keys are served."""
    released = threading.Event()

    async def wait(_: Received, writer: asyncio.StreamWriter) -> None:
        while not released.is_set():
            await asyncio.sleep(0.01)
        writer.write(message(b"{}"))

    with (
        running_gateway(upstream, max_body_bytes=5000, max_body_bytes_in_flight=10_000) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        upstream.reply = wait
        large = json.dumps({"messages": [{"role": "user", "content": "x" * 4000}]}).encode()
        for path in ("/v1/chat/completions", "/v1/embeddings"):
            released.clear()
            upstream.received.clear()
            first = [pool.submit(gateway.call, path, large) for _ in range(2)]
            until(lambda: len(upstream.received) == 2)
            answer = gateway.call(path, large)
            assert (answer.status, answer.json["error"]["code"]) == (429, "too_many_bytes")
            assert answer.header("retry-after") == "1"
            packed = gateway.call(path, gzip.compress(large), {"Content-Encoding": "gzip"})
            assert (packed.status, packed.json["error"]["code"]) == (429, "too_many_bytes")
            other = pool.submit(gateway.call, path, large, key=OTHER_KEY)
            until(lambda: len(upstream.received) == 3)
            released.set()
            assert {one.result().status for one in (*first, other)} == {200}
            assert gateway.call(path, large).status == 200


def test_no_key_no_answer(gateway: RunningGateway) -> None:
    for key in (None, "popi-made-up", ""):
        answer = gateway.call(body=CHAT, key=key)
        assert (answer.status, answer.json["error"]["type"]) == (401, "authentication_error")
        assert answer.header("www-authenticate") == "Bearer"
    gateway.keys.fault = AuthError("revoked, say", status=403)
    answer = gateway.call("/v1/messages", CHAT)
    assert answer.status == 403
    assert answer.json == {"type": "error", "error": {"type": "permission_error", "message": "revoked, say"}}
    assert gateway.upstream.received == []


@pytest.mark.parametrize("fault", [OSError("secret words"), AuthError("the store is down", status=503)])
def test_keys_that_can_not_be_checked_are_refused(gateway: RunningGateway, fault: Exception) -> None:
    gateway.keys.fault = fault
    answer = gateway.call(body=CHAT, headers=ANN)
    assert answer.status == 503 and answer.header("retry-after") == "1"
    assert b"secret words" not in answer.body
    assert gateway.upstream.received == []


def test_a_store_of_keys_that_hangs(upstream: RecordingUpstream) -> None:
    with running_gateway(upstream, auth_timeout_s=0.1) as gateway:
        gateway.keys.delay = 30.0
        assert gateway.call(body=CHAT).status == 503
    assert upstream.received == []


def test_too_long_bodies(upstream: RecordingUpstream) -> None:
    with running_gateway(upstream, max_body_bytes=1000, max_upload_bytes=2000) as gateway:
        long = json.dumps({"messages": [{"role": "user", "content": "x" * 1000}]}).encode()
        answer = gateway.call(body=long)
        assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_long")
        assert gateway.call("/v1/messages", long).json["error"]["type"] == "request_too_large"
        assert gateway.call("/v1/embeddings", long).status == 413
        upload = b"--boundary" + long
        assert gateway.call("/v1/files", upload).status == 200
        assert gateway.call("/v1/files", upload * 2).status == 413
        for path in ("/v1/files", "/v1/chat/completions"):
            connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
            headers = {"Authorization": f"Bearer {APP_KEY}", "Transfer-Encoding": "chunked"}
            connection.request("POST", path, iter([b"x" * 900] * 3), headers, encode_chunked=True)
            assert connection.getresponse().status == 413
            connection.close()
        assert len(upstream.received) == 1


def test_rate_and_concurrency(upstream: RecordingUpstream) -> None:
    with running_gateway(upstream, requests_per_s=0.01, burst=2) as gateway:
        statuses = [gateway.call(body=CHAT).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        answer = gateway.call("/v1/messages", CHAT)
        assert answer.json["error"]["type"] == "rate_limit_error"
        assert 0 < int(answer.header("retry-after") or 0) <= 100
        assert gateway.call(body=CHAT, key=OTHER_KEY).status == 200  # a key's limit is its own
    upstream.received.clear()
    with running_gateway(upstream, concurrency=1) as gateway:
        upstream.reply = hang
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            client.sendall(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {APP_KEY}\r\n\r\n".encode())
            until(lambda: len(upstream.received) == 1)
            answer = gateway.call(body=CHAT)
            assert (answer.status, answer.json["error"]["code"]) == (429, "too_many_concurrent_requests")
        until(lambda: upstream.closed == 1)
        upstream.reply = fixed(b"{}")
        until(lambda: gateway.call(body=CHAT).status == 200)


def test_an_idle_connection_is_used_again_and_a_closed_one_is_not(gateway: RunningGateway) -> None:
    for _ in range(3):
        assert gateway.call(body=CHAT).status == 200

    async def and_close(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(message(b"{}", "200 OK", "Connection: close"))
        await writer.drain()
        writer.close()

    gateway.upstream.reply = and_close
    for _ in range(3):
        assert gateway.call(body=CHAT).status == 200


def test_key_and_summary_share_the_time(upstream: RecordingUpstream) -> None:
    """A summary that takes 0.7 s is there within a second, but not where the key took half of that."""
    with running_gateway(upstream, summary_timeout_ms=1000) as gateway:
        gateway.summaries.delay = 0.7
        assert gateway.call(body=CHAT, headers=ANN).header("x-popi-personalized") == "applied"
        gateway.keys.delay = 0.6
        assert gateway.call(body=CHAT, headers=ANN).header("x-popi-personalized") == "failed"
        gateway.summaries.delay = 0.0
        assert gateway.call(body=CHAT, headers=ANN).header("x-popi-personalized") == "applied"
