"""Requests that name a user in ways that a less strict server would accept: no plain id goes upstream."""

import gzip
import json
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from end_to_end.gateway_process import ADMIN, GatewayProcess, running
from unit.serving.proxy.recording import RecordingUpstream, recording_upstream

CHAT = "/v1/chat/completions"
gzipped = partial(gzip.compress, mtime=0)  # test names must be the same in every worker
BODY = b'{"messages":[{"role":"user","content":"hi"}],"user":"bob-the-user"}'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, RecordingUpstream]]:
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/popi.db"
    with recording_upstream() as upstream, running(store, upstream=upstream.url) as gateway:
        yield gateway, upstream


def status_of(stack: tuple[GatewayProcess, RecordingUpstream], path: str, body: bytes = BODY, *headers: str) -> int:
    """The status of a hand-written request, after checking that the upstream saw no plain id."""
    gateway, upstream = stack
    upstream.received.clear()
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {ADMIN}", "Connection: close", *headers]
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=30) as client:
        client.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    seen = b"".join(got.body + str(got.headers).encode() for got in upstream.received)
    assert b"bob-the-user" not in seen and b"bob-the-user".decode().encode("utf-16-le") not in seen
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        "/v1//chat/completions",
        "/v1/chat/completions/",
        "/v1/chat//completions//",
        "/v1/Chat/Completions",
        "/v1/chat/completion%73",
        "/v1/chat/completion%2573",
        "/v1/chat%2Fcompletions",
        "/%76%31/chat/completions",
        "/v1/chat/completions;version=1",
        "/v1/chat/completions%20",
        "/v1/chat/completions?x=1",
        "http://elsewhere/v1/chat/completions",
    ],
)
def test_paths_that_are_taken_for_a_chat(stack: Any, path: str) -> None:
    assert status_of(stack, path) == 200
    assert stack[1].last.target.partition("?")[0] == CHAT


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/V1/chat/completions",
        "/v1;x/chat/completions",
        "/v1/./chat/completions",
        "/x/../v1/models",
    ],
)
def test_paths_that_go_nowhere(stack: Any, path: str) -> None:
    assert status_of(stack, path) in (400, 404)
    assert stack[1].received == []


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (BODY + b"{}", []),
        (BODY + b"\0", []),
        (b'{"user":"ann",' + BODY[1:], []),
        (BODY.replace(b'"user":"bob', b'"User":"bob'), []),
        (BODY.replace(b'"user":"bob', '"u\u017fer":"bob'.encode()), []),
        (BODY.replace(b'"user":"bob-the-user"', b'"metadata":{"User_Id":"bob-the-user"}'), []),
        (BODY.decode().encode("utf-16"), []),
        (BODY.decode().encode("utf-16-le"), []),
        (BODY.decode().encode("utf-32-be"), []),
        (BODY, ["Content-Encoding: gzip"]),
        (gzipped(gzipped(BODY)), ["Content-Encoding: gzip", "Content-Encoding: gzip"]),
        (gzipped(gzipped(BODY)), ["Content-Encoding: gzip, gzip"]),
        (BODY, ["Content-Encoding: br"]),
        (b'{"messages":[]}', ["x_popi_user: bob-the-user"]),
        (b'{"messages":[]}', ["x-popi-user: bob-the-user", "X-Popi-User: ann"]),
        (b'{"messages":[]}', ["X_LiteLLM_End_User_Id: bob-the-user"]),
    ],
)
def test_bodies_and_headers_that_are_refused(stack: Any, path: str, body: bytes, headers: list[str]) -> None:
    assert status_of(stack, path, body, *headers) in (400, 415)
    assert stack[1].received == []


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/v1/completions", "/v1/images/generations"])
@pytest.mark.parametrize(
    "kind",
    ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""],
)
def test_ids_in_json_of_whatever_type(stack: Any, path: str, kind: str) -> None:
    assert status_of(stack, path, BODY, *([f"Content-Type: {kind}"] if kind else [])) == 200
    assert len(json.loads(stack[1].last.body)["user"]) == 64
    assert status_of(stack, path, gzipped(BODY), "Content-Encoding: gzip") == 200
