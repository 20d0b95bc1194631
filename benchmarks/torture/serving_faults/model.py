"""A model API that fails on demand: the request's `model` names the fault. Also the model that writes summaries."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

Writer = asyncio.StreamWriter
PIECES = 20
SLOW_S = 2.0
DRIP_S = 0.05


def whole(word: str, anthropic: bool = False) -> bytes:
    """The whole answer to a chat, which repeats the client's word."""
    if anthropic:
        content = {"content": [{"type": "text", "text": word}], "stop_reason": "end_turn"}
        usage = {"input_tokens": 1, "output_tokens": 1}
        return json.dumps({"id": "m", "type": "message", "role": "assistant", **content, "usage": usage}).encode()
    message = {"role": "assistant", "content": word}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def events(word: str) -> list[bytes]:
    """The same as a stream: the word, padding, and the end."""
    choice: dict[str, Any] = {"index": 0, "delta": {"content": word}, "finish_reason": None}
    line = (
        b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
    )
    return [line] + [b'data: {"choices": []}\n\n'] * (PIECES - 2) + [b"data: [DONE]\n\n"]


def head(length: int | None, status: str = "200 OK", kind: str = "application/json") -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{size}\r\n\r\n".encode()


SSE = "text/event-stream"


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


async def ok(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    if not stream:
        body = whole(word, anthropic)
        writer.write(head(len(body)) + body)
        return
    writer.write(head(None, kind=SSE))
    for piece in events(word):
        writer.write(chunk(piece))
        await writer.drain()
    writer.write(b"0\r\n\r\n")


async def slow_first_byte(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    await asyncio.sleep(SLOW_S)
    await ok(writer, word, stream, anthropic)


async def slow_drip(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    if stream:
        writer.write(head(None, kind=SSE))
        for piece in events(word):
            writer.write(chunk(piece))
            await writer.drain()
            await asyncio.sleep(DRIP_S)
        writer.write(b"0\r\n\r\n")
        return
    body = whole(word, anthropic)
    writer.write(head(len(body)))
    for start in range(0, len(body), 10):
        writer.write(body[start : start + 10])
        await writer.drain()
        await asyncio.sleep(DRIP_S)


async def cut(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    if stream:
        writer.write(head(None, kind=SSE) + b"".join(chunk(one) for one in events(word)[:5]))
    else:
        body = whole(word, anthropic)
        writer.write(head(len(body)) + body[: len(body) // 2])
    await _close(writer)


async def cut_hard(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    """As `cut`, with a reset instead of an orderly end."""
    if stream:
        writer.write(head(None, kind=SSE) + b"".join(chunk(one) for one in events(word)[:5]))
    else:
        body = whole(word, anthropic)
        writer.write(head(len(body)) + body[: len(body) // 2])
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.transport.abort()


async def length_too_long(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    body = b"".join(events(word)) if stream else whole(word, anthropic)
    writer.write(head(len(body) + 100, kind=SSE if stream else "application/json") + body)
    await _close(writer)


async def length_too_short(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    """The rest would look like the beginning of the next answer on this connection, which stays open."""
    body = b"".join(events(word)) if stream else whole(word, anthropic)
    forged = whole("FORGED", anthropic)
    body += head(len(forged)) + forged
    writer.write(head(len(body) - len(head(len(forged)) + forged) - 10, kind=SSE if stream else "application/json"))
    writer.write(body)


async def bad_chunk(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    kind = SSE if stream else "application/json"
    body = b"".join(events(word)) if stream else whole(word, anthropic)
    writer.write(head(None, kind=kind) + chunk(body[: len(body) // 2]) + b"zz\r\n" + body[len(body) // 2 :] + b"\r\n")


async def invalid_json(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    body = b"data: {not json\n\nnonsense\n\n" if stream else b'{"choices": [{"message": '
    writer.write(head(len(body), kind=SSE if stream else "application/json") + body)


async def error_500(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    body = b'{"error": {"message": "the model is out of order"}}'
    writer.write(head(len(body), "500 Internal Server Error") + body)


async def error_html(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    body = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
    writer.write(head(len(body), "502 Bad Gateway", "text/html") + body)


async def no_answer(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    await _close(writer)


async def not_http(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    await _close(writer)


async def endless_head(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    with suppress(ConnectionError):
        for number in range(100_000):
            writer.write(b"x-%d: %s\r\n" % (number, b"y" * 1000))
            await writer.drain()


async def writes(writer: Writer, word: str, stream: bool, anthropic: bool) -> None:
    """A summary."""
    body = whole("Likes short answers.\nWrites in English.", anthropic)
    writer.write(head(len(body)) + body)


async def _close(writer: Writer) -> None:
    with suppress(ConnectionError):
        await writer.drain()
    writer.close()


Behaviour = Callable[[Writer, str, bool, bool], Awaitable[None]]
FAULTS: dict[str, Behaviour] = {
    one.__name__: one
    for one in (
        slow_first_byte,
        slow_drip,
        cut,
        cut_hard,
        length_too_long,
        length_too_short,
        bad_chunk,
        invalid_json,
        error_500,
        error_html,
        no_answer,
        not_http,
        endless_head,
    )
}


class ModelServer:
    """The server, in the running event loop.

    Attributes:
        writer: how the model that writes summaries behaves.
        received: number of requests.
        received_by_writer: number of those for summaries.
    """

    def __init__(self) -> None:
        self.writer: Behaviour = writes
        self.port = 0
        self.received = self.received_by_writer = 0
        self._server: asyncio.Server | None = None
        self._open: set[Writer] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**22)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on, and cut those that are open."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                writer.transport.abort()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self._open.add(writer)
        try:
            while not writer.is_closing():
                lines = await reader.readuntil(b"\r\n\r\n")
                fields = dict(
                    (name.strip().lower(), value.strip())
                    for name, _, value in (line.partition(b":") for line in lines.split(b"\r\n")[1:])
                )
                body = json.loads(await reader.readexactly(int(fields.get(b"content-length", b"0"))) or b"{}")
                anthropic = lines.split(b" ", 2)[1].startswith(b"/v1/messages")
                await self._answer(writer, body, anthropic)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, writer: Writer, body: dict[str, Any], anthropic: bool) -> None:
        self.received += 1
        name = body.get("model", "")
        if name == "writer":
            self.received_by_writer += 1
            await self.writer(writer, "", False, anthropic)
            return
        content = body.get("messages") or [{}]
        word = str(content[-1].get("content", ""))
        await FAULTS.get(name, ok)(writer, word, bool(body.get("stream")), anthropic)
