"""Every refusal on a model API's path is in that API's own form, whoever makes it, and readable by an allowed page."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from serving_client import ADMIN

from popi.serving import connections as module
from popi.serving.app import Gateway
from popi.serving.connections import uvicorn_settings
from popi.serving.keys import create
from popi.serving.proxy.refusals import Dialect
from popi.serving.proxy.settings import ProxySettings
from popi.serving.settings import GatewaySettings, ServerSettings
from popi.serving.store.database import Database

ORIGIN = "https://app.example"
CHAT = b'{"model":"m","messages":[]}'
DIALECTS: list[Dialect] = ["openai", "anthropic"]


class Running:
    """A gateway on a real socket."""

    def __init__(self, port: int, app: str, user: str) -> None:
        self.port, self.keys = port, {"app": app, "user": user, "admin": ADMIN}

    def send(self, *pieces: bytes) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of what is answered."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
            for piece in pieces:
                client.sendall(piece)
            answer = b""
            while b"\r\n\r\n" not in answer and (got := client.recv(2**16)):
                answer += got
            head, _, body = answer.partition(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            while len(body) < int(headers["content-length"]) and (got := client.recv(2**16)):
                body += got
        return int(status.split()[1]), headers, json.loads(body)


@contextmanager
def running(folder: Path, server: ServerSettings, **proxy: Any) -> Iterator[Running]:
    database = Database.open(f"sqlite:///{folder}/popi.db")
    settings = GatewaySettings(server=server, proxy=ProxySettings(**{"upstream": "http://127.0.0.1:9"} | proxy))
    gateway = Gateway(database, settings, None, ADMIN)
    config = uvicorn.Config(gateway, port=0, log_level="critical", lifespan="on", **uvicorn_settings(server))
    uvicorn_server = uvicorn.Server(config)
    thread = threading.Thread(target=uvicorn_server.run, daemon=True)
    thread.start()
    while not uvicorn_server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    app, user = create(database, "app", "acme")[0], create(database, "user", "acme", "ada")[0]
    try:
        yield Running(uvicorn_server.servers[0].sockets[0].getsockname()[1], app, user)
    finally:
        uvicorn_server.should_exit = uvicorn_server.force_exit = True
        thread.join(10)
        database.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    bounds = ServerSettings(header_bytes=4096, cors_origins=(ORIGIN,))
    with running(tmp_path_factory.mktemp("store"), bounds, max_body_bytes=2**16, other_paths="admin") as started:
        yield started


def request(dialect: Dialect, what: str = "", **more: Any) -> bytes:
    """A chat, but for `what`: of its method, path, key, headers and body."""
    path = "/v1/messages" if dialect == "anthropic" else "/v1/chat/completions"
    method, body = more.get("method", "POST"), more.get("body", CHAT)
    lines = [f"{method} {more.get('path', path)} {more.get('version', 'HTTP/1.1')}", f"origin: {ORIGIN}"]
    lines += ["anthropic-version: 2023-06-01"] if dialect == "anthropic" else []
    lines += ["host: x"]  # the parser tells of a header once the next has begun
    lines += [f"authorization: Bearer {more['key']}"] if "key" in more else []
    lines += [what] if what else []
    lines += [f"content-length: {more.get('length', len(body))}"] if body is not None else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def checked(got: tuple[int, dict[str, str], Any], dialect: Dialect) -> tuple[int, str]:
    """The status of a refusal, and its code (Anthropic's: its type)."""
    status, headers, body = got
    assert headers["content-type"] == "application/json", body
    assert headers["access-control-allow-origin"] == ORIGIN and "origin" in headers["vary"].lower()
    error = body["error"]
    assert error["message"] and isinstance(error["message"], str)
    if dialect == "anthropic":
        assert body["type"] == "error" and set(error) == {"type", "message"}
        return status, error["type"]
    assert set(body) == {"error"} and set(error) == {"message", "type", "param", "code"}
    return status, error["code"]


BELOW: dict[str, tuple[int, str, str]] = {
    "bad line": (400, "bad_request", "invalid_request_error"),
    "two lengths": (400, "bad_request", "invalid_request_error"),
    "many headers": (431, "headers", "request_too_large"),
    "long headers": (431, "headers", "request_too_large"),
    "CONNECT": (405, "no_such_method", "invalid_request_error"),
    "TRACE": (405, "no_such_method", "invalid_request_error"),
    "HTTP/2.0": (505, "http_version", "invalid_request_error"),
    "amid the body": (400, "bad_request", "invalid_request_error"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("case", BELOW)
def test_refused_below_the_gateway(gateway: Running, case: str, dialect: Dialect) -> None:
    status, code, kind = BELOW[case]
    chunks = request(dialect, "transfer-encoding: chunked", body=None)
    sent = {
        "bad line": lambda: request(dialect, "bad line"),
        "two lengths": lambda: request(dialect, "transfer-encoding: chunked"),
        "many headers": lambda: request(dialect, "\r\n".join(["a: b"] * 101)),
        "long headers": lambda: request(dialect, "a: " + "b" * 5000),
        "CONNECT": lambda: request(dialect, method="CONNECT", path="other:443", body=None),
        "TRACE": lambda: request(dialect, method="TRACE"),
        "HTTP/2.0": lambda: request(dialect, version="HTTP/2.0"),
        "amid the body": lambda: chunks + b"1\r\na\r\nnot a size\r\n",
    }[case]
    assert checked(gateway.send(sent()), dialect) == (status, kind if dialect == "anthropic" else code)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("code", "kind", "status", "what", "more"),
    [
        ("no_such_path", "not_found_error", 404, "", {"path": "/v1"}),
        ("no_such_path", "not_found_error", 404, "", {"path": "/v1%2Ffiles"}),
        ("path", "invalid_request_error", 400, "", {"path": "/v1/batches/../files"}),
        ("not_authenticated", "authentication_error", 401, "", {}),
        ("not_authenticated", "authentication_error", 401, "", {"key": "popi_wrong"}),
        ("path_not_allowed", "permission_error", 403, "", {"key": "user", "path": "/v1/batches"}),
        ("not_allowed", "permission_error", 403, "x-popi-tenant: other", {"key": "app"}),
        ("ambiguous_header", "invalid_request_error", 400, "x-popi-user: a\r\nx-popi-user: b", {"key": "app"}),
        ("header_name", "invalid_request_error", 400, "x_popi_user: a", {"key": "app"}),
        ("body_json", "invalid_request_error", 400, "", {"key": "app", "body": b"{"}),
        ("body_too_long", "request_too_large", 413, "", {"key": "app", "length": 2**17}),
        ("content_encoding", "invalid_request_error", 415, "content-encoding: br", {"key": "app"}),
        ("upstream_unreachable", "api_error", 502, "", {"key": "app"}),
        ("upstream_unreachable", "api_error", 502, "", {"key": "admin", "method": "PATCH"}),
    ],
)
def test_refused_by_the_gateway(
    gateway: Running, dialect: Dialect, code: str, kind: str, status: int, what: str, more: dict[str, Any]
) -> None:
    given = more | ({"key": gateway.keys.get(more["key"], more["key"])} if "key" in more else {})
    got = checked(gateway.send(request(dialect, what, **given)), dialect)
    assert got == (status, kind if dialect == "anthropic" else code)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_who_takes_too_long(tmp_path: Path, dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.02)
    with running(tmp_path, ServerSettings(header_timeout_s=0.2, stall_timeout_s=0.2, cors_origins=("*",))) as gateway:
        head = request(dialect, body=None)[:-2]
        for sent in (head, request(dialect, length=100, key=gateway.keys["app"])):
            status, headers, body = gateway.send(sent)
            headers["vary"] = "origin"
            assert checked((status, headers, body), dialect)[0] == 408


def test_too_many_connections_are_told_before_a_request_is_there(tmp_path: Path) -> None:
    with running(tmp_path, ServerSettings(connections_per_address=1)) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port)) as first:
            first.sendall(request("openai", "expect: 100-continue", length=100, key=gateway.keys["app"]))
            assert first.recv(100).startswith(b"HTTP/1.1 100 ")  # it is busy now, and gives way to nobody
            status, headers, body = gateway.send(b"")
    assert (status, body["error"]["code"], headers["retry-after"]) == (503, "too_many_connections", "1")


