"""The HTTP client for all outgoing requests: aiohttp, with the same behaviour and readable errors everywhere.

It follows no redirects, uses no cookies or netrc, adds no headers, and only decompresses on request. aiohttp only
supports HTTP/1.1.
"""

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any, Literal
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from popi.config.http import HttpConfig
from popi.errors import ConfigError

Body = bytes | AsyncIterator[bytes] | None
Headers = Sequence[tuple[str, str]]
Kind = Literal["timeout", "unreachable", "certificate", "proxy", "broken"]

MAX_HEADERS = 1024
"""Maximum headers of a response."""
MAX_HEADER_BYTES = 65_536
"""Maximum line length in a response's head."""
BUFFER = 2**17
"""Reading from the server pauses while twice as many bytes of a response are unread."""
PIECE = 2**16
"""Longer bodies are sent in pieces of this size, so that a server that stops reading is noticed."""
CONNECTIONS_TRIED = 5
"""Maximum connections to try for a request, in case idle ones turn out to be unusable."""

# aiohttp's own exceptions, and those that it does not wrap.
_ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError)
_AUTHORITY = "is from an authority that is not trusted here (set ca_bundle or SSL_CERT_FILE)"
_NAME = "is not for this host, or has no subjectAltName (other names are ignored)"
# By OpenSSL's verify codes (x509_vfy.h).
_CERTIFICATE = {9: "is not valid yet", 10: "has expired", 62: _NAME, 64: _NAME}
_CERTIFICATE |= dict.fromkeys(range(18, 22), _AUTHORITY)


