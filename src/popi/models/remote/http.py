"""The one way out over HTTP: aiohttp with one behaviour everywhere, and what its faults are called.

No redirects, no cookies, no netrc, no headers of its own; nothing is decoded unless asked for. HTTP/1.1, which is what
aiohttp speaks.
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
"""Headers of an answer."""
MAX_HEADER_BYTES = 65_536
"""Longest line of an answer's head."""
BUFFER = 2**17
"""Once twice as many bytes of an answer wait for their reader, the server is not read any further."""
PIECE = 2**16
"""Longer bodies are sent in pieces of this size, to notice a server that stops reading."""
CONNECTIONS_TRIED = 5
"""Connections tried for a request, where idle ones turn out to be spoiled."""

# aiohttp's own exceptions, and those that it lets through.
_ERRORS = (aiohttp.ClientError, HttpProcessingError, OSError)
_AUTHORITY = "is from an authority that is not trusted here (set ca_bundle or SSL_CERT_FILE)"
_NAME = "is not for this host, or has no subjectAltName, the only place where names count"
# By OpenSSL's verify codes (x509_vfy.h).
_CERTIFICATE = {9: "is not valid yet", 10: "has expired", 62: _NAME, 64: _NAME}
_CERTIFICATE |= dict.fromkeys(range(18, 22), _AUTHORITY)


class HttpFault(Exception):
    """Why there is no answer, or only part of one. The message is to be read after "the upstream".

    Attributes:
        kind: for programs.
        lasting: another try would meet it again.
    """

    def __init__(self, kind: Kind, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.kind, self.lasting = kind, lasting


class HttpClient:
    """How servers are reached; connections live in its sessions.

    Args:
        config: proxies, certificates, limits.
        decompress: ask for compressed answers and unpack them.

    Raises:
        ConfigError: a certificate or the proxy's URL can't be used.
    """

    def __init__(self, config: HttpConfig, *, decompress: bool = False) -> None:
        proxy = _proxy_url(config.proxy) if config.proxy is not None else None
        if config.proxy is not None and (proxy is None or proxy.user is not None):
            raise ConfigError("proxy must be http://host:port; a login belongs into HTTPS_PROXY and HTTP_PROXY")
        self._config, self._decompress, self._tls = config, decompress, _tls(config)

    @asynccontextmanager
    async def session(self) -> AsyncIterator["HttpSession"]:
        """Connections that live as long as the block, in one event loop."""
        config = self._config
        added = () if self._decompress else ("Accept", "Accept-Encoding")
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=config.connections, keepalive_timeout=config.keepalive_s, ttl_dns_cache=60, ssl=self._tls
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=config.connect_s, sock_read=config.first_byte_s),
            cookie_jar=aiohttp.DummyCookieJar(),  # a cookie set for one user must not be sent for the next
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
        """Send a request and wait for the head of its answer.

        Args:
            method: of HTTP.
            url: sent as it is; build it with `encoded=True`.
            headers: with `content-length` where the body comes in pieces and its length is known.
            body: whole, in pieces, or none.

        Raises:
            HttpFault: there is no answer.
            Exception: what the pieces of the body raised.
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
                    # aiohttp stops its own clock after an answer that only announces another (103).
                    async with asyncio.timeout(config.connect_s + config.first_byte_s):
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
        if config.silence_s != config.first_byte_s and connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = config.silence_s
            connection.protocol.start_timeout()
        if upload is not None:
            upload.reply = reply
        return Answer(reply, config, upload)


class Answer:
    """An answer whose head is here.

    Attributes:
        status: of HTTP.
        reason: the words behind it.
        headers: as they came.
        body: what `whole` has read.
    """

    __slots__ = ("_config", "_reply", "_upload", "body", "headers", "reason", "status")

    def __init__(self, reply: Any, config: HttpConfig, upload: "_Upload | None") -> None:
        self._reply, self._config, self._upload = reply, config, upload
        self.status: int = reply.status
        self.reason: str = reply.reason or ""
        self.headers: list[tuple[bytes, bytes]] = list(reply.raw_headers)

    @property
    def named(self) -> Mapping[str, str]:
        """Headers by name, in whatever case."""
        named: Mapping[str, str] = self._reply.headers
        return named

    async def read(self) -> tuple[bytes, bool]:
        """What has arrived of the body, at least a byte unless it is the end; and whether more may come.

        Raises:
            HttpFault: it ended too early, or fell silent.
            Exception: what the pieces of the request's body raised.
        """
        content = self._reply.content
        try:
            piece = await content.readany()
        except _ERRORS as error:
            raise _cause(error, self._config, self._upload, head=False) from None
        if content.at_eof() and self._reply.reset:
            if not piece:
                raise HttpFault("broken", "reset the connection amid its answer")
            return piece, True
        return piece, not content.at_eof()

    async def whole(self, limit: int | None = None) -> bytes:
        """The body.

        Raises:
            HttpFault: it ended too early, fell silent, or has more than `limit` bytes.
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
        """Nobody waits for the rest: its connection ends, unless the answer has."""
        self._reply.close()


class _Upload:
    """The body of a request on its way, in pieces.

    Attributes:
        ended: all of it was handed to aiohttp.
        error: what its pieces raised.
        reply: the answer, where it came before the body's end.
    """

    def __init__(self, body: AsyncIterator[bytes], length: int | None) -> None:
        self._body, self._left = body, length
        self.ended = False
        self._since: float | None = None  # when the server was given the last piece, unless it waits for the next
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
            TimeoutError: the server took nothing of the body for too long; aiohttp would wait forever.
        """
        loop = asyncio.get_running_loop()

        def left() -> float:
            limit = config.silence_s + (config.first_byte_s if self.ended else 0.0)
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
    """A connection can't carry a request; nothing was sent."""


