"""The HTTP client against servers that play what was written for them."""

import asyncio
import functools
import gc
import inspect
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from private_ca import PrivateCa
from unit.serving.proxy.recording import message
from yarl import URL

from popi.config.http import HttpConfig
from popi.models.remote.http import MAX_HEADER_BYTES, MAX_HEADERS, Answer, Body, HttpClient, HttpFault, HttpSession

pytestmark = pytest.mark.timed

MOST_WAITING = 2**18

Step = bytes | float | Callable[[asyncio.StreamWriter], object]
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OPEN = b"HTTP/1.1 200 OK\r\n\r\nhalf"  # ends with its connection
hang_up = asyncio.StreamWriter.close


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def half_close(writer: asyncio.StreamWriter) -> None:
    with socket.fromfd(writer.get_extra_info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM) as bare:
        bare.shutdown(socket.SHUT_WR)


class Server:
    """Answers a request with the next list of steps (bytes to write, seconds to wait, calls), then with b"2".

    It reads a request's body first, with a pace of seconds between two pieces, or (unread) what is left of it last.
    """

    def __init__(self, *replies: Sequence[Step], unread: bool = False, pace: float = 0.0) -> None:
        self.replies, self.unread, self.pace = list(replies), unread, pace
        self.received: list[bytes] = []
        self.connections = self.gone = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                while length and not self.unread:
                    head += await reader.readexactly(size := min(length, 2**16))
                    length -= size
                    await asyncio.sleep(self.pace)
                self.received.append(head)
                for step in self.replies.pop(0) if self.replies else [message(b"2")]:
                    if isinstance(step, bytes):
                        writer.write(step)
                        await writer.drain()
                    elif isinstance(step, float):
                        await asyncio.sleep(step)
                    else:
                        step(writer)
                while self.unread and (piece := await reader.read(2**16)):
                    self.received[-1] += piece
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.gone += 1
            writer.close()


@asynccontextmanager
async def wire_to(server: Server, tls: ssl.SSLContext | None = None, **times: float) -> AsyncIterator[HttpSession]:
    """A wire to it, that leaves no connections, timers and uploads behind."""
    bare = socket.create_server(("127.0.0.1", 0))
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{bare.getsockname()[1]}"
    async with await asyncio.start_server(server.serve, sock=bare, ssl=tls):
        times = {"connect_timeout_s": 5.0, "read_timeout_s": 5.0, "keepalive_s": 5.0} | times
        times.setdefault("first_byte_timeout_s", times["read_timeout_s"])
        async with HttpClient(HttpConfig(**times)).session() as client:
            client.url = URL(url + "/v1")
            yield client


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about"
        await asyncio.sleep(0.005)


async def ask(wire: HttpSession, method: str = "POST", body: Body = b"x", length: int | None = None) -> Answer:
    return await wire.send(method, wire.url, [] if length is None else [("content-length", str(length))], body)


async def rest(answer: Answer) -> bytes:
    body, more = b"", True
    while more:
        piece, more = await answer.read()
        body += piece
    return body


async def whole(wire: HttpSession, body: Body = b"x", length: int | None = None) -> tuple[int, bytes]:
    answer = await ask(wire, "POST", body, length)
    try:
        return answer.status, await rest(answer)
    finally:
        answer.close()


async def pieces(*given: bytes | float | BaseException) -> AsyncIterator[bytes]:
    for piece in given:
        if isinstance(piece, bytes):
            yield piece
        elif isinstance(piece, float):
            await asyncio.sleep(piece)
        else:
            raise piece


