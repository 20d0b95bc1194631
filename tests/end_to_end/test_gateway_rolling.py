"""Gateways behind a load balancer are replaced one by one under load: no request fails, no stream is cut."""

import asyncio
import json
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from end_to_end.gateway_process import ADMIN, GatewayProcess, start
from haproxy import balancer, needs_balancer
from serving_client import empty_store, without_postgres
from unit.serving.proxy.recording import Received, RecordingUpstream, message, recording_upstream

from popi.serving.server import free_port

pytestmark = [pytest.mark.slow, needs_balancer, without_postgres]

HEADERS = {"authorization": f"Bearer {ADMIN}"}
GATEWAYS = 2
CHATS, STREAMS = 6, 6
PIECES, PIECE_SECONDS = 30, 0.1
NOTICE_S, DRAIN_S = 3.0, 60


async def reply(request: Received, writer: asyncio.StreamWriter) -> None:
    """Answer at once, or stream for three seconds."""
    if not json.loads(request.body)["stream"]:
        writer.write(message(b'{"choices":[]}', "200 OK", "Content-Type: application/json"))
        return
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for number in range(PIECES):
        writer.write(b"a\r\ndata: %02d\n\n\r\n" % number)
        await writer.drain()
        await asyncio.sleep(PIECE_SECONDS)
    writer.write(b"0\r\n\r\n")


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with recording_upstream() as server:
        server.reply = reply
        yield server


@dataclass
class Load:
    """Clients that send their next request as soon as they have an answer, and never repeat one."""

    url: str
    stop: threading.Event = field(default_factory=threading.Event)
    seconds: list[float] = field(default_factory=list)
    streams: int = 0
    failed: list[str] = field(default_factory=list)

    async def _chats(self, number: int, stream: bool) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "user": f"u{number}"}
        async with httpx2.AsyncClient(base_url=self.url, headers=HEADERS, timeout=120) as client:
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    answer = await client.post("/v1/chat/completions", json=body | {"stream": stream})
                except httpx2.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                if answer.status_code != 200 or (stream and answer.text.count("data: ") != PIECES):
                    self.failed.append(f"{answer.status_code}: {answer.text[-200:]}")
                elif answer.headers.get("x-popi-personalized") != "applied":
                    self.failed.append(f"not personalised: {answer.headers}")
                elif stream:
                    self.streams += 1
                else:
                    self.seconds.append(time.monotonic() - began)
                await asyncio.sleep(0.02)  # the test's own process shares the cores

    async def _all(self) -> None:
        await asyncio.gather(*(self._chats(n, stream=n < STREAMS) for n in range(CHATS + STREAMS)))

    def run(self) -> None:
        asyncio.run(self._all())


def test_a_rolling_restart_fails_no_request(tmp_path: Path, upstream: RecordingUpstream) -> None:
    server = f"[server]\nshutdown_delay_s = {NOTICE_S}\ndrain_timeout_s = {DRAIN_S}\n"
    (tmp_path / "gateway.toml").write_text(f"{server}[proxy]\nsummary_timeout_ms = 20000\n")
    ports = [free_port() for _ in range(GATEWAYS)]

    def begin(port: int) -> GatewayProcess:
        return start(store, "--config", str(tmp_path / "gateway.toml"), "--port", str(port), upstream=upstream.url)

    with empty_store("postgresql", tmp_path) as store, balancer(tmp_path, ports) as url:
        gateways = [begin(port) for port in ports]
        load = Load(url)
        client = httpx2.Client(base_url=gateways[0].url, headers=HEADERS, timeout=60)
        for number in range(CHATS + STREAMS):
            put = client.put(f"/users/u{number}/summary", json={"text": "Likes tea."}, headers={"if-match": "0"})
            assert put.status_code == 200
        client.close()
        thread = threading.Thread(target=load.run)
        try:
            give_up = time.monotonic() + 60
            while not all(ready(one.url) for one in gateways):
                assert time.monotonic() < give_up
                time.sleep(0.1)
            time.sleep(1)  # the balancer has found both
            thread.start()
            ending: list[float] = []
            for n, port in enumerate(ports):
                served(load, 50, 2)
                began = time.monotonic()
                gateways[n].process.send_signal(signal.SIGTERM)
                code = gateways[n].process.wait(NOTICE_S + DRAIN_S + 30)
                assert code in (0, -signal.SIGTERM)  # uvicorn raises the signal again at its end
                ending.append(time.monotonic() - began)
                gateways[n] = begin(port)
                served(load, 50, 2)
            served(load, 200, 2 * STREAMS)
        finally:
            load.stop.set()
            if thread.ident is not None:
                thread.join(60)
            for gateway in gateways:
                gateway.kill()
    assert load.failed == []
    spread = statistics.quantiles(load.seconds, n=100)
    print(
        f"{len(load.seconds)} chats (p50 {spread[49] * 1000:.0f} ms, p99 {spread[98] * 1000:.0f} ms), {load.streams} "
        f"streams, none failed; each process took {max(ending):.1f} s or less from SIGTERM to its end"
    )
    assert max(ending) < NOTICE_S + DRAIN_S


def served(load: Load, chats: int, streams: int) -> None:
    """Wait until so many more requests have been answered."""
    goal, give_up = (len(load.seconds) + chats, load.streams + streams), time.monotonic() + 120
    while (len(load.seconds) < goal[0] or load.streams < goal[1]) and not load.failed:
        assert time.monotonic() < give_up
        time.sleep(0.05)


def ready(url: str) -> bool:
    return httpx2.get(f"{url}/readyz", timeout=30).status_code == 200
