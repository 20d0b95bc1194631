"""An endpoint for webhooks on this machine, that answers as it is told and checks every signature, as receivers would:
with the library of the specification's authors."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, 32 bytes.").decode()


@dataclass
class Got:
    """One request."""

    id: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def told(self) -> tuple[Any, ...]:
        data = self.body["data"]
        return self.body["type"], data["user_id"], data.get("version", data.get("merged_into"))


@dataclass
class Receiver:
    """What came, and what is answered: a status, or None to hang up."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    answer: Callable[[Got], int | None] = lambda got: 204
    wrong: list[str] = field(default_factory=list)

    def told(self) -> list[tuple[Any, ...]]:
        return [one.told for one in self.got]

    def wait(self, number: int) -> list[Got]:
        eventually(lambda: len(self.got) >= number, lambda: f"{number} requests; got {self.told()}")
        assert self.wrong == []
        return self.got


def eventually(true: Callable[[], Any], what: Callable[[], str] = lambda: "") -> None:
    give_up = time.monotonic() + 60
    while not true():
        assert time.monotonic() < give_up, what()
        time.sleep(0.02)


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                Webhook(SECRET).verify(body, headers)
            except WebhookVerificationError as error:
                receiver.wrong.append(repr(error))
            got = Got(headers["webhook-id"], json.loads(body), headers)
            receiver.got.append(got)
            if (status := receiver.answer(got)) is None:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
