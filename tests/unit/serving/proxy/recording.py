"""A gateway and an upstream on this machine, both on real sockets; the upstream keeps what it got to the byte."""

import asyncio
import http.client
import json
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette

from popi.config.http import HttpConfig
from popi.errors import AuthError
from popi.serving.connections import uvicorn_settings
from popi.serving.interfaces import Caller, Recorder, StoredSummary
from popi.serving.proxy.routes import Proxy, proxy_routes
from popi.serving.proxy.settings import ProxySettings
from popi.serving.settings import ServerSettings

APP_KEY, USER_KEY, ADMIN_KEY, OTHER_KEY = "popi-app-1", "popi-user-ann", "popi-admin", "popi-app-2"
SUMMARY = "Prefers short answers."
SECRET = "a secret of the tests, 32 bytes or more"


class _Message:
    """How the headers and the body of a request or an answer are read."""

    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Received(_Message):
    """One request as it arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes


Reply = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def message(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def fixed(body: bytes, status: str = "200 OK", *headers: str) -> Reply:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(message(body, status, *headers))

    return reply


@dataclass
class RecordingUpstream:
    """An HTTP server of few words: what it answers is written by hand.

    Attributes:
        reply: writes the answer; the connection stays open unless it closes it.
        received: requests, in the order in which their bodies were complete.
        connections: how many were opened.
        heads: how many requests have begun.
        closed: how many connections ended from the other side while an answer was being written.
    """

    reply: Reply = field(default_factory=lambda: fixed(b'{"ok":true}', "200 OK", "Content-Type: application/json"))
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    heads: int = 0
    closed: int = 0
    url: str = ""

    @property
    def last(self) -> Received:
        return self.received[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads += 1
                request, *lines = head.decode("latin-1").strip().split("\r\n")
                method, target, _ = request.split(" ")
                headers = [(line.split(":", 1)[0], line.split(":", 1)[1].strip()) for line in lines]
                got = Received(method, target, headers, b"")
                if length := got.header("content-length"):
                    got.body = await reader.readexactly(int(length))
                elif got.header("transfer-encoding"):
                    while size := int((await reader.readline()).strip(), 16):
                        got.body += await reader.readexactly(size)
                        await reader.readline()
                    await reader.readline()
                self.received.append(got)
                await self._answer(got, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, got: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reply, unless the other side hangs up first."""
        replying = asyncio.ensure_future(self.reply(got, writer))
        while not replying.done():
            await asyncio.wait((replying,), timeout=0.01)
            if reader.at_eof():
                self.closed += 1
                replying.cancel()
                raise ConnectionError
        await replying
        await writer.drain()


class FakeKeys:
    """Four keys; `fault` is raised instead where there is one."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.delay = 0.0

    def cached(self, key: str | None) -> Caller | None:
        return None

    async def authenticate(self, key: str | None) -> Caller:
        await asyncio.sleep(self.delay)
        if self.fault is not None:
            raise self.fault
        callers = {
            APP_KEY: Caller("app1", "app", "acme"),
            OTHER_KEY: Caller("app2", "app", "other"),
            USER_KEY: Caller("user1", "user", "acme", "ann"),
            ADMIN_KEY: Caller("admin1", "admin", "acme"),
        }
        if key not in callers:
            raise AuthError("no such key" if key else "no key was sent")
        return callers[key]


class FakeSummaries:
    """Ann and Bert of the tenant acme have a summary.

    Attributes:
        asked: (tenant, user id) of every lookup.
        delay: seconds that a lookup takes.
        stubborn: being cancelled does not shorten it.
        fault: raised instead.
    """

    def __init__(self) -> None:
        self.known = {
            ("acme", "ann"): StoredSummary(SUMMARY, 3),
            ("acme", "Bjørn ☃"): StoredSummary("Likes snow: ☃", 1),
        }
        self.asked: list[tuple[str, str]] = []
        self.delay = 0.0
        self.stubborn = False
        self.fault: BaseException | None = None

    def cached(self, tenant: str, user_id: str) -> None:
        return None

    async def summary_of(self, tenant: str, user_id: str) -> StoredSummary | None:
        self.asked.append((tenant, user_id))
        if self.fault is not None:
            raise self.fault
        end = time.monotonic() + self.delay
        while (left := end - time.monotonic()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                if not self.stubborn:
                    raise
        return self.known.get((tenant, user_id))


@dataclass
class Answer(_Message):
    """What a client got."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass
class RunningGateway:
    """A gateway in a thread of its own."""

    proxy: Proxy
    keys: FakeKeys
    summaries: FakeSummaries
    upstream: RecordingUpstream
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self,
        path: str = "/v1/chat/completions",
        body: bytes | None = None,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        *,
        method: str = "POST",
        key: str | None = APP_KEY,
    ) -> Answer:
        """One request over a connection of its own; nothing is sent but what is given, Host and Content-Length."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            if key is not None:
                connection.putheader("Authorization", f"Bearer {key}")
            for name, value in headers.items() if isinstance(headers, dict) else headers or []:
                connection.putheader(name, value.encode() if isinstance(value, str) else value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            reply = connection.getresponse()
            return Answer(reply.status, reply.getheaders(), reply.read())
        finally:
            connection.close()

    def counted(self, name: str, **labels: str) -> float:
        return self.proxy.metrics.registry.get_sample_value(name, labels) or 0.0


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.005)


@contextmanager
def recording_upstream(tls: ssl.SSLContext | None = None) -> Iterator[RecordingUpstream]:
    """A recording upstream for as long as the block lasts."""
    upstream = RecordingUpstream()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=2**24, ssl=tls))
    upstream.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield upstream
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@contextmanager
def running_gateway(
    upstream: RecordingUpstream, /, recorder: Recorder | None = None, **settings: Any
) -> Iterator[RunningGateway]:
    """A gateway in front of an upstream for as long as the block lasts."""
    keys, summaries = FakeKeys(), FakeSummaries()
    given: dict[str, Any] = {"id_secret": SECRET} | settings
    if "upstreams" not in given:
        given.setdefault("upstream", upstream.url)
    http = HttpConfig(**{name: given.pop(name) for name in HttpConfig.model_fields.keys() & given})
    proxy = proxy_routes(ProxySettings(**given), keys, summaries, recorder=recorder, http=http)
    app = Starlette(routes=proxy.routes, lifespan=proxy.lifespan)
    listening = uvicorn_settings(ServerSettings()) | {"timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", **listening))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started, 20)
    try:
        yield RunningGateway(proxy, keys, summaries, upstream, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)