class _Request(aiohttp.ClientRequest):
    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        # What a server sent while nobody asked would be taken for the answer to this request.
        if conn.protocol is None or conn.protocol.should_close or conn.transport is None:
            conn.close()
            raise _Stale
        if self.is_ssl():
            # Else uvloop reads on beneath a pause, and loses what it has read if the server then closes.
            conn.transport.set_read_buffer_limits(1, 0)  # type: ignore[attr-defined]
        reply = await super().send(conn)
        if self.proxy is not None and not self.is_ssl():
            conn.protocol.force_close()  # forward proxies close without saying so
        return reply


class _Response(aiohttp.ClientResponse):
    """Tells an answer's end from the loss of its connection, where aiohttp takes one for the other, or for neither."""

    _lost: "asyncio.Future[None] | None" = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        lost = protocol.closed if protocol is not None else None
        if lost is not None:  # the same for all requests on a connection
            lost.remove_done_callback(_seen)
            lost.add_done_callback(_seen)
        await super().start(connection)
        if self.status == 101 or not 200 <= self.status < 600:
            raise aiohttp.ClientPayloadError("an answer that nobody asked for")
        if lost is not None:
            chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
            if not chunked and "Content-Length" not in self.headers:
                self._lost = lost  # the connection's end is the answer's
            elif chunked and not self.content.is_eof():
                lost.add_done_callback(self._cut)
                self.content.on_eof(lambda: _forget(lost, self._cut))
        return self

    @property
    def reset(self) -> bool:
        """The answer's end was no end."""
        return self._lost is not None and self._lost.done() and self._lost.exception() is not None

    def _cut(self, _: "asyncio.Future[None]") -> None:
        """After what is no HTTP aiohttp closes the connection, and its reader would wait forever."""
        if not self.content.is_eof() and self.content.exception() is None:
            self.content.set_exception(aiohttp.ClientPayloadError("the connection was lost"))


def _seen(lost: "asyncio.Future[None]") -> None:
    """Take note of how a connection ended, or asyncio complains that nobody did."""
    if not lost.cancelled():
        lost.exception()


def _forget(lost: "asyncio.Future[None]", callback: Callable[["asyncio.Future[None]"], object]) -> None:
    lost.remove_done_callback(callback)


async def _sliced(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


def _proxy(config: HttpConfig, scheme: str, host: str, port: int) -> URL | None:
    """The forward proxy for a server; the environment's may have a login in it, which is shown nowhere."""
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
    """What to raise for an error of aiohttp's, before or after the answer's head."""
    if upload is not None and upload.error is not None:
        return upload.error
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return HttpFault("timeout", f"could not be reached within {config.connect_s:g} seconds")
    if isinstance(error, aiohttp.ServerTimeoutError):
        seconds = config.first_byte_s if head else config.silence_s
        return HttpFault("timeout", f"sent nothing within {seconds:g} seconds")
    if isinstance(error, TimeoutError):
        what = "sent no answer" if upload is None or upload.ended else "took no more of the request"
        return HttpFault("timeout", f"{what} in time")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _refused_by_proxy(error.status)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return HttpFault("proxy", "can't be reached: the forward proxy does not answer")
    if (certificate := _certificate(error)) is not None:
        return HttpFault("certificate", certificate, lasting=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return HttpFault("unreachable", "can't be reached: its name can't be resolved")
    if isinstance(error, aiohttp.ClientConnectorError):
        return HttpFault("unreachable", "can't be reached")
    return HttpFault("broken", f"closed the connection, or sent no HTTP ({type(error).__name__})")


def _refused_by_proxy(status: int) -> HttpFault:
    why = {403: "it does not allow this host", 407: "it wants a login, or another one"}.get(status, "")
    words = f"can't be reached: the forward proxy answered {status}{' (' + why + ')' if why else ''}"
    return HttpFault("proxy", words, lasting=status < 500)


def _certificate(error: BaseException | None) -> str | None:
    """What is wrong with a certificate, if that is what an error is about."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) and not isinstance(error, aiohttp.ClientError):
            why = _CERTIFICATE.get(error.verify_code, "does not hold")
            return f"shows a certificate that {why} ({error.verify_message})"
        if (
            isinstance(error, ssl.SSLError)
            and "ALERT" in str(error)
            and re.search("CERTIFICATE|UNKNOWN_CA", str(error))
        ):
            return "wants a client certificate, or another one (client_certificate, client_key)"
        error = error.__cause__ or error.__context__
    return None


def _tls(config: HttpConfig) -> ssl.SSLContext:
    file = os.environ.get("SSL_CERT_FILE")
    if config.ca_bundle is None and file and not os.path.isfile(file):
        raise ConfigError(f"SSL_CERT_FILE: there is no file {file}")  # OpenSSL would trust nobody, and not say why
    try:
        context = ssl.create_default_context(cafile=config.ca_bundle)
    except OSError as error:
        raise ConfigError(
            f"ca_bundle: {config.ca_bundle} has no certificates in PEM ({error.strerror or error})"
        ) from None
    if config.client_certificate is not None:
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(config.client_certificate, config.client_key, password="")
        except OSError as error:
            raise ConfigError(
                f"client_certificate: {config.client_certificate} is no certificate in PEM with its key, unencrypted "
                f"({error.strerror or error})"
            ) from None
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    return context
