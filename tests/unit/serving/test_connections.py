"""What a client may hold of a connection, over real sockets; each bound small, and looked at often."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn

from popi.serving import connections as module
from popi.serving.connections import uvicorn_settings
from popi.serving.settings import ServerSettings

pytestmark = pytest.mark.timed

CHAT = b"POST /chat HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was asked; on `/late` after a while, on `/unread` without reading, on `/long` with a lot."""
    body, more, path = b"", scope["path"] != "/unread", scope["path"]
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
        if path == "/pauses":
            await asyncio.sleep(0.05)
    if path == "/late":
        await asyncio.sleep(0.6)
    names = [name.decode() for name, _ in scope["headers"]]
    answer = json.dumps({"path": path, "body": len(body), "client": scope["client"][0], "headers": names}).encode()
    if path == "/long":
        answer += b"x" * 30_000_000
    head = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": answer})


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.02)
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.2)


@contextmanager
def serving(keepalive: int = 5, **bounds: Any) -> Iterator[int]:
    """A server's port."""
    settings = uvicorn_settings(ServerSettings(**bounds))
    config = uvicorn.Config(
        echo, port=0, log_level="critical", lifespan="off", timeout_keep_alive=keepalive, **settings
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def until_closed(client: socket.socket) -> bytes:
    """What comes until the server closes the connection; fails where it does not."""
    read = b""
    try:
        while piece := client.recv(2**20):
            read += piece
    except ConnectionResetError:
        pass
    return read


def ask(port: int, *pieces: bytes) -> bytes:
    """What is answered, to a request or several of which the last closes the connection."""
    with connect(port) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.02 if len(pieces) > 1 else 0)
        except OSError:
            pass  # refused before it was through
        return until_closed(client)


def closing(request: bytes) -> bytes:
    return request.replace(b"host: x", b"host: x\r\nconnection: close", 1)


