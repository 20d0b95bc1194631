"""Calls to the model API behind the gateway: one pool of connections, nothing added, nothing decoded."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from popi.serving.proxy.headers import Raw
from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import ProxySettings
from popi.serving.proxy.wire import MOST_HEADER, MOST_HEADERS, Reply, Wire, pool

Body = bytes | AsyncIterator[bytes] | None

MOST_FETCHED = 2**20
"""Most bytes of what `fetch` gets."""


class Cut(Exception):
    """The upstream ended amid its answer, fell silent in it, or sent no HTTP any more."""


class Upstream:
    """The server behind the gateway. Requests are sent within `open`.

    Args:
        settings: where it is, and how long to wait.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._server = URL(settings.upstream, encoded=True)
        self._below = self._server.raw_path.rstrip("/")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connections that live as long as the block, in one event loop."""
        settings = self._settings
        connector = pool(settings.keepalive_s)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_s, sock_read=settings.silence_s)
        self._wire = Wire(connector, self._server, timeout)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),  # a cookie set for one user must not be sent for the next
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
            max_line_size=MOST_HEADER,
            max_field_size=MOST_HEADER,
            max_headers=MOST_HEADERS,
        ) as session:
            self._session = session
            try:
                yield
            finally:
                self._session = None

    async def send(
        self, method: str, path: str, query: str, headers: list[Raw], body: Body
    ) -> aiohttp.ClientResponse | Reply:
        """Send a request and wait for the head of the answer.

        Args:
            method: of HTTP.
            path: with its escapes, from `/v1` on.
            query: without the question mark; may be empty.
            headers: as they came, without those of the client's connection.
            body: whole, in pieces, or none.

        Raises:
            Refusal: 502, it can't be reached or does not speak HTTP; 504, it was silent for too long.
        """
        assert self._session is not None, "requests are sent within open()"
        whole = f"{path}?{query}" if query else path
        try:
            if method == "POST" and isinstance(body, bytes):
                return await self._wire.post((self._below + whole).encode("latin-1"), headers, body)
            return await self._session.request(
                method,
                URL(self._settings.upstream + whole, encoded=True),
                headers=[(_text(name), _text(value)) for name, value in headers],
                data=body,
                allow_redirects=False,  # passed on like any answer; followed, it would carry the key elsewhere
            )
        except aiohttp.ServerTimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            seconds = self._settings.connect_s if connecting else self._settings.silence_s
            what = "could not be reached" if connecting else "sent nothing"
            raise Refusal(504, "upstream_timeout", f"the upstream {what} within {seconds:g} seconds") from None
        except aiohttp.ClientConnectorError:
            raise Refusal(502, "upstream_unreachable", "the upstream can't be reached") from None
        except (aiohttp.ClientError, HttpProcessingError) as error:
            name = type(error).__name__
            raise Refusal(
                502, "upstream_broken", f"the upstream closed the connection, or sent no HTTP ({name})"
            ) from None

    async def fetch(self, url: str) -> bytes:
        """What is at a URL of the operator's own (an issuer's keys).

        Raises:
            aiohttp.ClientError, ValueError: it could not be had, or is too long.
        """
        assert self._session is not None, "requests are sent within open()"
        timeout = aiohttp.ClientTimeout(total=10)
        headers = {"Accept": "application/json"}
        async with self._session.get(
            url, timeout=timeout, headers=headers, raise_for_status=True, allow_redirects=False, auto_decompress=True
        ) as reply:
            content = await reply.content.read(MOST_FETCHED + 1)
            while len(content) <= MOST_FETCHED and (more := await reply.content.read(MOST_FETCHED)):
                content += more
        if len(content) > MOST_FETCHED:
            raise ValueError("too long")
        return content


async def pieces(reply: aiohttp.ClientResponse | Reply) -> AsyncIterator[tuple[bytes, bool]]:
    """An answer's body as it arrives, each piece with whether more may come; the last one may be empty.

    Raises:
        Cut: it ended too early. All that had come was given out.
    """
    content = reply.content
    try:
        while True:
            piece = await content.readany()
            ended = content.at_eof()
            yield piece, not ended
            if ended:
                return
    except (aiohttp.ClientError, HttpProcessingError, TimeoutError) as error:
        # What came in one go with the end is still in the buffer: it is the client's.
        if content._buffer:
            yield content._read_nowait(-1), True
        raise Cut from error


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