def test_a_store_that_fails_and_a_fault_of_ours(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from popi.serving.keys import KeyRing
    from popi.serving.proxy import request_body as proxied

    def fail(*_: Any) -> Any:
        raise RuntimeError("the disk is on fire")

    for dialect in DIALECTS:
        with monkeypatch.context() as patch:
            patch.setattr(KeyRing, "cached", fail)
            got = checked(gateway.send(request(dialect, key=gateway.keys["app"])), dialect)
            assert got == (503, "api_error" if dialect == "anthropic" else "keys_unavailable")
        with monkeypatch.context() as patch:
            patch.setattr(proxied, "user_of", fail)
            got = checked(gateway.send(request(dialect, key=gateway.keys["app"])), dialect)
            assert got == (500, "api_error" if dialect == "anthropic" else "gateway_fault")


def test_too_many(tmp_path: Path) -> None:
    with running(tmp_path, ServerSettings(cors_origins=(ORIGIN,)), requests_per_s=0.001, burst=1) as gateway:
        for dialect in DIALECTS:
            key = gateway.keys["app" if dialect == "openai" else "user"]
            gateway.send(request(dialect, key=key))
            status, headers, body = gateway.send(request(dialect, key=key))
            assert int(headers["retry-after"]) > 1
            assert checked((status, headers, body), dialect)[0] == 429
