"""What the gateway costs: the same requests sent directly, through it, and through LiteLLM's proxy, on the same cores.

python benchmarks/gateway.py [--seconds S] [--rounds N] [--rate R] [--connections C] [--litellm install|PYTHON|none]

Everything runs here: an upstream that answers at once, the gateway as `popi serve` with SQLite and a summary for every
user, LiteLLM's proxy in an environment of its own, and the client. Two loads: open loop, requests at a fixed rate
whether or not the last one was answered, timed from the moment at which each was due (a server that stalls is not
spared the requests that it held up); and flat out, every connection sending as soon as it was answered. The ways take
turns in each round; figures are over all rounds. Added milliseconds are differences of percentiles to the direct way;
CPU milliseconds are the server's own, a request, and hardly depend on what else runs on the cores. Rows go to
runs/bench/gateway.json; every answer is checked, and that the gateway personalised it is counted.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import uvloop
from rich.console import Console
from rich.table import Table

KEY = "sk-popi-" + secrets.token_hex(16)
USERS = 100
EVENTS = 20
READY_S = 120.0

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 60}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 150, "completion_tokens": 60, "total_tokens": 210},
    }
).encode()


def event(content: str, reason: str | None = None) -> bytes:
    delta: dict[str, Any] = {"index": 0, "delta": {"content": content}, "finish_reason": reason}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta]}
    data = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: "
WHOLE = HEAD + b"application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
STREAM = [HEAD + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + event("word ")]
STREAM += [event("word ") for _ in range(EVENTS - 2)] + [event("", "stop"), b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"]


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


class UpstreamConnection(asyncio.Protocol):
    """Answers every request at once; a stream in as many writes as it has events."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if b'"stream": true' in self.body or b'"stream":true' in self.body:
            for piece in STREAM:
                self.transport.write(piece)
        else:
            self.transport.write(WHOLE)
        self.body = b""


async def upstream(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(UpstreamConnection, "127.0.0.1", port)
    await server.serve_forever()


@dataclass
class Timings:
    """Milliseconds of one way under one load; `first` until the answer's first byte of body."""

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
        self.due, self.first, self.found, self.size, self.applied = due, 0.0, 0, 0, False
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
        self.found += body.count(b"data: ")
        self.size += len(body)

    def on_message_complete(self) -> None:
        timings, now = self.timings, time.perf_counter()
        good = self.parser.get_status_code() == 200
        if good and (self.found > self.events - 3 if self.events else self.size > 200):
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
    """Connections to one port, each with one request under way."""

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
        await connection.send(random.choice(self.requests), due)
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


def percentile(values: list[float], share: float) -> float:
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of those that it started; what others on these cores do hardly changes it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # no such process any more, or no Linux
        return 0.0
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) for child in children)


@contextmanager
def process(command: list[str], env: dict[str, str], port: int, path: str, log: Path) -> Iterator[int]:
    """A server for as long as the block lasts, from when it answers at `path`; its process id."""
    with log.open("wb") as out:
        running = subprocess.Popen(command, env=os.environ | env, stdout=out, stderr=out, cwd=log.parent)
        try:
            end = time.monotonic() + READY_S
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
                    break
                except OSError as error:
                    if isinstance(error, urllib.error.HTTPError):
                        break  # it answers, if not what was asked
                    if running.poll() is not None or time.monotonic() > end:
                        raise SystemExit(f"{command[0]} did not start:\n{log.read_text()[-2000:]}") from None
                    time.sleep(0.1)
            yield running.pid
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()


def litellm_command(choice: str, folder: Path, ports: dict[str, int]) -> list[str] | None:
    """How to run LiteLLM's proxy; installed at the first time, where asked for."""
    if choice == "none":
        return None
    if choice == "install":
        home = Path("runs/bench/litellm").resolve()
        python = home / "bin/python"
        if not (home / "bin/litellm").exists():
            subprocess.run([sys.executable, "-m", "venv", home], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "litellm[proxy]"], check=True)
    else:
        python = Path(choice)
    (folder / "litellm.yaml").write_text(
        "model_list:\n"
        "  - model_name: m\n"
        f"    litellm_params: {{model: openai/m, api_base: 'http://127.0.0.1:{ports['direct']}/v1', api_key: none}}\n"
        f"general_settings: {{master_key: {KEY}}}\n"
        "litellm_settings: {telemetry: false, set_verbose: false}\n"
    )
    command = [str(python.parent / "litellm"), "--config", str(folder / "litellm.yaml")]
    return [*command, "--host", "127.0.0.1", "--port", str(ports["LiteLLM"])]


