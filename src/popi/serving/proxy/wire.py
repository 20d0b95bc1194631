"""A request with a whole body, on a connection of aiohttp's pool.

aiohttp's session does much for a request that a gateway has no use for: header tables, cookies, redirects, a writer of
its own; that is a good part of what a request costs. Here the request is written in one piece. Pool, TLS, time limits
and the parser of answers are aiohttp's all the same, by `TCPConnector.connect` and the connection's protocol; the
latter is no part of its documented interface, so its version is bounded (pyproject.toml).
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http_parser import RawResponseMessage
from multidict import CIMultiDictProxy
from yarl import URL

from popi.serving.proxy.headers import Raw

MOST_HEADERS = 1024
"""Most headers of an answer."""
MOST_HEADER = 65_536
"""Longest line of an answer's head, in bytes."""


class Handler(ResponseHandler):
    """aiohttp's end of a connection without faults of it: two let a call hang for ever, one takes a cut for the end."""

    _written = False

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        """What is no HTTP amid an answer ends its body too; aiohttp tells only who waits for a head."""
        super().set_exception(exc, exc_cause)
        self._cut(exc, exc_cause)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Of an answer without a length aiohttp takes any end for the end; a reset is none."""
        if exc is not None:
            self._cut(aiohttp.ClientPayloadError("the connection was reset"), exc)
        super().connection_lost(exc)

    def _cut(self, exc: BaseException, exc_cause: BaseException) -> None:
        content = self._payload
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(exc, exc_cause)

    def start_timeout(self) -> None:
        """The request is written: the answer is waited for from now on."""
        self._written = True
        self._reschedule_timeout()

    async def read(self) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
        """The head of the next answer. After one that only announces another, aiohttp would wait without a limit."""
        message, content = await super().read()
        if message.code >= 200:
            self._written = False
        elif message.code != 101 and self._written and not self._buffer and not self._eof:
            self._reschedule_timeout()
        return message, content


def pool(keepalive_s: float) -> aiohttp.TCPConnector:
    """Connections of the running loop, as many as are asked for; idle ones are kept for that long."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=keepalive_s, ttl_dns_cache=60)
    connector._factory = partial(Handler, loop=asyncio.get_running_loop())  # type: ignore[assignment]
    return connector


class Reply:
    """An answer whose head is here; as much of aiohttp's as the gateway needs.

    Attributes:
        status: of HTTP.
        raw_headers: as they came.
        headers: the same, by name.
        content: the body, as it arrives.
    """

    __slots__ = ("_connection", "content", "headers", "raw_headers", "status")

    def __init__(
        self,
        connection: Connection,
        status: int,
        raw_headers: Sequence[Raw],
        headers: "CIMultiDictProxy[str]",
        content: aiohttp.StreamReader,
    ) -> None:
        self._connection, self.status, self.raw_headers, self.headers = connection, status, raw_headers, headers
        self.content = content
        content.on_eof(connection.release)

    def close(self) -> None:
        """End the connection, unless it went back to the pool with the answer's end."""
        self._connection.close()


class Wire:
    """Sends requests to one server.

    Args:
        connector: see `pool`.
        server: its URL; only scheme, host and port count.
        timeout: `sock_connect` and `sock_read` are heeded.
    """

    def __init__(self, connector: aiohttp.TCPConnector, server: URL, timeout: aiohttp.ClientTimeout) -> None:
        self._connector, self._timeout = connector, timeout
        # The connector reads off it where to connect to, and how.
        self._to = aiohttp.ClientRequest("POST", server, loop=asyncio.get_running_loop())
        self._host = f"host: {server.host_port_subcomponent}\r\n".encode()

    async def post(self, target: bytes, headers: Sequence[Raw], body: bytes) -> Reply:
        """POST a body and wait for the head of the answer.

        Args:
            target: path and query as they stand in the request's first line.
            headers: without host and content-length.
            body: whole.

        Raises:
            aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, TimeoutError: as aiohttp has them.
            ValueError: a header has a line's end in it.
        """
        lines = [b"%b: %b\r\n" % header for header in headers]
        head = b"".join(
            (b"POST ", target, b" HTTP/1.1\r\n", self._host, *lines, b"content-length: %d\r\n\r\n" % len(body))
        )
        if head.count(b"\n") != len(lines) + 4:
            raise ValueError("a header has a line's end in it")
        try:
            connection = await self._connector.connect(self._to, traces=[], timeout=self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        try:
            protocol = connection.protocol
            assert protocol is not None and protocol.transport is not None
            self._expect(protocol)
            protocol.transport.write(head + body)
            while True:
                message, content = await protocol.read()
                if message.code >= 200 or message.code == 101:  # else it announces the answer
                    break
        except BaseException:
            connection.close()
            raise
        return Reply(connection, message.code, message.raw_headers, message.headers, content)

    def _expect(self, protocol: ResponseHandler) -> None:
        protocol.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            read_timeout=self._timeout.sock_read,
            max_line_size=MOST_HEADER,
            max_field_size=MOST_HEADER,
            max_headers=MOST_HEADERS,
        )
        protocol.start_timeout()
