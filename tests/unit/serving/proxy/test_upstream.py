"""Requests with whole bodies, as they stand on the upstream's connections."""

import asyncio
import http.client
import time
from collections.abc import Iterator

import pytest
from unit.serving.proxy.recording import (
    APP_KEY,
    Received,
    RecordingUpstream,
    RunningGateway,
    fixed,
    message,
    running_gateway,
    until,
)

CHAT = b'{"messages":[{"role":"user","content":"hi"}]}'


def test_path_query_and_host(upstream: RecordingUpstream) -> None:
    with running_gateway(upstream, upstream=f"{upstream.url}/below/it/v1") as gateway:
        gateway.call("/v1/chat/completions?a=%2F&b=%C3%A9;c", CHAT)
        gateway.call("/v1/messages", CHAT)
    targets = ["/below/it/v1/chat/completions?a=%2F&b=%C3%A9;c", "/below/it/v1/messages"]
    assert [got.target for got in upstream.received] == targets
    assert upstream.last.header("host") == upstream.url.removeprefix("http://")


def test_a_connection_is_used_again(upstream: RecordingUpstream) -> None:
    with running_gateway(upstream) as gateway:
        for _ in range(3):
            assert gateway.call(body=CHAT).status == 200
        assert upstream.connections == 1

        async def last_answer(_: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(message(b"{}", "200 OK", "Connection: close"))
            writer.close()

        upstream.reply = last_answer
        assert gateway.call(body=CHAT).status == 200
        upstream.reply = fixed(b"{}")
        assert gateway.call(body=CHAT).status == 200
        assert upstream.connections == 2


def test_one_that_the_upstream_closed_meanwhile_is_not(upstream: RecordingUpstream) -> None:
    async def then_close(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(message(b"{}"))
        writer.close()

    with running_gateway(upstream) as gateway:
        for n in range(1, 4):
            upstream.reply = then_close
            assert gateway.call(body=CHAT).status == 200 and upstream.connections == n
            time.sleep(0.2)  # until the gateway has seen it, too


def test_an_answer_that_was_not_read_to_its_end_takes_its_connection_with_it(upstream: RecordingUpstream) -> None:
    async def much(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello")
        await asyncio.sleep(0.3)
        writer.write(b"x" * 995)

    with running_gateway(upstream, read_timeout_s=0.1) as gateway:
        upstream.reply = much
        with pytest.raises(Exception, match="IncompleteRead"):
            gateway.call(body=CHAT)
        until(lambda: upstream.closed == 1)
        upstream.reply = fixed(b"{}")
        assert gateway.call(body=CHAT).body == b"{}" and upstream.connections == 2


def test_answers_that_only_announce_one_are_passed_over(gateway: RunningGateway) -> None:
    async def hints(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await asyncio.sleep(0.05)
        writer.write(message(b"{}", "201 Created"))

    gateway.upstream.reply = hints
    answer = gateway.call(body=CHAT)
    assert (answer.status, answer.body, answer.header("link")) == (201, b"{}", None)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_answers_without_a_body(gateway: RunningGateway, status: str, caplog: pytest.LogCaptureFixture) -> None:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\nX-A: 1\r\nContent-Length: 5\r\n\r\n".encode())

    gateway.upstream.reply = reply
    for _ in range(2):
        answer = gateway.call(body=CHAT)
        assert (answer.status, answer.body, answer.header("x-a")) == (int(status[:3]), b"", "1")
    assert not any("fault" in record.getMessage() for record in caplog.records)


def test_an_answer_that_ends_with_its_connection(gateway: RunningGateway) -> None:
    async def old(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhello")
        await asyncio.sleep(0.05)
        writer.write(b" world")
        writer.close()

    gateway.upstream.reply = old
    assert gateway.call(body=CHAT).body == b"hello world"


def test_the_time_for_an_answer_begins_once_the_request_is_written(upstream: RecordingUpstream) -> None:
    """An upload may take longer than the upstream may keep silent."""

    def slowly() -> Iterator[bytes]:
        for _ in range(5):
            time.sleep(0.15)
            yield b"piece"

    with running_gateway(upstream, read_timeout_s=0.4) as gateway:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
        headers = {"Authorization": f"Bearer {APP_KEY}", "Transfer-Encoding": "chunked"}
        connection.request("POST", "/v1/files", slowly(), headers, encode_chunked=True)
        assert connection.getresponse().status == 200
        connection.close()
    assert upstream.last.body == b"piece" * 5
