"""Wire and its connections against servers that play what was written for them."""

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
from unit.serving.proxy.recording import message
from unit.serving.proxy.test_wire import certificate

from popi.serving.proxy.connection import MOST_HEAD, MOST_HEADERS, MOST_WAITING, Answer, Broken, Silent
from popi.serving.proxy.wire import Body, Wire

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
async def wire_to(server: Server, tls: ssl.SSLContext | None = None, **times: float) -> AsyncIterator[Wire]:
    """A wire to it, that leaves no connections, timers and uploads behind."""
    bare = socket.create_server(("127.0.0.1", 0))
    bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{bare.getsockname()[1]}"
    async with await asyncio.start_server(server.serve, sock=bare, ssl=tls):
        wire = Wire(url, **{"connect_s": 5.0, "silence_s": 5.0, "keepalive_s": 5.0} | times)
        try:
            yield wire
        finally:
            left = list(wire._open)
            wire.close()
        await until(lambda: not wire._open and not wire._idle)
        assert all(connection._timer is None or connection._timer.cancelled() for connection in left)
        await until(lambda: not any("_write" in repr(task.get_coro()) for task in asyncio.all_tasks()))


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about"
        await asyncio.sleep(0.005)


async def ask(wire: Wire, method: str = "POST", body: Body = b"x", length: int | None = None) -> Answer:
    return await wire.send(method, b"/v1", [] if length is None else [(b"content-length", b"%d" % length)], body)


async def rest(answer: Answer) -> bytes:
    body, more = b"", True
    while more:
        piece, more = await answer.read()
        body += piece
    return body


