"""Requests to the upstream: written as they are, on connections that are kept for the next.

An HTTP library's session does much for a request that a gateway has no use for: header tables, cookies, redirects,
decoding; that was a good part of what a request cost (docs/lab_notes.md). Here the request's bytes are put together
once and the answer's are handed on. The parser is httptools, connections are asyncio's, made by aiohappyeyeballs.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from urllib.parse import urlsplit

import aiohappyeyeballs

from popi.serving.proxy.connection import Answer, Connection, Silent, Unreachable
from popi.serving.proxy.headers import Raw

Body = bytes | AsyncIterator[bytes] | None

EYEBALLS_S = 0.25
"""Seconds after which the next address of a host is tried beside the one before (RFC 8305)."""
_WITH_BODY = ("POST", "PUT", "PATCH")


class Wire:
    """Sends requests to one server, within one event loop.

    Args:
        server: its URL; only scheme, host and port count.
        connect_s: seconds to reach it.
        silence_s: see Connection.
        keepalive_s: seconds that an idle connection is kept.
    """

    def __init__(self, server: str, connect_s: float, silence_s: float, keepalive_s: float) -> None:
        parts = urlsplit(server)
        host = parts.hostname or ""
        self._host = host if host.isascii() else host.encode("idna").decode()
        usual = 443 if parts.scheme == "https" else 80
        self._port = parts.port or usual
        self._tls = _tls() if parts.scheme == "https" else None
        shown = f"[{self._host}]" if ":" in self._host else self._host
        shown = shown if self._port == usual else f"{shown}:{self._port}"
        self._host_line = f"host: {shown}\r\n".encode()
        self._connect_s, self._silence_s, self._keepalive_s = connect_s, silence_s, keepalive_s
        self._open: set[Connection] = set()
        self._idle: dict[Connection, float] = {}  # since when; the longest idle first
        self._sweeping: asyncio.TimerHandle | None = None

    async def send(
        self,
        method: str,
        target: bytes,
        headers: Sequence[Raw],
        body: Body,
        waits: Callable[[], None] | None = None,
    ) -> Answer:
        """Send a request and wait for the head of its answer.

        Args:
            method: of HTTP.
            target: path and query as they stand in the request's first line.
            headers: without host, transfer-encoding, and without content-length but for a body in pieces.
            body: whole, in pieces, or none.
            waits: called before each wait; once the request is written, what it costs delays nobody.

        Raises:
            UpstreamFault: there is no answer.
            ValueError: a header has a line's end in it, or the pieces have not the length that one says.
            Exception: what the pieces of the body raised.
        """
        pieces = body if not isinstance(body, bytes | None) else None
        whole = body if isinstance(body, bytes) else b""
        length = pieces is None and (body is not None or method in _WITH_BODY)
        left = None  # of the pieces, where their length is known
        if pieces is not None:
            left = next((int(value) for name, value in headers if name == b"content-length"), None)
        lines = [b"%b: %b\r\n" % header for header in headers]
        if length:
            lines.append(b"content-length: %d\r\n" % len(whole))
        elif pieces is not None and left is None:
            lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join((method.encode(), b" ", target, b" HTTP/1.1\r\n", self._host_line, *lines, b"\r\n"))
        if not head.count(b"\r") == head.count(b"\n") == len(lines) + 3:
            raise ValueError("a header has a line's end in it")
        connection = self._take()
        if connection is None:
            if waits is not None:
                waits()
            connection = await self._connect()
        answer = connection.send(head + whole, method == "HEAD")
        try:
            if waits is not None:
                waits()
            if pieces is not None:
                connection.upload(asyncio.ensure_future(_write(connection, pieces, left)))
            await answer.head()
        except BaseException:
            answer.close()
            raise
        return answer

    def close(self) -> None:
        """Close all connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._open):
            connection.abort()

    def _take(self) -> Connection | None:
        """The connection that was used last: the others grow old, and are closed."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                connected = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=EYEBALLS_S, loop=loop
                )
                _, connection = await loop.create_connection(
                    partial(Connection, self._silence_s, self._free, self._lost),
                    sock=connected,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls is not None else None,
                )
        except TimeoutError:
            raise Silent(f"could not be reached within {self._connect_s:g} seconds") from None
        except OSError:
            raise Unreachable("can't be reached") from None
        self._open.add(connection)
        return connection

    def _free(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._idle[connection] = loop.time()
        if self._sweeping is None:
            self._sweeping = loop.call_later(self._keepalive_s, self._sweep)

    def _lost(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._open.discard(connection)

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        loop = asyncio.get_running_loop()
        self._sweeping = None
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            if (left := since + self._keepalive_s - loop.time()) > 0:
                self._sweeping = loop.call_later(left, self._sweep)
                return
            del self._idle[connection]
            connection.abort()


async def _write(connection: Connection, pieces: AsyncIterator[bytes], left: int | None) -> None:
    """Write a body of so many bytes, or in chunks. One of another length would be, or hold, another request."""
    async for piece in pieces:
        if left is None:
            if piece:
                await connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        elif (left := left - len(piece)) >= 0:
            await connection.write(piece)
        else:
            break
    if left is None:
        await connection.write(b"0\r\n\r\n")
    elif left:
        raise ValueError("the pieces have not the length that content-length says")


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