def free_ports(number: int) -> list[int]:
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def put_summaries(port: int) -> None:
    text = "Prefers short answers in plain words, with one example. Knows the shop well. Dislikes emphasis and emoji."
    for user in range(USERS):
        made = urllib.request.Request(
            f"http://127.0.0.1:{port}/users/user-{user}/summary",
            json.dumps({"text": text}).encode(),
            {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
            method="PUT",
        )
        urllib.request.urlopen(made, timeout=10).close()


LOADS = ("open loop", "flat out")


async def measure(
    ways: dict[str, int], pids: dict[str, int], options: argparse.Namespace
) -> dict[tuple[str, bool, str], Timings]:
    found: dict[tuple[str, bool, str], Timings] = {}
    for round_ in range(options.rounds + 1):
        for stream in (False, True):
            for load in LOADS:
                for way, port in ways.items():
                    # The first round warms up and does not count.
                    timings = found.setdefault((way, stream, load), Timings()) if round_ else Timings()
                    seconds = options.seconds if round_ else min(2.0, options.seconds)
                    client = Client(port, stream, timings)
                    began = cpu_seconds(pids[way])
                    if load == "flat out":
                        await client.flat_out(options.connections, seconds)
                    else:
                        await client.open_loop(options.litellm_rate if way == "LiteLLM" else options.rate, seconds)
                    timings.cpu_seconds += cpu_seconds(pids[way]) - began
                    for connection in client.free:
                        connection.transport.close()
    return found


def report(found: dict[tuple[str, bool, str], Timings], options: argparse.Namespace) -> list[dict[str, Any]]:
    names = "load, answers, way, a second, p50 ms, p99 ms, added p50, added p99, CPU ms, × LiteLLM, errors"
    table = Table(*names.split(", "))
    rows = []
    for (way, stream, load), timings in found.items():
        direct = found[("direct", stream, load)]
        litellm = found.get(("LiteLLM", stream, load))
        p50, p99 = percentile(timings.whole, 0.5), percentile(timings.whole, 0.99)
        rps = len(timings.whole) / timings.seconds
        row = {
            "way": way,
            "load": load,
            "stream": stream,
            "rate": (options.litellm_rate if way == "LiteLLM" else options.rate) if load == "open loop" else None,
            "connections": options.connections if load == "flat out" else None,
            "requests": len(timings.whole),
            "errors": timings.errors,
            "personalised": timings.personalised,
            "requests_per_s": rps,
            "p50_ms": p50,
            "p99_ms": p99,
            "max_ms": max(timings.whole, default=float("nan")),
            "first_byte_p50_ms": percentile(timings.first, 0.5),
            "first_byte_p99_ms": percentile(timings.first, 0.99),
            "added_p50_ms": p50 - percentile(direct.whole, 0.5),
            "added_p99_ms": p99 - percentile(direct.whole, 0.99),
            "times_litellm": rps / (len(litellm.whole) / litellm.seconds) if litellm and litellm.whole else None,
            "cpu_ms_per_request": timings.cpu_seconds * 1000 / max(1, len(timings.whole) + timings.errors),
            "cores": len(os.sched_getaffinity(0)),
            "load_before": os.getloadavg()[0],
        }
        rows.append(row)
        times = f"{row['times_litellm']:.1f}" if row["times_litellm"] and load == "flat out" else ""
        added = (f"{row['added_p50_ms']:+.2f}", f"{row['added_p99_ms']:+.2f}") if load == "open loop" else ("", "")
        cells = (load, "stream" if stream else "whole", way, f"{rps:,.0f}", f"{p50:.2f}", f"{p99:.2f}", *added)
        table.add_row(*cells, f"{row['cpu_ms_per_request']:.2f}", times, str(timings.errors))
    Console().print(table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second, open loop")
    parser.add_argument("--litellm-rate", type=float, default=20.0, help="the same for LiteLLM, which 200 would drown")
    parser.add_argument("--connections", type=int, default=32, help="flat out")
    parser.add_argument("--litellm", default="install", help="install, the python of an environment that has it, none")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/gateway.json"))
    parser.add_argument("--upstream", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        return uvloop.run(upstream(options.upstream))
    ports = dict(zip(("direct", "popi", "LiteLLM"), free_ports(3), strict=True))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        me = str(Path(__file__).resolve())
        litellm = litellm_command(options.litellm, folder, ports)
        behind = [sys.executable, me, "--upstream", str(ports["direct"])]
        start = "from popi.cli import main; main()"
        serve = [sys.executable, "-c", start, "serve", "--upstream", f"http://127.0.0.1:{ports['direct']}"]
        serve += ["--port", str(ports["popi"]), "--store", f"sqlite:///{folder}/popi.db"]
        pids = {}
        with ExitStack() as running:
            for way, command, env, path in (
                ("direct", behind, {}, "/"),
                ("popi", serve, {"POPI_ADMIN_KEY": KEY}, "/readyz"),
                ("LiteLLM", litellm, {"LITELLM_LOG": "ERROR"}, "/health/liveliness"),
            ):
                if command is None:
                    del ports[way]
                else:
                    pids[way] = running.enter_context(process(command, env, ports[way], path, folder / f"{way}.log"))
            put_summaries(ports["popi"])
            found = uvloop.run(measure(ports, pids, options))
    rows = report(found, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
