"""Heads of answers, and what goes out with them."""

import asyncio
import socket
from collections.abc import Callable

import pytest
from unit.serving.proxy.recording import APP_KEY, Received, RunningGateway, message

CHAT = b'{"messages":[{"role":"user","content":"hi"}]}'
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {APP_KEY}\r\n".encode()
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(CHAT) + CHAT


@pytest.fixture
def reads(gateway: RunningGateway) -> Callable[[bytes], list[bytes]]:
    """What a client reads of an answer, each read as it came; it waits between them until nothing comes any more."""

    def read(request: bytes) -> list[bytes]:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=0.5) as client:
            client.sendall(request)
            found: list[bytes] = []
            try:
                while piece := client.recv(65_536):
                    found.append(piece)
            except TimeoutError:
                pass
            return found

    return read


def test_a_head_and_a_body_that_are_here_go_out_as_one(
    gateway: RunningGateway, reads: Callable[[bytes], list[bytes]]
) -> None:
    for _ in range(5):
        (whole,) = reads(WHOLE)
        assert whole.startswith(b"HTTP/1.1 200 OK\r\n") and whole.endswith(b'\r\n\r\n{"ok":true}')
    (models,) = reads(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert models.startswith(b"HTTP/1.1 200 OK\r\n") and b"popi_requests_total" in models


def test_a_head_waits_for_no_late_body(gateway: RunningGateway, reads: Callable[[bytes], list[bytes]]) -> None:
    async def late(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"HTTP")
        await asyncio.sleep(0.1)

    gateway.upstream.reply = late
    head, body = reads(WHOLE)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and head.endswith(b"\r\n\r\n") and body == b"HTTP"


def test_a_body_that_looks_like_a_head_arrives(gateway: RunningGateway, reads: Callable[[bytes], list[bytes]]) -> None:
    body = b"HTTP/1.1 200 OK\r\n\r\n"

    async def pieces(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (3 * len(body)))
        for _n in range(3):
            await asyncio.sleep(0.02)
            writer.write(body)

    gateway.upstream.reply = pieces
    assert b"".join(reads(WHOLE)).endswith(b"\r\n\r\n" + 3 * body)


def test_the_head_before_a_closed_connection(gateway: RunningGateway, reads: Callable[[bytes], list[bytes]]) -> None:
    gateway.upstream.reply = lambda _, writer: _write(writer, message(b"", "200 OK"))
    request = WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close")
    assert b"".join(reads(request)).endswith(b"connection: close\r\n\r\n")


def test_a_client_that_waits_to_be_told_to_go_on(gateway: RunningGateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as client:
        client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(CHAT))
        assert client.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(CHAT)
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 OK\r\n")


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
