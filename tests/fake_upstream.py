"""A model API of our own on this machine: OpenAI, Anthropic and vLLM's extras, with faults on demand.

Log-probs are computed by a real local model, so that what popi reads off the wire can be compared to it.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-SECRET-0123456789"
USAGE = (100, 10)
"""Input and output tokens that every chat answer reports."""


@dataclass
class Received:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    time: float


@dataclass
class FakeUpstream:
    """The server.

    Attributes:
        faults: what the next requests meet instead of an answer, in order; None answers.
        answer: conversation -> text.
        wants_key: refuse requests without KEY.
        delay: seconds that every answer takes.
        local: the LocalModel behind /tokenize and /v1/completions.
        change: applied to every answer before it is sent.
        pages: what is there to GET, by path.
    """

    faults: list["Fault | None"] = field(default_factory=list)
    answer: Callable[[list[dict[str, str]]], str] = lambda messages: "likes short answers."
    wants_key: bool = False
    delay: float = 0.0
    local: Any = None
    change: Callable[[dict[str, Any]], Any] = lambda answer: answer
    pages: dict[str, Any] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    url: str = ""
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def reply(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request; None where there is no such path."""
        if path == "/v1/chat/completions":
            message = {"role": "assistant", "content": self.answer(body["messages"])}
            return {
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": USAGE[0], "completion_tokens": USAGE[1]},
            }
        if path == "/v1/messages":
            text = self.answer(body["messages"])
            return {
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": USAGE[0], "output_tokens": USAGE[1]},
            }
        if self.local is None:
            return None
        with self.lock:
            if path == "/tokenize":
                return {"tokens": self._ids(body), "max_model_len": 2048}
            if path == "/detokenize":
                return {"prompt": self.local.tokenizer.decode(body["tokens"])}
            if path == "/v1/completions" and body.get("prompt_logprobs") is not None:
                return self._prompt_logprobs(body["prompt"])
        return None

    def _ids(self, body: dict[str, Any]) -> list[int]:
        assert body["add_special_tokens"] is False
        if "messages" in body:
            return self.local.encode_chat(body["messages"], add_generation_prompt=body["add_generation_prompt"])
        return self.local._encode(body["prompt"])

    def _prompt_logprobs(self, ids: list[int]) -> dict[str, Any]:
        import torch

        with torch.no_grad():
            logits = self.local.model(input_ids=torch.tensor([ids])).logits[0]
        logps = torch.log_softmax(logits, -1)
        rows: list[Any] = [None]
        for position in range(1, len(ids)):
            token = ids[position]
            rows.append({str(token): {"logprob": float(logps[position - 1, token]), "rank": 1, "decoded_token": "x"}})
        return {
            "choices": [{"index": 0, "text": "x", "prompt_logprobs": rows, "prompt_token_ids": ids}],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": 1},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.counted = False
        page = self.server.fake.pages.get(self.path)
        self.send(404 if page is None else 200, page)

    def do_POST(self) -> None:
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.received.append(Received(self.path, dict(self.headers), body, time.monotonic()))
            fake.under_way += 1
            fake.most_under_way = max(fake.most_under_way, fake.under_way)
            fault = fake.faults.pop(0) if fake.faults else None
        self.counted = True
        try:
            if fault is not None:
                fault(self)
            else:
                fake.closing.wait(fake.delay)
                self._answer(body)
        finally:
            self.leave()

    def leave(self) -> None:
        with self.server.fake.lock:
            self.server.fake.under_way -= self.counted
            self.counted = False

    def _answer(self, body: dict[str, Any]) -> None:
        fake = self.server.fake
        key = self.headers.get("x-api-key") or self.headers.get("Authorization", "").removeprefix("Bearer ")
        if fake.wants_key and key != KEY:
            return self.send(401, {"error": {"message": f"Incorrect API key provided: {key}"}})
        answer = fake.reply(self.path, body)
        if answer is None:
            return self.send(404, {"detail": "Not Found"})
        self.send(200, fake.change(answer))

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.leave()  # before the client, having read the answer, can send its next request
        self.send_response_only(status)
        named = {"Content-Length": str(len(content)), "Date": self.date_time_string()} | (headers or {})
        for name, value in named.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


Fault = Callable[[Handler], None]


def status(code: int, message: str = "not now", **headers: str) -> Fault:
    """An error answer; underscores in headers' names stand for dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.send(code, {"error": {"message": message}}, named)


def content(body: bytes) -> Fault:
    """200 with this body."""
    return lambda handler: handler.send(200, body)


def hang(handler: Handler) -> None:
    """No answer, until the test is over."""
    handler.server.fake.closing.wait(30)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then, never whole."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.close_connection = True
    while not handler.server.fake.closing.wait(0.02):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return


def cut(handler: Handler) -> None:
    """Half an answer, and the connection is closed."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    fake: FakeUpstream

    def handle_error(self, *_: Any) -> None:
        pass  # clients that went away are what is being tested


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[FakeUpstream]:
    """A server for as long as the block lasts."""
    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        # The handshake is the handler's: what fails there must not stop the others.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.fake = FakeUpstream(url=f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.fake
    finally:
        server.fake.closing.set()
        server.shutdown()
        server.server_close()
