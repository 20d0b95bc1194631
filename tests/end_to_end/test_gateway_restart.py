"""SIGTERM to a real gateway: what clients see, when new ones are refused, and how responses in progress end."""

import asyncio
import http.client
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from end_to_end.gateway_process import ADMIN, GatewayProcess, running
from unit.serving.proxy.recording import Received, RecordingUpstream, recording_upstream, until

pytestmark = pytest.mark.timed

CHAT = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
PIECES = 20


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with recording_upstream() as server:
        yield server


def start(folder: Path, upstream: RecordingUpstream, server: str) -> Any:
    (folder / "gateway.toml").write_text(f"[server]\n{server}\n")
    return running(f"sqlite:///{folder}/popi.db", "--config", str(folder / "gateway.toml"), upstream=upstream.url)


def connect(gateway: GatewayProcess) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=30)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> Any:
    connection.request(method, path, body, {"authorization": f"Bearer {ADMIN}"})
    return connection.getresponse()


class Chat(threading.Thread):
    """A chat in a thread: `read` so far, and `cut` if its answer ended early."""

    def __init__(self, gateway: GatewayProcess) -> None:
        super().__init__(daemon=True)
        self.connection, self.read, self.cut, self.status = connect(gateway), b"", False, 0
        self.start()

    def run(self) -> None:
        try:
            reply = ask(self.connection, "POST", "/v1/chat/completions", CHAT)
            self.status = reply.status
            while piece := reply.read1():
                self.read += piece
        except (http.client.HTTPException, ConnectionError):
            self.cut = True


class Stream:
    """A reply in pieces, which continues on demand."""

    def __init__(self, upstream: RecordingUpstream) -> None:
        self.goes_on = threading.Event()
        upstream.reply = self.reply

    async def reply(self, _: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(PIECES):
            while number == 1 and not self.goes_on.is_set():
                await asyncio.sleep(0.01)
            writer.write(b"8\r\ndata: %02d\r\n" % number)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")


def refused(gateway: GatewayProcess) -> bool:
    host, port = gateway.url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_restart_cuts_no_answer(tmp_path: Path, upstream: RecordingUpstream) -> None:
    stream = Stream(upstream)
    with start(tmp_path, upstream, "drain_timeout_s = 60\nshutdown_delay_s = 5") as gateway:
        chat, connection = Chat(gateway), connect(gateway)
        assert ask(connection, "GET", "/readyz").read() and connection.sock is not None
        until(lambda: chat.read != b"", 20)
        gateway.process.send_signal(signal.SIGTERM)

        def ends() -> bool:
            reply = ask(connect(gateway), "GET", "/readyz")
            return reply.status == 503 and json.loads(reply.read())["error"]["code"] == "shutting_down"

        until(ends, 3)
        # A load balancer that has not noticed yet: new and old connections are served once more each.
        for one in (connect(gateway), connection):
            reply = ask(one, "GET", "/healthz")
            assert (reply.status, reply.read(), reply.getheader("connection")) == (200, b'{"status":"ok"}', "close")
        late = Chat(gateway)
        until(lambda: late.read != b"", 20)
        until(lambda: refused(gateway), 20)
        assert gateway.process.poll() is None and chat.is_alive() and late.is_alive()
        stream.goes_on.set()
        for one in (chat, late):
            one.join(20)
            assert not one.cut and one.read.count(b"data: ") == PIECES
        gateway.process.wait(20)
        assert not any("Traceback" in line for line in gateway.lines)


def test_what_takes_longer_is_cut_and_who_has_no_answer_yet_is_told(
    tmp_path: Path, upstream: RecordingUpstream
) -> None:
    stream = Stream(upstream)

    async def never(_: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    with start(tmp_path, upstream, "drain_timeout_s = 1") as gateway:
        chat = Chat(gateway)
        until(lambda: chat.read != b"", 20)
        upstream.reply = never
        connection = connect(gateway)
        connection.request("POST", "/v1/messages", CHAT, {"x-api-key": ADMIN})
        until(lambda: len(upstream.received) == 2, 20)
        gateway.process.send_signal(signal.SIGTERM)
        reply = connection.getresponse()
        error = json.loads(reply.read())
        assert (reply.status, error["type"], error["error"]["type"]) == (503, "error", "api_error")
        chat.join(20)
        assert chat.cut and chat.status == 200 and chat.read.count(b"data: ") == 1
        gateway.process.wait(20)
    assert not stream.goes_on.is_set()
