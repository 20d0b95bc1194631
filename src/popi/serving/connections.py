"""Limits on connections, which apply before a key is checked.

uvicorn does not limit the size of headers, the time for headers, bodies and responses, or the connections per address.
`Protocol` tracks a connection's state through httptools' callbacks; `Connections` checks all of them once a second.
"""

import asyncio
import resource
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from popi.serving.cors import headers_below
from popi.serving.proxy.refusals import Refusal, answer, dialect_of
from popi.serving.settings import ServerSettings
from popi.serving.throttle import network_of

SWEEP_SECONDS = 1.0
LINGER_SECONDS = 5.0
"""How long a client may keep sending a refused body, so that it can read the response."""
MAX_PIPELINED = 100
"""Maximum requests that may wait on one connection for earlier responses."""
OTHER_FILES = 256
"""Open files to allow for besides sockets."""
_IDLE, _HEAD, _BODY, _UNWANTED = range(4)
"""What a connection is waiting for: a request, or the rest of its headers, its body or a refused body."""


def uvicorn_settings(settings: ServerSettings, connections: "Connections | None" = None) -> dict[str, Any]:
    """uvicorn's settings for the gateway. The upstream's `server` and `date` headers are forwarded, and popi logs.

    Use them for one server: `connections` counts its connections, by default in a new object.
    """
    return {
        "loop": "uvloop",
        "http": partial(Protocol, connections or Connections(settings)),
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
    }


class Connections:
    """All connections of one server.

    Args:
        settings: their limits.

    Attributes:
        ending: close each connection after its next response.
    """

    def __init__(self, settings: ServerSettings) -> None:
        # Each may need a connection to the upstream; if files run out, the store fails as well.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = 2 * settings.connections + OTHER_FILES
        if hard != resource.RLIM_INFINITY:
            files = min(files, hard)
        if soft != resource.RLIM_INFINITY and soft < files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        self._maximum = min(settings.connections, max(files - OTHER_FILES, 2) // 2)
        self.settings, self.ending = settings, False
        self.cors = headers_below(settings.cors_origins)
        self._trusted = [ip_network(one) for one in settings.trusted_proxies]
        self._open: dict[Protocol, None] = {}  # oldest first
        self._of_network: dict[str, dict[Protocol, None]] = {}

    def enter(self, new: "Protocol", host: str) -> bool:
        """Count a new connection. Returns False if there is no room and no idle connection to close."""
        new.network = network_of(host)
        trusted = bool(self._trusted) and any(ip_address(host) in network for network in self._trusted)
        same, maximum = self._of_network.get(new.network, {}), self.settings.connections_per_address
        for group, limit in ((same, self._maximum if trusted else maximum), (self._open, self._maximum)):
            if len(group) >= limit:
                # Prefer one that never sent a request: a client may be about to reuse one that did.
                idle = min((one for one in group if one.is_idle), key=lambda one: one.cycle is not None, default=None)
                if idle is None:
                    return False
                self.leave(idle)
                idle.transport.abort()
        self._of_network.setdefault(new.network, same)[new] = self._open[new] = None
        if len(self._open) == 1:
            new.loop.call_later(SWEEP_SECONDS, self._sweep, new.loop)
        return True

    def leave(self, one: "Protocol") -> None:
        """Stop counting a connection, if it is counted."""
        if one in self._open:
            del self._open[one], self._of_network[one.network][one]
            if not self._of_network[one.network]:
                del self._of_network[one.network]

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        for one in list(self._open):
            one.check()
        if self._open:
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)


