"""Compare HTTP clients for the gateway's requests: a bare uvicorn relay with each, in turns, on the same cores.

python benchmarks/http_clients.py [--seconds S] [--rounds N]

The upstream answers immediately. There are two loads: 200 requests per second, and 32 connections flat out.
"""

import argparse
import sys
import tempfile
from collections.abc import AsyncIterable, Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import httpx2
import uvicorn
import uvloop
from load.client import Client, Timings
from load.servers import cpu_seconds, free_ports, process
from load.upstream import upstream

from popi.serving.proxy.routes import UVICORN

OF_THE_CONNECTION = (b"host", b"content-length", b"transfer-encoding", b"connection")
Raw = tuple[bytes, bytes]


class Relay:
    """Forwards whole requests and streams answers, with unchanged headers."""

    def __init__(self, client: str, port: int) -> None:
        self.send_on, self.port, self.client = getattr(self, client), port, None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = [header for header in scope["headers"] if header[0] not in OF_THE_CONNECTION]
        url = f"http://127.0.0.1:{self.port}{scope['path']}"

        async def answer(status: int, headers: Iterable[Raw], pieces: AsyncIterable[bytes]) -> None:
            passed = [(k.lower(), v) for k, v in headers if k.lower() not in OF_THE_CONNECTION[2:]]
            await send({"type": "http.response.start", "status": status, "headers": passed})
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        await self.send_on(scope["method"], url, headers, body, answer)

    async def aiohttp(self, method: str, url: str, headers: list[Raw], body: bytes, answer: Any) -> None:
        self.client = self.client or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
        )
        texts = [(name.decode(), value.decode()) for name, value in headers]
        async with self.client.request(method, url, data=body, headers=texts) as reply:
            await answer(reply.status, reply.raw_headers, reply.content.iter_any())

    async def httpx2(self, method: str, url: str, headers: list[Raw], body: bytes, answer: Any) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self.client = self.client or httpx2.AsyncClient(limits=limits, trust_env=False)
        async with self.client.stream(method, url, content=body, headers=headers) as reply:
            await answer(reply.status_code, reply.headers.raw, reply.aiter_raw())

    async def transport(self, method: str, url: str, headers: list[Raw], body: bytes, answer: Any) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self.client = self.client or httpx2.AsyncHTTPTransport(limits=limits, trust_env=False)
        request = httpx2.Request(method, url, headers=headers, content=body)
        reply = await self.client.handle_async_request(request)
        await answer(reply.status_code, reply.headers.raw, reply.stream)
        await reply.aclose()


async def measure(ports: dict[str, int], pids: dict[str, int], seconds: float, rounds: int) -> None:
    measured: dict[tuple[bool, bool, str], Timings] = {}
    for round_ in range(rounds + 1):  # the first is a warm-up
        for stream, flat_out in ((False, False), (False, True), (True, False), (True, True)):
            for way, port in ports.items():
                timings = measured.setdefault((stream, flat_out, way), Timings()) if round_ else Timings()
                client, began = Client(port, stream, timings), cpu_seconds(pids[way])
                await (client.flat_out(32, seconds) if flat_out else client.open_loop(200, seconds))
                timings.cpu_seconds += cpu_seconds(pids[way]) - began
                for connection in client.free:
                    connection.transport.close()
    print("| Answers | Load | Client | Requests per second | p50, ms | CPU, ms per request | Errors |")
    print("|---|---|---|---|---|---|---|")
    for (stream, flat_out, way), timings in measured.items():
        n, kind = len(timings.whole), ("streamed" if stream else "whole", "flat out" if flat_out else "at a rate")
        figures = f"{n / timings.seconds:,.0f} | {median(timings.whole):.2f} | {timings.cpu_seconds / n * 1000:.2f}"
        print(f"| {kind[0]} | {kind[1]} | {way} | {figures} | {timings.errors} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="per load and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        way, port, upstream_port = options.serve[0], int(options.serve[1]), int(options.serve[2])
        if way == "direct":
            return uvloop.run(upstream(port))
        settings = UVICORN | {"http": "httptools"}
        return uvicorn.run(Relay(way, upstream_port), port=port, lifespan="off", log_level="warning", **settings)
    ways = ("direct", "aiohttp", "httpx2", "transport")
    ports = dict(zip(ways, free_ports(len(ways)), strict=True))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        pids = {}
        for way, port in ports.items():
            command = [sys.executable, __file__, "--serve", way, str(port), str(ports["direct"])]
            pids[way] = running.enter_context(process(command, {}, port, "/", Path(folder) / way))
        uvloop.run(measure(ports, pids, options.seconds, options.rounds))


if __name__ == "__main__":
    main()
