"""The body of an outgoing request, sent in pieces."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

import aiohttp

from popi.config.http import HttpConfig

PIECE = 2**16
"""Longer bodies are sent in pieces of this size, so that a server that stops reading is noticed."""


class Upload:
    """A request's body that is being sent in pieces.

    Attributes:
        ended: whether all of it was passed to aiohttp.
        error: an exception raised by its iterator.
        reply: the response, if it arrived before the end of the body.
    """

    def __init__(self, body: AsyncIterator[bytes], length: int | None) -> None:
        self._body, self._left = body, length
        self.ended = False
        self._since: float | None = None  # when the last piece was sent; None while waiting for the next one
        self.error: Exception | None = None
        self.reply: aiohttp.ClientResponse | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body, for aiohttp."""
        loop = asyncio.get_running_loop()
        try:
            async for piece in self._body:
                self._since = loop.time()
                if self._left is not None:
                    self._left -= len(piece)
                    self.ended = self._left <= 0  # aiohttp asks for no more
                yield piece
                self._since = None
        except Exception as error:
            self.error = error
            if self.reply is not None:
                self.reply.close()
            raise
        self.ended, self._since = True, loop.time()

    async def watched(self, sending: Awaitable[aiohttp.ClientResponse], config: HttpConfig) -> aiohttp.ClientResponse:
        """Send the request.

        Raises:
            TimeoutError: if the server stopped reading the body, for which aiohttp would wait forever.
        """
        loop = asyncio.get_running_loop()

        def left() -> float:
            limit = config.read_timeout_s + (config.first_byte_timeout_s if self.ended else 0.0)
            return limit if self._since is None else self._since + limit - loop.time()

        async def watch() -> None:
            while (seconds := left()) > 0:
                await asyncio.sleep(seconds)
            limit.reschedule(loop.time())

        watching = asyncio.create_task(watch())
        try:
            async with asyncio.timeout(None) as limit:
                return await sending
        finally:
            watching.cancel()


async def sliced(body: bytes) -> AsyncIterator[bytes]:
    """The body in pieces of `PIECE` bytes."""
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]