async def whole(wire: Wire, body: Body = b"x", length: int | None = None) -> tuple[int, bytes]:
    answer = await ask(wire, "POST", body, length)
    return answer.status, await rest(answer)


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
            runner.run(asyncio.wait_for(test(**given), 20))
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
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem")
    return context


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
    ("HEAD", [b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"], (200, b""), False),
    ("HEAD", [CHUNKS], (200, b""), False),
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


BROKEN: list[tuple[str, list[Step]]] = [
    ("closed", [OPEN, 0.02, reset]),
    ("closed", [message(b"1234")[:-1], hang_up]),
    ("closed", [CHUNKS + b"1\r\n1\r\n", hang_up]),
    ("closed", [b"HTTP/1.1 103 x\r\n\r\n", hang_up]),
    # Two ways to tell where an answer ends, of which someone else may take the other.
    ("no HTTP", [message(b"0\r\n\r\n", "200 OK", "Transfer-Encoding: chunked")]),
    ("no HTTP", [message(b"12", "200 OK", "Content-Length: 1")]),
    ("closed", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n", hang_up]),
    # What answers no request of ours.
    ("nobody asked", [b"HTTP/1.1 101 x\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n" + message(b"1")]),
    ("nobody asked", [message(b"", "099 x") + message(b"1")]),
    ("nobody asked", [message(b"1", "600 x")]),
    ("only announces", [message(b"body", "104 x") + message(b"1")]),
    ("only announces", [message(b"x" * 2 * MOST_WAITING, "104 x")]),
    # Heads that would be other heads behind us, or too much.
    ("no HTTP", [message(b"1", "200 OK", "A: b\rC: d")]),
    ("no HTTP", [message(b"1", "200 OK", "A: b\r\n c")]),
    ("too many headers", [message(b"1", "200 OK", *["A: b"] * MOST_HEADERS)]),
    ("too long a head", [b"HTTP/1.1 200 OK\r\nA: ", b"x" * 2 * MOST_HEAD]),
    ("too long a head", [CHUNKS + b"0\r\nA: ", b"x" * 2 * MOST_HEAD]),
]


@pytest.mark.parametrize(("fault", "steps"), BROKEN)
@both_loops
async def test_what_is_no_answer(fault: str, steps: list[Step]) -> None:
    server = Server(steps)
    async with wire_to(server) as wire:
        with pytest.raises(Broken, match=fault):
            await whole(wire)
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
        assert await whole(wire) == (200, b"2") and server.connections == 2


@pytest.mark.parametrize("idle", [0.2, 0.4])
@both_loops
async def test_silence_is_noticed_in_every_request_of_a_connection(idle: float) -> None:
    server = Server([message(b"1")], [0.2, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 0.2, b"x"])
    async with wire_to(server, silence_s=0.3) as wire:
        await whole(wire)
        await asyncio.sleep(idle)
        answer, began = await ask(wire), time.monotonic()
        with pytest.raises(Silent):
            await rest(answer)
        assert 0.45 < time.monotonic() - began < 1 and server.connections == 1


@pytest.mark.parametrize(
    ("size", "end"), [(20 * MOST_WAITING, []), (MOST_WAITING + 256, []), (2 * MOST_WAITING, [0.1, half_close])]
)
@both_loops
async def test_a_client_may_take_its_time(tls: ssl.SSLContext | None, size: int, end: list[Step]) -> None:
    """While too much waits for it the upstream is not read; that is no silence, and nothing is lost."""
    body = bytes(range(256)) * (size // 256)
    server = Server([message(body)[: size // 2], 0.05, message(body)[size // 2 :], *end])
    async with wire_to(server, tls, silence_s=0.2) as wire:
        answer = await ask(wire)
        await asyncio.sleep(0.5)
        got, more = b"", True
        while more:
            piece, more = await answer.read()
            assert len(piece) < 3 * MOST_WAITING
            got += piece
            await asyncio.sleep(0.01)
        assert got == body
        assert await whole(wire) == (200, b"2") and server.connections == (2 if end else 1)


@both_loops
async def test_an_upstream_that_stops_reading_is_silent() -> None:
    much = [b"x" * 2**20] * 16
    for body in (pieces(0.3, *much), b"".join(much)):
        async with wire_to(Server([9.0], unread=True), silence_s=0.2) as wire:
            with pytest.raises(Silent):
                await asyncio.wait_for(ask(wire, "POST", body), 3)


@both_loops
async def test_one_that_reads_slowly_is_not() -> None:
    much = [b"x" * 2**17] * 32
    for body, length in ((pieces(0.5, *much), 2**22), (b"".join(much), None)):
        server = Server([message(b"1")], [0.2, message(b"2")], pace=0.01)
        async with wire_to(server, silence_s=0.4) as wire:
            await whole(wire)
            for connection in wire._open:  # what the kernel holds is out of sight
                sender = connection.transport.get_extra_info("socket")
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
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


@both_loops
async def test_an_answer_may_be_here_before_the_uploads_end_is_known() -> None:
    def serve() -> None:
        peer, _ = bare.accept()
        with peer:
            for n in range(3):
                got = b""
                while not got.endswith(b"\r\n\r\nx") and (piece := peer.recv(2**16)):
                    got += piece
                peer.sendall(message(b"%d" % n))

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        time.sleep(0.05)  # nobody else's turn: the answer comes

    with socket.create_server(("127.0.0.1", 0)) as bare:
        serving = asyncio.ensure_future(asyncio.to_thread(serve))
        wire = Wire(f"http://127.0.0.1:{bare.getsockname()[1]}", 1.0, 1.0, 1.0)
        assert [await whole(wire, body(), 1) for _ in range(3)] == [(200, b"%d" % n) for n in range(3)]
        wire.close()
        await serving


@pytest.mark.parametrize(
    ("given", "length", "raised"),
    [
        ([b"x", OSError("mine")], None, OSError),
        ([b"x", asyncio.CancelledError()], None, Broken),
        ([b"four", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], 4, ValueError),
        ([b"four", 0.05], 8, ValueError),
    ],
)
@pytest.mark.parametrize("answered", [False, True])
@both_loops
async def test_a_body_of_another_length_ends_the_connection(
    answered: bool, given: list[bytes | float | BaseException], length: int | None, raised: type[Exception]
) -> None:
    server = Server([CHUNKS + b"1\r\nx\r\n"] if answered else [], unread=True)
    async with wire_to(server) as wire:
        with pytest.raises(raised):
            await whole(wire, pieces(0.05, *given), length)
        await until(lambda: server.gone == 1)
        assert b"GET" not in server.received[0]
        assert await whole(wire) == (200, b"2") and server.connections == 2


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
        wire = Wire(f"https://127.0.0.1:{plain._port}", 9.0 if cancelled else 0.3, 5.0, 5.0)
        asking = asyncio.ensure_future(whole(wire))
        await until(lambda: server.connections == 1)
        await asyncio.sleep(0.05)
        if cancelled:
            asking.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else Silent):
            await asking
        await until(lambda: server.gone == 1)
        assert not wire._open


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
            except Broken:
                pass


@pytest.mark.parametrize("steps", [[], [OPEN], [CHUNKS + b"4\r\nhalf\r\n"], [OPEN + b"x" * 2 * MOST_WAITING]])
@both_loops
async def test_what_is_under_way_when_the_wire_closes_is_cut(steps: list[Step]) -> None:
    async with wire_to(Server(steps)) as wire:
        asyncio.get_running_loop().call_later(0.1, wire.close)
        with pytest.raises(Broken):
            answer = await ask(wire)
            await asyncio.sleep(0.2 if len(bytes(steps[0])) > MOST_WAITING else 0)  # type: ignore[arg-type]
            await rest(answer)


@both_loops
async def test_idle_connections() -> None:
    server = Server(*[[0.05, message(b"1")]] * 3)
    async with wire_to(server, keepalive_s=0.4) as wire:
        await asyncio.gather(*[whole(wire) for _ in range(3)])
        timer = wire._sweeping
        for n in range(8):  # the last that was used is taken; the others grow old
            assert wire._sweeping is timer or n > 5
            await asyncio.sleep(0.05)
            await whole(wire)
        await until(lambda: server.gone == 2, 0.15)
        assert server.connections == 3 and len(wire._idle) == 1
        await until(lambda: server.gone == 3, 0.6)
        assert wire._sweeping is None and await whole(wire) == (200, b"2")
    server = Server()
    async with wire_to(server, keepalive_s=0.0) as wire:
        for n in range(1, 4):
            assert await whole(wire) == (200, b"2")
            await until(lambda n=n: server.gone == n)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("server", "host"),
    [
        ("http://Example.com:80/v1", "example.com"),
        ("https://example.com:443", "example.com"),
        ("https://example.com:80", "example.com:80"),
        ("http://[::1]", "[::1]"),
        ("https://[::1]:8443/", "[::1]:8443"),
        ("http://bücher.example:81", "xn--bcher-kva.example:81"),
    ],
)
def test_the_host_header(server: str, host: str) -> None:
    assert Wire(server, 1.0, 1.0, 1.0)._host_line == f"host: {host}\r\n".encode()


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
def test_no_part_of_a_head_ends_a_line(end: bytes) -> None:
    for target, name, value in ((b"/" + end, b"a", b"b"), (b"/", b"a" + end, b"b"), (b"/", b"a", b"b" + end)):
        with pytest.raises(ValueError, match="line's end"):
            asyncio.run(Wire("http://127.0.0.1:9", 1.0, 1.0, 1.0).send("GET", target, [(name, value)], None))