def both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs a test in asyncio's event loop and in uvloop's, and fails it for what they complain of."""

    @functools.wraps(test)
    def run(loop: Callable[[], asyncio.AbstractEventLoop], **given: Any) -> None:
        complaints: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
            runner.run(asyncio.wait_for(test(**given), 5))
            gc.collect()
        assert complaints == []

    own = inspect.signature(test)
    added = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), added])  # type: ignore[attr-defined]
    loops = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("loop", loops, ids=["asyncio", "uvloop"])(run)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext | None:
    if not request.param:
        return None
    authority = PrivateCa(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    return authority.server("127.0.0.1")


WHOLE: list[tuple[str, list[Step], tuple[int, bytes], bool]] = [
    ("POST", [message(b"1") + b"\r\n\r\n"], (200, b"1"), True),
    (
        "POST",
        [s for b in CHUNKS + b"3;a=b\r\none\r\n0\r\nA: 1\r\n\r\n" for s in (bytes([b]), 0.001)],
        (200, b"one"),
        True,
    ),
    ("POST", [b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 103 x\r\nA: b\r\n\r\n" + message(b"1")], (200, b"1"), True),
    ("POST", [b"HTTP/1.1 103 x\r\nContent-Length: 0\r\n\r\n", 0.02, message(b"1")], (200, b"1"), True),
    ("GET", [b"HTTP/1.1 204 x\r\nContent-Length: 9\r\n\r\n"], (204, b""), True),
    ("GET", [b"HTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n"], (304, b""), True),
    ("HEAD", [b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"], (200, b""), True),
    ("HEAD", [CHUNKS], (200, b""), True),
    ("POST", [message(b"1", "200 OK", "Connection: Close")], (200, b"1"), False),
    ("POST", [b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n1"], (200, b"1"), False),
    ("POST", [b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n1"], (200, b"1"), True),
    ("POST", [OPEN, 0.02, b" more", hang_up], (200, b"half more"), False),
    ("POST", [OPEN, 0.02, half_close], (200, b"half"), False),
]


@pytest.mark.parametrize(("method", "steps", "expected", "again"), WHOLE)
@both_loops
async def test_where_answers_end(method: str, steps: list[Step], expected: tuple[int, bytes], again: bool) -> None:
    server = Server(steps)
    async with wire_to(server) as wire:
        answer = await ask(wire, method)
        assert (answer.status, await rest(answer)) == expected
        assert not any(name == b"A" for name, _ in answer.headers)  # from an announcement, or a trailer
        answer = await ask(wire)
        assert answer.headers == [(b"Content-Length", b"1")] and await rest(answer) == b"2"
        assert server.connections == (1 if again else 2)


BROKEN: list[list[Step]] = [
    [OPEN, 0.02, reset],
    [message(b"1234")[:-1], hang_up],
    [CHUNKS + b"1\r\n1\r\n", hang_up],
    [b"HTTP/1.1 103 x\r\n\r\n", hang_up],
    # Two ways to tell where an answer ends, of which someone else may take the other.
    [message(b"0\r\n\r\n", "200 OK", "Transfer-Encoding: chunked")],
    [message(b"12", "200 OK", "Content-Length: 1")],
    # What answers no request of ours.
    [b"HTTP/1.1 101 x\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n" + message(b"1")],
    [message(b"", "099 x") + message(b"1")],
    [message(b"1", "600 x", "Connection: close")],
    # Heads that would be other heads behind us, or too much.
    [message(b"1", "200 OK", "A: b\rC: d")],
    [message(b"1", "200 OK", *["A: b"] * (MAX_HEADERS + 1))],
    [b"HTTP/1.1 200 OK\r\nA: ", b"x" * 2 * MAX_HEADER_BYTES],
    # What is no HTTP amid an answer.
    [CHUNKS + b"5\r\nhello\r\nZZ\r\n", 0.5],
    [CHUNKS + b"5\r\nhello\r\n", 0.02, b"ZZ\r\n", 0.5],
]


@pytest.mark.parametrize("steps", BROKEN)
@both_loops
async def test_what_is_no_answer(steps: list[Step]) -> None:
    server = Server(steps)
    async with wire_to(server) as wire:
        with pytest.raises(HttpFault) as fault:
            await whole(wire)
        assert fault.value.kind == "broken" and not fault.value.lasting
        assert await whole(wire) == (200, b"2") and server.connections == 2


@pytest.mark.parametrize("pause", [0.0, 0.05])
@pytest.mark.parametrize("extra", [message(b"evil"), b"HTTP/1.1 200 OK\r\nX-A: ", b"H", b"HTTP/1.1 100 x\r\n\r\n"])
@both_loops
async def test_what_comes_behind_an_answer_reaches_nobody(extra: bytes, pause: float) -> None:
    server = Server([message(b"1"), pause, extra] if pause else [message(b"1") + extra])
    async with wire_to(server) as wire:
        assert await whole(wire) == (200, b"1")
        if pause:
            await asyncio.sleep(2 * pause)
        assert await whole(wire) == (200, b"2")  # of a partial head nothing is left; for the others
        assert server.connections == (1 if len(extra) in (1, 22) else 2)


@pytest.mark.parametrize("idle", [0.2, 0.4])
@both_loops
async def test_silence_is_noticed_in_every_request_of_a_connection(idle: float) -> None:
    server = Server([message(b"1")], [0.2, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 0.2, b"x"])
    async with wire_to(server, read_timeout_s=0.3) as wire:
        await whole(wire)
        await asyncio.sleep(idle)
        answer, began = await ask(wire), time.monotonic()
        with pytest.raises(HttpFault, match="sent nothing within 0.3 seconds"):
            await rest(answer)
        answer.close()
        assert 0.45 < time.monotonic() - began < 1 and server.connections == 1


@pytest.mark.parametrize(
    ("size", "end"), [(20 * MOST_WAITING, []), (MOST_WAITING + 256, []), (2 * MOST_WAITING, [0.1, half_close])]
)
@both_loops
async def test_a_client_may_take_its_time(tls: ssl.SSLContext | None, size: int, end: list[Step]) -> None:
    """While too much waits for it the upstream is not read; that is no silence, and nothing is lost."""
    body = bytes(range(256)) * (size // 256)
    server = Server([message(body)[: size // 2], 0.05, message(body)[size // 2 :], *end])
    async with wire_to(server, tls, read_timeout_s=0.2) as wire:
        answer = await ask(wire)
        await asyncio.sleep(0.5)
        got, more = b"", True
        while more:
            piece, more = await answer.read()
            assert len(piece) <= 3 * MOST_WAITING
            got += piece
            await asyncio.sleep(0.01)
        assert got == body
        assert await whole(wire) == (200, b"2") and server.connections == (2 if end else 1)


@both_loops
async def test_an_upstream_that_stops_reading_is_silent() -> None:
    much = [b"x" * 2**20] * 16
    for body in (pieces(0.3, *much), b"".join(much)):
        async with wire_to(Server([9.0], unread=True), read_timeout_s=0.2) as wire:
            with pytest.raises(HttpFault):
                await asyncio.wait_for(ask(wire, "POST", body), 3)


@both_loops
async def test_one_that_reads_slowly_is_not() -> None:
    much = [b"x" * 2**17] * 32
    for body, length in ((pieces(0.5, *much), 2**22), (b"".join(much), None)):
        server = Server([message(b"1")], [0.2, message(b"2")], pace=0.01)
        async with wire_to(server, read_timeout_s=0.4, first_byte_timeout_s=5.0) as wire:
            await whole(wire)
            began = time.monotonic()
            assert await whole(wire, body, length) == (200, b"2") and server.connections == 1
            assert server.received[1].endswith(b"\r\n\r\n" + b"".join(much)) and time.monotonic() - began > 0.8


@both_loops
async def test_an_early_answer_ends_the_upload_and_the_connection() -> None:
    for body in (pieces(b"x", 9.0), b"x" * 2**24):
        server = Server([message(b"no", "413 x")], unread=True)
        async with wire_to(server) as wire:
            assert await whole(wire, body) == (413, b"no")
            await until(lambda server=server: server.gone == 1)  # type: ignore[misc]
            assert await whole(wire) == (200, b"2") and server.connections == 2


@pytest.mark.parametrize("answered", [False, True])
@both_loops
async def test_a_body_that_fails_ends_the_connection(answered: bool) -> None:
    server = Server([CHUNKS + b"1\r\nx\r\n"] if answered else [], unread=True)
    async with wire_to(server) as wire:
        with pytest.raises(LookupError, match="mine"):
            await whole(wire, pieces(0.05, b"x", LookupError("mine")))
        await until(lambda: server.gone == 1)
        assert await whole(wire) == (200, b"2") and server.connections == 2


@both_loops
async def test_no_more_is_sent_than_content_length_says() -> None:
    server = Server()
    async with wire_to(server) as wire:
        assert await whole(wire, pieces(b"four", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 4) == (200, b"2")
        assert await whole(wire) == (200, b"2")
        assert len(server.received) == 2 and server.received[0].endswith(b"\r\n\r\nfour")


@pytest.mark.parametrize("steps", [[], [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"]])
@pytest.mark.parametrize("uploading", [False, True])
@both_loops
async def test_a_client_that_is_gone_takes_the_connection_with_it(uploading: bool, steps: list[Step]) -> None:
    server = Server(steps, unread=uploading)

    async def request() -> None:
        answer = await ask(wire, "POST", pieces(b"x", 9.0) if uploading else b"x")
        try:
            await rest(answer)
        finally:
            answer.close()

    async with wire_to(server) as wire:
        waiting = asyncio.ensure_future(request())
        await until(lambda: len(server.received) == 1)
        await asyncio.sleep(0.05)
        waiting.cancel()
        await until(lambda: waiting.cancelled() and server.gone == 1)
        assert await whole(wire) == (200, b"2") and server.connections == 2


@pytest.mark.parametrize("cancelled", [False, True])
@both_loops
async def test_connecting_ends_when_nobody_waits_for_it(cancelled: bool) -> None:
    server = Server()  # which knows nothing of TLS, and waits
    async with wire_to(server) as plain:
        url = plain.url.with_scheme("https")
        async with HttpClient(HttpConfig(connect_timeout_s=9.0 if cancelled else 0.3)).session() as client:
            asking = asyncio.ensure_future(client.send("GET", url, []))
            await until(lambda: server.connections == 1)
            await asyncio.sleep(0.05)
            if cancelled:
                asking.cancel()
            with pytest.raises(asyncio.CancelledError if cancelled else HttpFault):
                await asking
            await until(lambda: server.gone == 1)


@pytest.mark.parametrize("end", [hang_up, reset])
@pytest.mark.parametrize("said", [b"", message(b"1", "503 x")])
@both_loops
async def test_an_upstream_that_does_not_wait_for_the_request(
    tls: ssl.SSLContext | None, said: bytes, end: Callable[[asyncio.StreamWriter], None]
) -> None:
    """The connection is lost while it is being handed over."""

    class Rash(Server):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(said)
            end(writer)

    async with wire_to(Rash(), tls) as wire:
        for _ in range(20):
            try:
                assert await asyncio.wait_for(whole(wire), 3) == (503, b"1") and said
            except HttpFault:
                pass


@both_loops
async def test_idle_connections() -> None:
    server = Server(*[[0.05, message(b"1")]] * 3)
    async with wire_to(server, keepalive_s=0.2) as wire:
        await asyncio.gather(*[whole(wire) for _ in range(3)])
        assert server.connections == 3
        await until(lambda: server.gone == 3, 1.0)
        assert await whole(wire) == (200, b"2")


@both_loops
async def test_no_more_connections_than_allowed() -> None:
    server = Server(*[[0.1, message(b"1")]] * 3, [0.5, message(b"1")])
    async with wire_to(server, connections=1, connect_timeout_s=0.35) as wire:
        assert await asyncio.gather(*[whole(wire) for _ in range(3)]) == [(200, b"1")] * 3
        assert server.connections == 1
        answers = await asyncio.gather(*[whole(wire) for _ in range(2)], return_exceptions=True)
        assert answers[0] == (200, b"1") and "could not be reached within 0.35 seconds" in str(answers[1])


@both_loops
async def test_a_slow_server_does_not_take_the_connections_to_others() -> None:
    slow, other = Server([5.0, message(b"1")]), Server()
    async with wire_to(slow, connections=1) as wire, wire_to(other) as beside:
        waiting = asyncio.create_task(whole(wire))
        await until(lambda: slow.connections == 1)
        wire.url = beside.url
        assert await asyncio.gather(*[whole(wire) for _ in range(3)]) == [(200, b"2")] * 3
        waiting.cancel()


@pytest.mark.parametrize("target", ["/a%2Fb/%c3/..", "//x/./y", "/?a=%2F&b;c%zz", "/" + chr(233)])
@both_loops
async def test_the_target_is_sent_as_it_is(target: str) -> None:
    server = Server()
    async with wire_to(server) as wire:
        answer = await wire.send("GET", URL(f"{wire.url.origin()}{target}", encoded=True), [])
        answer.close()
    head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{wire.url.port}\r\n\r\n"
    assert server.received[0] == head.encode()


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_no_part_of_a_head_ends_a_line(end: str) -> None:
    async def send(name: str, value: str) -> None:
        async with wire_to(Server()) as wire:
            await wire.send("GET", wire.url, [(name, value)])

    for name, value in (("a" + end, "b"), ("a", "b" + end)):
        with pytest.raises(ValueError, match="header injection"):
            asyncio.run(send(name, value))
