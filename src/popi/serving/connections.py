"""The listening side: uvicorn, with bounds on what a client may hold without a key.

uvicorn bounds neither heads, nor the time of heads, bodies and answers, nor the connections of one address. `Protocol`
notes on httptools' callbacks where a connection stands; `Connections` looks at all of them once a second.
"""

import asyncio
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from popi.serving.proxy.refusals import Refusal, answer
from popi.serving.settings import ServerSettings
from popi.serving.throttle import network_of

SWEEP_SECONDS = 1.0
LINGER_SECONDS = 5.0
"""How long a client may go on sending a body that was refused, so that it gets to read why."""
MOST_PIPELINED = 100
"""Maximum requests that wait on one connection for the answers before theirs."""
_IDLE, _HEAD, _BODY, _UNWANTED = range(4)
"""What a connection waits for from its client: a request, the rest of its head, of its body, of a refused body."""


def uvicorn_settings(settings: ServerSettings) -> dict[str, Any]:
    """How uvicorn should run the gateway: the upstream's own `server` and `date` are passed on, log lines are ours.

    For one server: connections are counted in what is returned.
    """
    return {
        "loop": "uvloop",
        "http": partial(Protocol, Connections(settings)),
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
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._trusted = [ip_network(one) for one in settings.trusted_proxies]
        self._open: dict[Protocol, None] = {}  # the oldest first
        self._of_network: dict[str, dict[Protocol, None]] = {}

    def enter(self, new: "Protocol", host: str) -> bool:
        """Count a connection in; False: there is no room, and no connection without a request could give way."""
        new.network, settings = network_of(host), self.settings
        same = self._of_network.setdefault(new.network, {})
        most = settings.connections if self._is_trusted(host) else settings.connections_per_address
        for crowd, room in ((same, most), (self._open, settings.connections)):
            if len(crowd) >= room:
                idle = next((one for one in crowd if one.is_idle), None)
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
        if one not in self._open:
            return
        del self._open[one]
        del self._of_network[one.network][one]
        if not self._of_network[one.network]:
            del self._of_network[one.network]

    def _is_trusted(self, host: str) -> bool:
        return bool(self._trusted) and any(ip_address(host) in network for network in self._trusted)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for one in list(self._open):
            one.check(now)
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
        self.network = ""
        self._all, self._bounds = connections, connections.settings
        self._waits_for = _HEAD
        self._due = self._write_due = self.loop.time()
        self._chunk = 0
        self._unread = 0
        """Bytes received of which nothing has come out of the parser yet: part of a head, a trailer, an extension."""
        self._head_bytes = 0
        self._unsent = 0

    # -- asyncio's callbacks --

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._due = self.loop.time() + self._bounds.head_s
        if not self._all.enter(self, self.client[0] if self.client is not None else ""):
            self._end(503, "too_many_connections", "too many connections; try again soon")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.leave(self)

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if self._waits_for == _IDLE:  # also for blank lines, which the parser skips
            self._waits_for, self._due = _HEAD, self.loop.time() + self._bounds.head_s
        self._chunk = len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay_at_http_1(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            refusal = error.__context__
            if isinstance(refusal, Refusal):
                self._end(refusal.status, refusal.code, str(refusal))
            else:
                self._end(400, "bad_request", "the target of the request is not valid")
        except httptools.HttpParserError:
            self._end(400, "bad_request", "this is not a valid HTTP/1.1 request")
        else:
            self._unread += self._chunk
            if self._unread > self._bounds.header_bytes:
                self._end(431, "headers", f"a request's headers may have {self._bounds.header_bytes} bytes")
            elif self._waits_for == _BODY:
                now, bounds = self.loop.time(), self._bounds
                self._due = min(self._due + len(data) / bounds.bytes_per_s, now + bounds.stall_s)

    # -- httptools' callbacks --

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._waits_for != _HEAD:
            self._waits_for, self._due = _HEAD, self.loop.time() + self._bounds.head_s

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._waits_for != _HEAD:
            return  # a trailer: uvicorn would append it to the headers, where it could name a user
        self._check_size(1)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if method in (b"CONNECT", b"TRACE"):
            raise Refusal(501, "no_such_method", f"{method.decode()} is not served here")
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise Refusal(505, "http_version", "HTTP/1.1 and HTTP/1.0 are served here")
        if len(self.pipeline) >= MOST_PIPELINED:
            raise Refusal(429, "too_many_at_once", f"at most {MOST_PIPELINED} requests may wait on one connection")
        if self.parser.should_upgrade():
            return
        self._check_size(0)
        if not self.url.startswith(b"/"):
            self.url = _origin_form(self.url)
        super().on_headers_complete()
        self._unread = -self._chunk
        self._waits_for, self._due = _BODY, self.loop.time() + self._bounds.stall_s

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._unread = -self._chunk

    def on_message_complete(self) -> None:
        if self._waits_for == _HEAD:
            return  # of an upgrade: it follows again
        super().on_message_complete()
        self._unread = -self._chunk
        self._waits_for, self._due = _IDLE, self.loop.time() + self.timeout_keep_alive

    # -- uvicorn's callbacks --

    def on_response_complete(self) -> None:
        super().on_response_complete()
        now = self.loop.time()
        if self._waits_for == _BODY and self.cycle.response_complete:
            self._waits_for, self._due = _UNWANTED, now + LINGER_SECONDS
        elif self._waits_for == _IDLE:
            self._due = now + self.timeout_keep_alive

    # -- bounds --

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way, but perhaps part of a head."""
        return self._waits_for in (_IDLE, _HEAD) and not self._is_answering

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def check(self, now: float) -> None:
        """Close the connection if its client took too long. Called every SWEEP_SECONDS."""
        bounds, unsent = self._bounds, self.transport.get_write_buffer_size()
        if not unsent:
            self._write_due = now + bounds.stall_s
        elif unsent < self._unsent:
            self._write_due = min(self._write_due + (self._unsent - unsent) / bounds.bytes_per_s, now + bounds.stall_s)
        self._unsent = unsent
        if unsent and now > self._write_due:
            self.transport.abort()
        elif self._waits_for == _BODY and not self.transport.is_reading():
            self._due = now + bounds.stall_s  # we are the ones who wait: for the upstream, mostly
        elif now > self._due and not (self._waits_for == _IDLE and self._is_answering):
            started = self._waits_for == _BODY or (self._waits_for == _HEAD and self._unread > 0)
            if started and not self.transport.is_closing():
                self._end(408, "slow_request", "the request did not arrive in time")
            else:
                self.transport.close()

    def _check_size(self, more: int) -> None:
        headers, size = self._bounds.headers, self._bounds.header_bytes
        if len(self.headers) + more > headers or self._head_bytes > size:
            raise Refusal(
                431, "headers", f"a request may have {headers} headers, and {size} bytes in all before its body"
            )

    def _end(self, status: int, code: str, message: str) -> None:
        """Refuse what comes, and close the connection."""
        amid_its_body = self._waits_for == _BODY and not self.pipeline and not self.cycle.response_started
        if self._is_answering and not amid_its_body:  # the refusal would read as another request's answer
            self.transport.abort()
            return
        headers, body = answer(Refusal(status, code, message), "openai")
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()), b"connection: close"]
        lines += [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()

    def _stay_at_http_1(self, rest: bytes) -> None:
        """Parse a request that offers to switch protocols again, without the offer: the parser skips its body.

        Java's HttpClient and `curl --http2` offer h2c with their first request.
        """
        offered = (b"upgrade", b"http2-settings")
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(one for one in value.split(b",") if one.strip().lower() not in offered)
            if name not in offered and (value or name != b"connection"):
                lines.append(name + b": " + value)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)


def _origin_form(target: bytes) -> bytes:
    """The path and query of a target in absolute form (`http://host/path?query`), which servers have to accept."""
    url = httptools.parse_url(target)
    if url.schema not in (b"http", b"https"):
        raise Refusal(400, "bad_request", "the target of a request must be a path")
    return (url.path or b"/") + (b"?" + url.query if url.query is not None else b"")
