"""The listening side: uvicorn, with bounds on what a client may hold without a key.

uvicorn bounds neither heads, nor the time of heads, bodies and answers, nor the connections of one address. `Protocol`
notes on httptools' callbacks where a connection stands; `Connections` looks at all of them once a second.
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
"""How long a client may go on sending a body that was refused, so that it gets to read why."""
MOST_PIPELINED = 100
"""Maximum requests that wait on one connection for the answers before theirs."""
OTHER_FILES = 256
"""Files that the process opens beside sockets."""
_IDLE, _HEAD, _BODY, _UNWANTED = range(4)
"""What a connection waits for from its client: a request, the rest of its head, of its body, of a refused body."""


def uvicorn_settings(settings: ServerSettings, connections: "Connections | None" = None) -> dict[str, Any]:
    """How uvicorn should run the gateway: the upstream's own `server` and `date` are passed on, log lines are ours.

    For one server: its connections are counted in `connections`, by default in a new one.
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
        settings: their bounds.

    Attributes:
        ending: each is closed after its next answer.
    """

    def __init__(self, settings: ServerSettings) -> None:
        # A connection to the upstream for each; where files run out, the store fails as well.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = 2 * settings.connections + OTHER_FILES
        if hard != resource.RLIM_INFINITY:
            files = min(files, hard)
        if soft != resource.RLIM_INFINITY and soft < files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        self._most = min(settings.connections, max(files - OTHER_FILES, 2) // 2)
        self.settings, self.ending = settings, False
        self.cors = headers_below(settings.cors_origins)
        self._trusted = [ip_network(one) for one in settings.trusted_proxies]
        self._open: dict[Protocol, None] = {}  # the oldest first
        self._of_network: dict[str, dict[Protocol, None]] = {}

    def enter(self, new: "Protocol", host: str) -> bool:
        """Count a connection in; False: there is no room, and no connection without a request could give way."""
        new.network = network_of(host)
        trusted = bool(self._trusted) and any(ip_address(host) in network for network in self._trusted)
        same, most = self._of_network.get(new.network, {}), self.settings.connections_per_address
        for crowd, room in ((same, self._most if trusted else most), (self._open, self._most)):
            if len(crowd) >= room:
                # Rather one that never sent a request: a client may be about to use again what it has used before.
                idle = min((one for one in crowd if one.is_idle), key=lambda one: one.cycle is not None, default=None)
                if idle is None:
                    return False
                self.leave(idle)
                idle.transport.abort()
        self._of_network.setdefault(new.network, same)[new] = self._open[new] = None
        if len(self._open) == 1:
            new.loop.call_later(SWEEP_SECONDS, self._sweep, new.loop)
        return True

    def leave(self, one: "Protocol") -> None:
        """Count a connection out, if it is counted in."""
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
        connections: all of its server.
        uvicorn: what uvicorn gives its protocols.
    """

    def __init__(self, connections: Connections, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.network, self.url = "", b""
        self._all, self._bounds = connections, connections.settings
        self._waits_for, self._patience = _HEAD, self._bounds.head_s  # in seconds, counted down by `check`
        self._chunk = 0  # bytes that are being parsed
        self._unread = 0  # bytes of which nothing has come out of the parser: part of a head, a trailer, an extension
        self._unsent, self._write_patience = 0, self._bounds.stall_s

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
        if self._waits_for == _IDLE:  # also for blank lines, which the parser skips
            self._waits_for, self._patience = _HEAD, self._bounds.head_s
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
                self._patience = self._bounds.stall_s

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._waits_for != _HEAD:
            self._waits_for, self._patience = _HEAD, self._bounds.head_s

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= self._bounds.headers:  # at once: there is room for thousands in what is being parsed
            raise self._too_large()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if method in (b"CONNECT", b"TRACE"):
            raise Refusal(405, "no_such_method", f"{method.decode()} is not served here")
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise Refusal(505, "http_version", "HTTP/1.1 and HTTP/1.0 are served here")
        if len(self.pipeline) >= MOST_PIPELINED:
            raise Refusal(429, "too_many_at_once", f"at most {MOST_PIPELINED} requests may wait on one connection")
        size, bounds = 0, self._bounds
        if self._unread + self._chunk > bounds.header_bytes:  # with what came before or behind them
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > bounds.header_bytes:
            raise self._too_large()
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            if self._all.ending:
                self.cycle.keep_alive = False
            self.headers = []  # for trailers: among the headers, where uvicorn puts them, they could name a user
            self._unread = -self._chunk
            self._waits_for, self._patience = _BODY, self._bounds.stall_s

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._unread = -self._chunk

    def on_message_complete(self) -> None:
        if self._waits_for != _HEAD:  # else it is an upgrade, and follows again
            super().on_message_complete()
            self._unread = -self._chunk
            self._waits_for, self._patience = _IDLE, self.timeout_keep_alive

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._waits_for == _BODY and self.cycle.response_complete:
            self._waits_for, self._patience = _UNWANTED, LINGER_SECONDS
        elif self._waits_for == _HEAD:
            self._patience = self._bounds.head_s
        elif self._waits_for == _IDLE:
            self._patience = self.timeout_keep_alive

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way, but perhaps part of a head."""
        return self._waits_for in (_IDLE, _HEAD) and not self._is_answering

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def check(self) -> None:
        """Close the connection if its client took too long. Called every SWEEP_SECONDS."""
        unsent, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        if not self._unsent or self._unsent < unsent:
            self._write_patience = self._bounds.stall_s
        if self._write_patience <= 0:
            self.transport.abort()
        elif not self.transport.is_reading():
            self._patience = max(self._patience, self._bounds.stall_s)  # we let the client wait, not it us
        elif self._patience <= 0 and (self.is_idle or self._waits_for in (_BODY, _UNWANTED)):
            if self._waits_for == _BODY or (self._waits_for == _HEAD and self._unread):
                self._end(Refusal(408, "slow_request", "the request did not arrive in time"))
            else:
                self.transport.close()
        self._patience -= SWEEP_SECONDS
        self._write_patience -= SWEEP_SECONDS

    def _too_large(self) -> Refusal:
        headers, size = self._bounds.headers, self._bounds.header_bytes
        return Refusal(431, "headers", f"a request may have {headers} headers, and {size} bytes before its body")

    def _end(self, refusal: Refusal) -> None:
        """Refuse what comes, and close the connection."""
        amid_its_body = self._waits_for == _BODY and not self.pipeline and not self.cycle.response_started
        if self._is_answering and not amid_its_body:  # the refusal would read as another request's answer
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
        """Parse a request that offers another protocol again, without the offer: the parser skips its body.

        Java's HttpClient and `curl --http2` offer h2c with their first request.
        """
        offer = (b"upgrade", b"http2-settings")
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(one for one in value.split(b",") if one.strip().lower() not in offer)
            if name not in offer and (value or name != b"connection"):
                lines.append(name + b": " + value)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)
