"""Hundreds of connections without a key send too much, too slowly or nothing; others are served meanwhile."""

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from end_to_end.bystanders import Attacked, attacked, others_served

pytestmark = pytest.mark.timed

CONNECTIONS = 300
SETTINGS = """
[proxy]
summary_timeout_ms = 300
[server]
header_timeout_s = 2
stall_timeout_s = 2
connections = 500
connections_per_address = 400
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with attacked(tmp_path_factory.mktemp("store"), SETTINGS) as made:
        yield made
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


FORM = b"content-type: application/x-www-form-urlencoded\r\n"


class Connection:
    """An attacker's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> bool:
        """False once the gateway has closed it."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError:
            return False
        return not self.reader.at_eof()

    async def closed(self) -> float:
        """Seconds until the gateway closes it, while reading everything."""
        began = time.monotonic()
        try:
            while await self.reader.read(2**16):
                pass
        except OSError:
            pass
        return time.monotonic() - began


def attack(
    target: Attacked, one: Callable[[Connection], Coroutine[Any, Any, float]], number: int = CONNECTIONS
) -> list[float]:
    """Run `one` on many connections at once; returns the results."""

    async def connected() -> float:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, target.address)
        connection = Connection(*await asyncio.open_connection(sock=plain, limit=2**14))
        try:
            return await one(connection)
        finally:
            connection.writer.transport.abort()

    async def all_at_once() -> list[float]:
        return await asyncio.gather(*(connected() for _ in range(number)))

    return asyncio.run(asyncio.wait_for(all_at_once(), 60))


@pytest.mark.parametrize("piece", [b"a: b\r\n" * 2000, b"b" * 12_000])
def test_endless_headers(target: Attacked, piece: bytes) -> None:
    async def one(connection: Connection) -> float:
        await connection.send(b"GET / HTTP/1.1\r\nhost: x\r\na: ")
        sent = 0
        while await connection.send(piece) and sent < 10_000_000:
            sent += len(piece)
        return sent

    with others_served(target):
        assert max(attack(target, one)) < 5_000_000  # the sockets' buffers


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nhost: x\r\n",
        b"POST /admin/sign-in HTTP/1.1\r\n" + FORM + b"content-length: 90\r\n\r\nkey=",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 90\r\n\r\n{",
    ],
)
def test_who_sends_no_more(target: Attacked, sent: bytes) -> None:
    async def one(connection: Connection) -> float:
        await connection.send(sent)
        return await connection.closed()

    with others_served(target):
        assert max(attack(target, one)) < (8.5 if b"chat" in sent else 5.0)  # a refused body may linger


def test_heads_and_bodies_that_drip(target: Attacked) -> None:
    async def one(connection: Connection) -> float:
        began = time.monotonic()
        await connection.send(b"GET / HTTP/1.1\r\nhost: x\r\n")
        while await connection.send(b"a: b\r\n") and time.monotonic() - began < 20:
            await asyncio.sleep(0.2)
        return time.monotonic() - began

    with others_served(target):
        assert max(attack(target, one)) < 5.0


def test_clients_that_never_read(target: Attacked) -> None:
    async def one(connection: Connection) -> float:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await connection.send(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 90)
        await asyncio.sleep(6.0)
        for _ in range(60):
            if target.sockets < 80:
                break
            await asyncio.sleep(0.5)
        return target.sockets

    with others_served(target, growth=150):
        assert max(attack(target, one, 100)) < 80


def test_more_connections_than_there_may_be(target: Attacked) -> None:
    async def one(connection: Connection) -> float:
        await asyncio.sleep(1.0)
        return target.sockets

    with others_served(target):
        assert max(attack(target, one, 1500)) < 400 + 80


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/users/a/summary", "/me", "/healthz", "other:443"])
def test_methods_that_are_not_served(target: Attacked, method: str, path: str) -> None:
    with socket.create_connection(target.address, timeout=10) as client:
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {target.key}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(1000).split()[1] in (b"405", b"400")


def test_a_trailer_names_no_user(target: Attacked) -> None:
    body = b'{"messages":[{"role":"user","content":"hi"}]}'
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {target.key}\r\nconnection: close\r\n"
    )
    chunks = b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nx-popi-user: u1\r\n\r\n" % (len(body), body)
    for named, expected in ((b"", b"none"), (b"x-popi-user: u1\r\n", b"applied")):
        with socket.create_connection(target.address, timeout=10) as client:
            client.sendall(head.encode() + named + chunks)
            answer = b""
            while piece := client.recv(2**16):
                answer += piece
        assert b"x-popi-personalized: " + expected in answer