def fields(answer: bytes) -> dict[str, Any]:
    """What the application was asked."""
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer[:200]
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def test_a_trailer_is_no_header() -> None:
    chunked = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n"
    with serving() as port:
        for trailer in (b"x-popi-user: bob\r\n\r\n", b"x-popi-user: b", b""):
            rest = (b"ob\r\n\r\n",) if trailer.endswith(b"b") else () if trailer else (b"x-popi-user: bob\r\n\r\n",)
            found = fields(ask(port, chunked + trailer, *rest))
            assert found["body"] == 2 and found["headers"] == ["host", "connection", "transfer-encoding"]


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ((b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n",), 431),
        ((b"GET / HTTP/1.1\r\na: " + b"b" * 3000 + b"\r\n\r\n",), 431),
        ((b"GET /" + b"b" * 3000 + b" HTTP/1.1\r\n\r\n",), 431),
        ((b"GET / HTTP/1.1\r\na: ", *[b"b" * 500] * 6), 431),
        ((b"GET /", *[b"b" * 500] * 6), 431),
        ((b"GET / HTTP/1.1\r\n", *[b"a: " + b"b" * 500 + b"\r\n"] * 6), 431),
        ((b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;", *[b"e" * 500] * 6), 431),
        ((b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: ", *[b"b" * 500] * 6), 431),
        ((b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", *[b"a: b\r\n" * 90] * 6), 431),
        ((b"TRACE / HTTP/1.1\r\nhost: x\r\n\r\n",), 405),
        ((b"CONNECT other:443 HTTP/1.1\r\nhost: x\r\n\r\n",), 405),
        ((b"GET /\r\n\r\n",), 505),
        ((b"GET / HTTP/0.9\r\n\r\n",), 505),
        ((b"GET / HTTP/2.0\r\n\r\n",), 505),
        ((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), 400),
        ((b"GET http://other HTTP/1.1\r\n\r\n",), 400),
        ((b"GET other HTTP/1.1\r\n\r\n",), 400),
        ((b"\x16\x03\x01 nonsense\r\n\r\n",), 400),
        ((b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",), 400),
    ],
)
def test_what_is_refused(pieces: tuple[bytes, ...], status: int) -> None:
    with serving(header_bytes=2048) as port:
        assert ask(port, *pieces).startswith(b"HTTP/1.1 %d " % status)


def test_heads_of_the_longest_size_pass_however_they_come() -> None:
    with serving(header_bytes=4096) as port:
        long = closing(GET).replace(b"\r\n\r\n", b"\r\na: " + b"b" * 3900 + b"\r\n\r\n")
        assert fields(ask(port, long))["headers"] == ["host", "connection", "a"]
        assert fields(ask(port, long[:100], long[100:2000], long[2000:]))["headers"] == ["host", "connection", "a"]
        # Behind a body of any size, in one piece with its end.
        body = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n" + b"x" * 9000
        assert ask(port, body + long).count(b"HTTP/1.1 200 OK") == 2


def test_a_target_in_absolute_form_is_our_own_path() -> None:
    with serving() as port:
        target = closing(GET).replace(b"GET /", b"GET http://other/v1/models?a")
        assert fields(ask(port, target))["path"] == "/v1/models"


@pytest.mark.parametrize("split", [0, 60, 120, 150, 153])
def test_an_offer_of_another_protocol_loses_no_body(split: int) -> None:
    offer = (
        b"POST /a HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
        b"http2-settings: AAMAAABkAAQ\r\ncontent-length: 5\r\n\r\nhello"
    )
    with serving() as port:
        answers = ask(port, *(piece for piece in (offer[:split], offer[split:]) if piece), closing(CHAT))
    bodies = [
        json.loads(b"{" + one.rpartition(b"{")[2].partition(b"}")[0] + b"}") for one in answers.split(b"HTTP/")[1:]
    ]
    assert [(one["path"], one["body"]) for one in bodies] == [("/a", 5), ("/chat", 5)]
    assert bodies[0]["headers"] == ["host", "content-length"]


def test_pipelined_requests_are_answered_in_order_and_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIPELINED", 10)
    with serving() as port:
        answers = ask(port, CHAT * 9 + closing(GET))
        assert answers.count(b'"/chat"') == 9 and answers.endswith(b'["host", "connection"]}')
        assert b"200 OK" not in ask(port, CHAT * 100)


def test_a_client_that_waits_for_continue() -> None:
    with serving() as port, connect(port) as client:
        head, body = CHAT.replace(b"host: x", b"host: x\r\nexpect: 100-continue")[:-5], CHAT[-5:]
        client.sendall(head)
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert b'"body": 5' in client.recv(1000)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET / HT", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nhe", b"HTTP/1.1 408 "),
        (b"POST /unread HTTP/1.1\r\ncontent-length: 9\r\n\r\nhe", b"HTTP/1.1 200 "),
        (GET + b"\r\n", b"HTTP/1.1 200 "),
        (GET + b"GET /", b"HTTP/1.1 200 "),
    ],
)
def test_who_goes_silent_is_disconnected(sent: bytes, answer: bytes) -> None:
    with serving(header_timeout_s=0.2, stall_timeout_s=0.3, keepalive=1) as port, connect(port) as client:
        began = time.monotonic()
        client.sendall(sent)
        assert until_closed(client).startswith(answer)
        assert 0.15 < time.monotonic() - began < 3.0


def test_a_head_that_drips_has_the_same_time() -> None:
    with serving(header_timeout_s=0.4, stall_timeout_s=5) as port, connect(port) as client:
        began = time.monotonic()
        client.settimeout(0.01)
        client.sendall(b"GET / HTTP/1.1\r\n")
        while time.monotonic() - began < 3.0:
            try:
                client.sendall(b"a: b\r\n")
                if client.recv(1000).startswith(b"HTTP/1.1 408 "):
                    break
            except TimeoutError:
                time.sleep(0.05)
        assert time.monotonic() - began < 2.0


def test_a_refused_body_may_go_on_for_a_while_only() -> None:
    with serving() as port, connect(port) as client:
        client.sendall(b"POST /unread HTTP/1.1\r\ncontent-length: 1000000000\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 3.0:
                client.sendall(b"x" * 1000)
                time.sleep(0.01)
        assert time.monotonic() - began < 2.0


def test_slow_but_steady_clients_are_served() -> None:
    with serving(stall_timeout_s=0.3, header_timeout_s=0.3) as port:
        slow = [b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 8\r\n\r\n", *[b"x"] * 8]
        with connect(port) as client:
            for piece in slow:
                client.sendall(piece)
                time.sleep(0.1)
            assert fields(until_closed(client))["body"] == 8
        with connect(port) as client:  # reads 64 KB at a time
            client.sendall(closing(GET).replace(b"GET /", b"GET /long"))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
            size = 0
            for n in range(10**6):
                piece = client.recv(2**16)
                size += len(piece)
                if not piece:
                    break
                if n % 40 == 0:
                    time.sleep(0.02)
            assert size > 30_000_000


def test_a_wait_of_ours_is_not_the_clients() -> None:
    with serving(stall_timeout_s=0.2, header_timeout_s=0.2) as port:
        assert fields(ask(port, closing(GET).replace(b"GET /", b"GET /late")))["path"] == "/late"
        late = CHAT.replace(b"/chat", b"/late")
        with connect(port) as client:  # reading is paused while one request waits, with a part of the next here
            client.sendall(late + closing(GET)[:-5])
            time.sleep(0.5)
            client.sendall(closing(GET)[-5:])
            assert until_closed(client).count(b"200 OK") == 2
        with connect(port) as client:  # an old client's blank line behind its body
            client.sendall(closing(late))
            time.sleep(0.05)
            client.sendall(b"\r\n")
            assert b"200 OK" in until_closed(client)
        body = b"POST /pauses HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3000000\r\n\r\n"
        assert fields(ask(port, body + b"x" * 3_000_000))["body"] == 3_000_000


def test_who_never_reads_is_disconnected() -> None:
    with serving(stall_timeout_s=0.3) as port, connect(port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        client.sendall(GET.replace(b"GET /", b"GET /long"))
        time.sleep(1.0)
        assert len(until_closed(client)) < 30_000_000


def test_the_connection_that_gives_way_is_idle_and_rather_one_that_was_never_used() -> None:
    with serving(connections=3) as port, ExitStack() as stack:
        used, unused, busy = (stack.enter_context(connect(port)) for _ in range(3))
        used.sendall(GET)
        assert b"200 OK" in used.recv(1000)
        busy.sendall(CHAT[:-1])
        time.sleep(0.1)
        assert b"200 OK" in ask(port, closing(GET))
        assert until_closed(unused) == b""
        used.sendall(GET)
        assert b"200 OK" in used.recv(1000)


def test_busy_connections_do_not_give_way() -> None:
    with serving(connections=3) as port, ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(3)]
        clients[0].sendall(CHAT[:-1])  # a request that is under way
        time.sleep(0.1)
        assert b"200 OK" in ask(port, closing(GET))
        assert until_closed(clients[1]) == b""
        for client in (clients[2], stack.enter_context(connect(port))):
            client.sendall(CHAT[:-1])
        time.sleep(0.1)
        assert ask(port, closing(GET)).startswith(b"HTTP/1.1 503 ")
        clients[0].sendall(CHAT[-1:])
        assert b"200 OK" in clients[0].recv(1000)
        assert b"200 OK" in ask(port, closing(GET))


def test_an_address_has_a_share_of_the_connections() -> None:
    with serving(connections=10, connections_per_address=2) as port, ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(port)).sendall(CHAT[:-1])
        time.sleep(0.1)
        assert ask(port, closing(GET)).startswith(b"HTTP/1.1 503 ")
        with socket.create_connection(("127.0.0.1", port), timeout=5, source_address=("127.0.0.2", 0)) as other:
            other.sendall(closing(GET))
            assert fields(until_closed(other))["client"] == "127.0.0.2"


def test_a_trusted_proxy_has_no_share_and_names_its_clients() -> None:
    named = closing(GET).replace(b"host: x", b"host: x\r\nx-forwarded-for: 6.6.6.6, 9.9.9.9")
    with serving(connections=10, connections_per_address=2, trusted_proxies=("127.0.0.0/8",)) as port:
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(connect(port)).sendall(CHAT[:-1])
            time.sleep(0.1)
            assert fields(ask(port, named))["client"] == "9.9.9.9"
    with serving() as port:
        assert fields(ask(port, named))["client"] == "127.0.0.1"
