"""The HTTP client for all outgoing requests: aiohttp, with the same behaviour and readable errors everywhere.

It follows no redirects, uses no cookies or netrc, adds no headers, and only decompresses on request. aiohttp only
supports HTTP/1.1. The files `http_*.py` hold its parts.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any

import aiohttp
from yarl import URL

from popi.config.http import HttpConfig
from popi.errors import ConfigError
from popi.models.remote.http_connection import Request, Response, Stale
from popi.models.remote.http_faults import ERRORS, HttpFault, cause, refused_by_proxy
from popi.models.remote.http_routes import proxy_for, proxy_url, tls_context
from popi.models.remote.http_upload import PIECE, Upload, sliced

Body = bytes | AsyncIterator[bytes] | None
Headers = Sequence[tuple[str, str]]

MAX_HEADERS = 1024
"""Maximum headers of a response."""
MAX_HEADER_BYTES = 65_536
"""Maximum line length in a response's head."""
BUFFER = 2**17
"""Reading from the server pauses while twice as many bytes of a response are unread."""
CONNECTIONS_TRIED = 5
"""Maximum connections to try for a request, in case idle ones turn out to be unusable."""


class HttpClient:
    """Client configuration. Its sessions hold the connections.

    Args:
        config: proxies, certificates, limits.
        decompress: request compressed responses and decompress them.

    Raises:
        ConfigError: if a certificate or the proxy's URL can't be used.
    """

    def __init__(self, config: HttpConfig, *, decompress: bool = False) -> None:
        proxy = proxy_url(config.proxy) if config.proxy is not None else None
        if config.proxy is not None and (proxy is None or proxy.user is not None):
            raise ConfigError("proxy must be http://host:port; put a login into HTTPS_PROXY and HTTP_PROXY instead")
        self._config, self._decompress, self._tls = config, decompress, tls_context(config)

    @asynccontextmanager
    async def session(self) -> AsyncIterator["HttpSession"]:
        """Connections that stay open for the duration of the block, in one event loop."""
        config = self._config
        added = () if self._decompress else ("Accept", "Accept-Encoding")
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # a limit over all servers would let a slow one take every connection
                limit_per_host=config.connections,
                keepalive_timeout=config.keepalive_s,
                ttl_dns_cache=60,
                ssl=self._tls,
            ),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=config.connect_timeout_s, sock_read=config.first_byte_timeout_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),  # a cookie set for one user must not be sent for another
            skip_auto_headers=("User-Agent", "Content-Type", *added),
            auto_decompress=self._decompress,
            request_class=Request,
            response_class=Response,
            read_bufsize=BUFFER,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        ) as session:
            yield HttpSession(config, session)


class HttpSession:
    """Sends requests; see `HttpClient.session`."""

    def __init__(self, config: HttpConfig, session: aiohttp.ClientSession) -> None:
        self._config, self._session = config, session
        self._proxy = lru_cache(maxsize=64)(partial(proxy_for, config))

    async def send(self, method: str, url: URL, headers: Headers, body: Body = None) -> "Answer":
        """Send a request and wait for the head of its response.

        Args:
            method: HTTP method.
            url: sent unchanged; build it with `encoded=True`.
            headers: must include `content-length` if the body is an iterator of known length.
            body: bytes, an iterator of pieces, or none.

        Raises:
            HttpFault: if there is no response.
            Exception: any exception raised by the body's iterator.
        """
        config, proxy, upload = self._config, self._proxy(url.scheme, url.host, url.port), None
        request = partial(self._session.request, method, url, proxy=proxy, allow_redirects=False)
        if isinstance(body, bytes) and len(body) > PIECE:
            headers = [*headers, ("content-length", str(len(body)))]
            body = sliced(body)
        if body is not None and not isinstance(body, bytes):
            length = next((int(value) for name, value in headers if name == "content-length"), None)
            upload = Upload(body, length)
        for attempt in range(CONNECTIONS_TRIED):
            try:
                if upload is None:
                    # aiohttp stops its own timer after an interim response (103).
                    async with asyncio.timeout(config.connect_timeout_s + config.first_byte_timeout_s):
                        reply = await request(headers=headers, data=body)
                else:
                    reply = await upload.watched(request(headers=headers, data=upload.pieces()), config)
                break
            except ERRORS as error:
                if not isinstance(error, Stale) or attempt == CONNECTIONS_TRIED - 1:
                    raise cause(error, config, upload) from None
        if proxy is not None and reply.status == 407:
            reply.close()
            raise refused_by_proxy(407)
        connection = reply.connection
        if (
            config.read_timeout_s != config.first_byte_timeout_s
            and connection is not None
            and connection.protocol is not None
        ):
            connection.protocol.read_timeout = config.read_timeout_s
            connection.protocol.start_timeout()
        if upload is not None:
            upload.reply = reply
        return Answer(reply, config, upload)


class Answer:
    """A response whose head has arrived.

    Attributes:
        status: HTTP status.
        reason: its reason phrase.
        headers: raw headers.
        body: the body, once `whole` has read it.
    """

    __slots__ = ("_config", "_reply", "_upload", "body", "headers", "reason", "status")

    def __init__(self, reply: Any, config: HttpConfig, upload: "Upload | None") -> None:
        self._reply, self._config, self._upload = reply, config, upload
        self.status: int = reply.status
        self.reason: str = reply.reason or ""
        self.headers: list[tuple[bytes, bytes]] = list(reply.raw_headers)

    @property
    def named(self) -> Mapping[str, str]:
        """Headers by case-insensitive name."""
        headers: Mapping[str, str] = self._reply.headers
        return headers

    async def read(self) -> tuple[bytes, bool]:
        """The bytes of the body that have arrived, at least one unless at the end; and whether more may follow.

        Raises:
            HttpFault: if the response ended prematurely, or stalled.
            Exception: any exception raised by the iterator of the request's body.
        """
        content = self._reply.content
        try:
            piece = await content.readany()
        except ERRORS as error:
            raise cause(error, self._config, self._upload, head=False) from None
        if content.at_eof() and self._reply.reset:
            if not piece:
                raise HttpFault("broken", "reset the connection during its response")
            return piece, True
        return piece, not content.at_eof()

    async def whole(self, limit: int | None = None) -> bytes:
        """Read the whole body.

        Raises:
            HttpFault: if the response ended prematurely, stalled, or has more than `limit` bytes.
        """
        pieces, size, more = [], 0, True
        while more:
            piece, more = await self.read()
            pieces.append(piece)
            size += len(piece)
            if limit is not None and size > limit:
                raise HttpFault("broken", f"sent more than {limit:,} bytes", lasting=True)
        self.body: bytes = b"".join(pieces)
        return self.body

    def close(self) -> None:
        """Discard the rest. Closes the connection unless the response is complete."""
        self._reply.close()
