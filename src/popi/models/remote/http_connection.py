"""aiohttp's requests and responses, in the cases that it confuses or misses."""

import asyncio
from collections.abc import Callable

import aiohttp
from aiohttp.connector import Connection


class Stale(aiohttp.ClientError):
    """A connection is unusable; nothing was sent."""


class Request(aiohttp.ClientRequest):
    """Checks the connection before it is used."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        # Unsolicited data from the server would be mistaken for the response to this request.
        if conn.protocol is None or conn.protocol.should_close or conn.transport is None:
            conn.close()
            raise Stale
        if self.is_ssl():
            # Otherwise uvloop keeps reading during a pause, and loses that data if the server then closes.
            conn.transport.set_read_buffer_limits(1, 0)  # type: ignore[attr-defined]
        reply = await super().send(conn)
        if self.proxy is not None and not self.is_ssl():
            conn.protocol.force_close()  # forward proxies close connections without announcing it
        return reply


class Response(aiohttp.ClientResponse):
    """Distinguishes the end of a response from the loss of its connection in cases that aiohttp confuses or misses."""

    _lost: "asyncio.Future[None] | None" = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        lost = protocol.closed if protocol is not None else None
        if lost is not None:  # the future is shared by all requests on a connection
            lost.remove_done_callback(_retrieve_exception)
            lost.add_done_callback(_retrieve_exception)
        await super().start(connection)
        if self.status == 101 or not 200 <= self.status < 600:
            raise aiohttp.ClientPayloadError("an unexpected response")
        if lost is not None:
            chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
            if not chunked and "Content-Length" not in self.headers:
                self._lost = lost  # the response ends when the connection does
            elif chunked and not self.content.is_eof():
                lost.add_done_callback(self._cut)
                self.content.on_eof(lambda: _forget(lost, self._cut))
        return self

    @property
    def reset(self) -> bool:
        """Whether the connection was lost rather than closed at the end of the response."""
        return self._lost is not None and self._lost.done() and self._lost.exception() is not None

    def _cut(self, _: "asyncio.Future[None]") -> None:
        """Fail the reader, which would wait forever: aiohttp closes the connection after invalid HTTP."""
        if not self.content.is_eof() and self.content.exception() is None:
            self.content.set_exception(aiohttp.ClientPayloadError("the connection was lost"))


def _retrieve_exception(lost: "asyncio.Future[None]") -> None:
    """Retrieve the exception, or asyncio warns that it was never retrieved."""
    if not lost.cancelled():
        lost.exception()


def _forget(lost: "asyncio.Future[None]", callback: Callable[["asyncio.Future[None]"], object]) -> None:
    lost.remove_done_callback(callback)