class Protocol(HttpToolsProtocol):
    """One connection.

    Args:
        connections: all connections of its server.
        uvicorn: uvicorn's arguments for protocols.
    """

    def __init__(self, connections: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.network, self.url = "", b""
        self._all, self._bounds = connections, connections.settings
        self._waits_for, self._patience = _HEAD, self._bounds.header_timeout_s  # seconds left, counted down by `check`
        self._chunk = 0  # bytes being parsed
        self._unread = 0  # bytes without a callback from the parser: incomplete headers, trailers or extensions
        self._unsent, self._write_patience = 0, self._bounds.stall_timeout_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._all.enter(self, self.client[0] if self.client is not None else ""):
            self._end(Refusal(503, "too_many_connections", "too many connections; try again soon", retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.leave(self)

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if self._waits_for == _IDLE:  # even for blank lines, which the parser skips
            self._waits_for, self._patience = _HEAD, self._bounds.header_timeout_s
        self._chunk = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay_at_http_1(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            refusal = error.__context__
            if not isinstance(refusal, Refusal):
                refusal = Refusal(400, "bad_request", "this is not a valid HTTP/1.1 request")
            self._end(refusal)
        else:
            self._unread += self._chunk
            if self._unread > self._bounds.header_bytes:
                self._end(self._too_large())
            elif self._waits_for == _BODY:
                self._patience = self._bounds.stall_timeout_s

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._waits_for != _HEAD:
            self._waits_for, self._patience = _HEAD, self._bounds.header_timeout_s

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= self._bounds.headers:  # check here: the chunk being parsed may hold thousands
            raise self._too_large()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if method in (b"CONNECT", b"TRACE"):
            raise Refusal(405, "no_such_method", f"{method.decode()} is not served here")
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise Refusal(505, "http_version", "only HTTP/1.1 and HTTP/1.0 are served here")
        if len(self.pipeline) >= MAX_PIPELINED:
            raise Refusal(
                429, "too_many_concurrent_requests", f"at most {MAX_PIPELINED} requests may wait on one connection"
            )
        size, bounds = 0, self._bounds
        if self._unread + self._chunk > bounds.header_bytes:  # including bytes before or after them
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > bounds.header_bytes:
            raise self._too_large()
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            if self._all.ending:
                self.cycle.keep_alive = False
            self.headers = []  # drop trailers, which uvicorn adds to the headers: they could name a user
            self._unread = -self._chunk
            self._waits_for, self._patience = _BODY, self._bounds.stall_timeout_s

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._unread = -self._chunk

    def on_message_complete(self) -> None:
        if self._waits_for != _HEAD:  # otherwise it is an upgrade, which is parsed again
            super().on_message_complete()
            self._unread = -self._chunk
            self._waits_for, self._patience = _IDLE, self.timeout_keep_alive

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._waits_for == _BODY and self.cycle.response_complete:
            self._waits_for, self._patience = _UNWANTED, LINGER_SECONDS
        elif self._waits_for == _HEAD:
            self._patience = self._bounds.header_timeout_s
        elif self._waits_for == _IDLE:
            self._patience = self.timeout_keep_alive

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress, apart from incomplete headers."""
        return self._waits_for in (_IDLE, _HEAD) and not self._is_answering

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def check(self) -> None:
        """Close the connection if its client is too slow. Called every SWEEP_SECONDS."""
        unsent, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        if not self._unsent or self._unsent < unsent:
            self._write_patience = self._bounds.stall_timeout_s
        if self._write_patience <= 0:
            self.transport.abort()
        elif not self.transport.is_reading():
            self._patience = max(self._patience, self._bounds.stall_timeout_s)  # the client is waiting for us
        elif self._patience <= 0 and (self.is_idle or self._waits_for in (_BODY, _UNWANTED)):
            if self._waits_for == _BODY or (self._waits_for == _HEAD and self._unread):
                self._end(Refusal(408, "slow_request", "the request did not arrive in time"))
            else:
                self.transport.close()
        self._patience -= SWEEP_SECONDS
        self._write_patience -= SWEEP_SECONDS

    def _too_large(self) -> Refusal:
        headers, size = self._bounds.headers, self._bounds.header_bytes
        return Refusal(
            431, "headers", f"a request may have at most {headers} headers, and {size} bytes before its body"
        )

    def _end(self, refusal: Refusal) -> None:
        """Send a refusal and close the connection."""
        is_in_body = self._waits_for == _BODY and not self.pipeline and not self.cycle.response_started
        if self._is_answering and not is_in_body:  # the refusal would look like another request's response
            self.transport.abort()
            return
        if self._waits_for in (_BODY, _UNWANTED):
            path, names = self.scope["path"], list(self.scope["headers"])
        else:
            path, names = self.url.decode("latin-1"), self.headers or []
        headers, body = answer(refusal, dialect_of(path, names))
        headers += self._all.cors(names)
        lines = [b"HTTP/1.1 %d %s" % (refusal.status, HTTPStatus(refusal.status).phrase.encode())]
        lines += [name + b": " + value for name, value in (*headers, (b"connection", b"close"))]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()

    def _stay_at_http_1(self, rest: bytes) -> None:
        """Parse an upgrade request again without the upgrade, since the parser would skip its body.

        Java's HttpClient and `curl --http2` offer an upgrade to h2c with their first request.
        """
        upgrade_names = (b"upgrade", b"http2-settings")
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(one for one in value.split(b",") if one.strip().lower() not in upgrade_names)
            if name not in upgrade_names and (value or name != b"connection"):
                lines.append(name + b": " + value)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)
