"""The client: its requests, connections, the two loads, and its timings."""

import asyncio
import json
import random
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import httptools

from load.upstream import EVENTS

KEY = "sk-popi-" + secrets.token_hex(16)
USERS = 100


def request(user: int, stream: bool, port: int) -> bytes:
    """A short chat of an app with a system prompt."""
    messages = [
        {"role": "system", "content": "You are the assistant of a shop. " * 20},
        {"role": "user", "content": "Where is my order? " * 5},
    ]
    body = json.dumps({"model": "m", "messages": messages, "stream": stream, "user": f"user-{user}"}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Timings:
    """Milliseconds of one way under one load; `first` is the time to the first byte of the answer's body."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    personalised: int = 0


class ClientConnection(asyncio.Protocol):
    """Sends one request at a time."""

    def __init__(self, timings: Timings, events: int) -> None:
        self.timings, self.events = timings, events
        self.done: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, data: bytes, due: float) -> "asyncio.Future[None]":
        self.due, self.first, self.events_read, self.size, self.applied = due, 0.0, 0, 0, False
        self.parser = httptools.HttpResponseParser(self)
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self.done

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.applied |= name == b"x-popi-personalized" and value == b"applied"

    def on_body(self, body: bytes) -> None:
        self.first = self.first or time.perf_counter()
        self.events_read += body.count(b"data: ")
        self.size += len(body)

    def on_message_complete(self) -> None:
        timings, now = self.timings, time.perf_counter()
        good = self.parser.get_status_code() == 200
        if good and (self.events_read > self.events - 3 if self.events else self.size > 200):
            timings.first.append((self.first - self.due) * 1000)
            timings.whole.append((now - self.due) * 1000)
            timings.personalised += self.applied
        else:
            timings.errors += 1
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.timings.errors += 1
            self._end()

    def _end(self) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)


class Client:
    """Connections to one port, each with one request in flight."""

    def __init__(self, port: int, stream: bool, timings: Timings) -> None:
        self.port, self.timings, self.events = port, timings, EVENTS if stream else 0
        self.requests = [request(user, stream, port) for user in range(USERS)]
        self.free: list[ClientConnection] = []

    async def connection(self) -> ClientConnection:
        while self.free:
            connection = self.free.pop()
            if not connection.transport.is_closing():
                return connection
        loop = asyncio.get_running_loop()
        make = ClientConnection(self.timings, self.events)
        await loop.create_connection(lambda: make, "127.0.0.1", self.port)
        return make

    async def once(self, due: float) -> None:
        connection = await self.connection()
        await connection.send(random.choice(self.requests), min(due, time.perf_counter()))
        self.free.append(connection)

    async def flat_out(self, connections: int, seconds: float) -> None:
        end = time.perf_counter() + seconds

        async def one() -> None:
            while (now := time.perf_counter()) < end:
                await self.once(now)

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(connections)))
        self.timings.seconds += time.perf_counter() - began

    async def open_loop(self, rate: float, seconds: float) -> None:
        began = time.perf_counter()
        tasks = []
        for n in range(int(rate * seconds)):
            due = began + n / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.ensure_future(self.once(due)))
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        self.timings.seconds += time.perf_counter() - began