class HttpFault(Exception):
    """There is no response, or only part of one. The message completes a sentence that starts with "the upstream".

    Attributes:
        kind: machine-readable cause.
        lasting: whether a retry would fail in the same way.
    """

    def __init__(self, kind: Kind, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.kind, self.lasting = kind, lasting


class HttpClient:
    """Client configuration. Its sessions hold the connections.

    Args:
        config: proxies, certificates, limits.
        decompress: request compressed responses and decompress them.

    Raises:
        ConfigError: if a certificate or the proxy's URL can't be used.
    """

    def __init__(self, config: HttpConfig, *, decompress: bool = False) -> None:
        proxy = _proxy_url(config.proxy) if config.proxy is not None else None
        if config.proxy is not None and (proxy is None or proxy.user is not None):
            raise ConfigError("proxy must be http://host:port; put a login into HTTPS_PROXY and HTTP_PROXY instead")
        self._config, self._decompress, self._tls = config, decompress, _tls(config)

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
            request_class=_Request,
            response_class=_Response,
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
        self._proxy = lru_cache(maxsize=64)(partial(_proxy, config))

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
            body = _sliced(body)
        if body is not None and not isinstance(body, bytes):
            length = next((int(value) for name, value in headers if name == "content-length"), None)
            upload = _Upload(body, length)
        for attempt in range(CONNECTIONS_TRIED):
            try:
                if upload is None:
                    # aiohttp stops its own timer after an interim response (103).
                    async with asyncio.timeout(config.connect_timeout_s + config.first_byte_timeout_s):
                        reply = await request(headers=headers, data=body)
                else:
                    reply = await upload.watched(request(headers=headers, data=upload.pieces()), config)
                break
            except _ERRORS as error:
                if not isinstance(error, _Stale) or attempt == CONNECTIONS_TRIED - 1:
                    raise _cause(error, config, upload) from None
        if proxy is not None and reply.status == 407:
            reply.close()
            raise _refused_by_proxy(407)
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

    def __init__(self, reply: Any, config: HttpConfig, upload: "_Upload | None") -> None:
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
        except _ERRORS as error:
            raise _cause(error, self._config, self._upload, head=False) from None
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


class _Upload:
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


class _Stale(aiohttp.ClientError):
    """A connection is unusable; nothing was sent."""


class _Request(aiohttp.ClientRequest):
    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        # Unsolicited data from the server would be mistaken for the response to this request.
        if conn.protocol is None or conn.protocol.should_close or conn.transport is None:
            conn.close()
            raise _Stale
        if self.is_ssl():
            # Otherwise uvloop keeps reading during a pause, and loses that data if the server then closes.
            conn.transport.set_read_buffer_limits(1, 0)  # type: ignore[attr-defined]
        reply = await super().send(conn)
        if self.proxy is not None and not self.is_ssl():
            conn.protocol.force_close()  # forward proxies close connections without announcing it
        return reply


class _Response(aiohttp.ClientResponse):
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


async def _sliced(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


def _proxy(config: HttpConfig, scheme: str, host: str, port: int) -> URL | None:
    """The forward proxy for a server. The URL from the environment may contain a login, so it is never shown."""
    if proxy_bypass(f"{host}:{port}"):
        return None
    value = config.proxy or getproxies().get(scheme)
    if not value:
        return None
    url = _proxy_url(value)
    if url is None:
        raise HttpFault("proxy", "can't be reached: HTTPS_PROXY or HTTP_PROXY is not http://host:port", lasting=True)
    return url


def _proxy_url(value: str) -> URL | None:
    try:
        url = URL(value if "://" in value else f"http://{value}")
    except ValueError:
        return None
    return url if url.scheme in ("http", "https") and url.host else None


def _cause(error: Exception, config: HttpConfig, upload: _Upload | None, head: bool = True) -> Exception:
    """The exception to raise for an error of aiohttp, before or after the response's head."""
    if upload is not None and upload.error is not None:
        return upload.error
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return HttpFault("timeout", f"could not be reached within {config.connect_timeout_s:g} seconds")
    if isinstance(error, aiohttp.ServerTimeoutError):
        seconds = config.first_byte_timeout_s if head else config.read_timeout_s
        return HttpFault("timeout", f"sent nothing within {seconds:g} seconds")
    if isinstance(error, TimeoutError):
        sent = upload is None or upload.ended
        return HttpFault("timeout", "sent no response in time" if sent else "stopped reading the request")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _refused_by_proxy(error.status)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return HttpFault("proxy", "can't be reached: the forward proxy does not respond")
    if (certificate := _certificate(error)) is not None:
        return HttpFault("certificate", certificate, lasting=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return HttpFault("unreachable", "can't be reached: its host name can't be resolved")
    if isinstance(error, aiohttp.ClientConnectorError):
        return HttpFault("unreachable", "can't be reached")
    return HttpFault("broken", f"closed the connection, or sent invalid HTTP ({type(error).__name__})")


def _refused_by_proxy(status: int) -> HttpFault:
    reason = {403: "it does not allow this host", 407: "it requires a valid login"}.get(status, "")
    message = f"can't be reached: the forward proxy answered {status}{' (' + reason + ')' if reason else ''}"
    return HttpFault("proxy", message, lasting=status < 500)


def _certificate(error: BaseException | None) -> str | None:
    """What is wrong with a certificate, if the error is about one."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) and not isinstance(error, aiohttp.ClientError):
            reason = _CERTIFICATE.get(error.verify_code, "is not valid")
            return f"presents a certificate that {reason} ({error.verify_message})"
        if (
            isinstance(error, ssl.SSLError)
            and "ALERT" in str(error)
            and re.search("CERTIFICATE|UNKNOWN_CA", str(error))
        ):
            return "requires a valid client certificate (client_certificate, client_key)"
        error = error.__cause__ or error.__context__
    return None


def _tls(config: HttpConfig) -> ssl.SSLContext:
    file = os.environ.get("SSL_CERT_FILE")
    if config.ca_bundle is None and file and not os.path.isfile(file):
        raise ConfigError(f"SSL_CERT_FILE: there is no file {file}")  # OpenSSL would silently trust no certificates
    try:
        context = ssl.create_default_context(cafile=config.ca_bundle)
    except OSError as error:
        raise ConfigError(
            f"ca_bundle: {config.ca_bundle} has no PEM certificates ({error.strerror or error})"
        ) from None
    if config.client_certificate is not None:
        try:
            # Without a password, OpenSSL would prompt for one on the terminal.
            context.load_cert_chain(config.client_certificate, config.client_key, password="")
        except OSError as error:
            raise ConfigError(
                f"client_certificate: {config.client_certificate} is not a PEM certificate with its unencrypted key "
                f"({error.strerror or error})"
            ) from None
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    return context
