"""An upstream that answers every request immediately, and its answers."""

import asyncio
import json
from typing import Any

import httptools

EVENTS = 20

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


class UpstreamConnection(asyncio.Protocol):
    """Answers every request immediately; a stream has one write per event."""

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
