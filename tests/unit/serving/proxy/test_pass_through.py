"""What goes upstream and what comes back, to the byte."""

import asyncio
import gzip
import http.client
import json
import re
import zlib
from typing import Any

import pytest
from unit.serving.proxy.recording import (
    ADMIN_KEY,
    APP_KEY,
    SUMMARY,
    USER_KEY,
    Received,
    RecordingUpstream,
    RunningGateway,
    fixed,
    running_gateway,
    until,
)

# Odd blanks, escapes, numbers and order.
CHAT = (
    '{ "model":"m","temperature":1.50e0,"messages" : [ {"role":"system","content":"You \\u0061re ☃"},\n'
    '{"role":"user","content":[{"type":"text","text":"hé"},{"type":"image_url","image_url":{"url":"data:image/png;base64,'
    'iVBORw0K"}}]}],"tools":[{"type":"function","function":{"name":"f","parameters":{"b":1,"a":2e400,"c":-0}}}],\r\n'
    '"response_format":{"type":"json_schema"}, "made_up" : {"x":[1,2, 3]}, "stream":false }'
).encode()


def test_everything_else_means_the_same(gateway: RunningGateway) -> None:
    answer = gateway.call(body=CHAT, headers={"x-popi-user": "ann", "Content-Type": "application/json; charset=utf-8"})
    assert answer.header("x-popi-personalized") == "applied" and answer.header("x-popi-summary-version") == "3"
    got = gateway.upstream.last

    def pairs(raw: bytes) -> Any:  # with the order of names, and numbers as they were written
        return json.loads(raw, object_pairs_hook=list, parse_int=str, parse_float=str)

    sent, came = pairs(got.body), pairs(CHAT)
    content = dict(dict(sent)["messages"][0])["content"]
    assert content.startswith("You are ☃\n\n<user_preferences>") and SUMMARY in content
    dict(sent)["messages"][0][1] = ("content", "You are ☃")
    assert sent == came
    assert got.header("content-type") == "application/json; charset=utf-8"
    assert got.header("content-length") == str(len(got.body))


def test_without_a_summary_the_body_is_the_clients(gateway: RunningGateway) -> None:
    for headers in ({}, {"x-popi-user": "nobody"}, {"x-popi-user": "ann", "x-popi-personalize": "off"}):
        gateway.call(body=CHAT, headers=headers)
        assert gateway.upstream.last.body == CHAT


def test_the_same_bytes_until_the_summary_changes(gateway: RunningGateway) -> None:
    for _ in range(3):
        gateway.call(body=CHAT, headers={"x-popi-user": "ann"})
    assert len({got.body for got in gateway.upstream.received}) == 1


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/v1/responses", b'{"input":"hi","instructions":"Be kind."}', lambda body: body["instructions"]),
        ("/v1/responses", b'{"input":[{"role":"developer","content":"a"}]}', lambda body: body["input"][0]["content"]),
        ("/v1/responses", b'{"input":"hi","prompt":{"id":"a"}}', lambda body: body["input"][0]["content"]),
        ("/v1/responses/input_tokens", b'{"input":"hi"}', lambda body: body["instructions"]),
        ("/v1/messages", b'{"messages":[],"system":"Be kind."}', lambda body: body["system"]),
        ("/v1/messages/count_tokens", b'{"messages":[],"system":"Be kind."}', lambda body: body["system"]),
        (
            "/v1/messages",
            b'{"messages":[],"system":[{"type":"text","text":"a"}]}',
            lambda body: body["system"][1]["text"],
        ),
    ],
)
def test_the_other_apis(gateway: RunningGateway, path: str, body: bytes, where: object) -> None:
    answer = gateway.call(path, body, {"x-popi-user": "ann"})
    assert answer.header("x-popi-personalized") == "applied"
    assert gateway.upstream.last.target == path
    assert SUMMARY in where(gateway.upstream.last.json)  # type: ignore[operator]


def test_headers_upstream(gateway: RunningGateway) -> None:
    sent = {
        "Accept-Encoding": "br;q=1.0, gzip",
        "User-Agent": "me",
        "OpenAI-Organization": "org",
        "x-popi-user": "ann",
        "X-OpenWebUI-User-Email": "ann@example.org",
        "x-litellm-end-user-id": "ann",
    }
    gateway.call(body=CHAT, headers=sent)
    names = {name.lower(): value for name, value in gateway.upstream.last.headers}
    pseudonym = names.pop("x-litellm-end-user-id")
    assert len(pseudonym) == 64
    assert names.pop("host") == gateway.upstream.url.removeprefix("http://")
    names.pop("content-length")
    assert names == {"accept-encoding": "br;q=1.0, gzip", "user-agent": "me", "openai-organization": "org"}
    gateway.call(body=CHAT)
    assert {name.lower() for name, _ in gateway.upstream.last.headers} == {"host", "content-length"}


def test_non_ascii_header_values_keep_their_bytes(gateway: RunningGateway) -> None:
    gateway.call(body=CHAT, headers={"x-title": "Bjørn"})
    assert gateway.upstream.last.header("x-title") == "Bjørn".encode().decode("latin-1")


@pytest.mark.parametrize("key_header", ["Authorization", "x-api-key"])
def test_our_key_never_goes_upstream(gateway: RunningGateway, key_header: str) -> None:
    value = f"Bearer {APP_KEY}" if key_header == "Authorization" else APP_KEY
    assert gateway.call(body=CHAT, headers={key_header: value}, key=None).status == 200
    assert APP_KEY not in str(gateway.upstream.last.headers)


def test_the_clients_own_upstream_key_passes_beside_ours(gateway: RunningGateway) -> None:
    headers = {"x-popi-key": APP_KEY, "Authorization": "Bearer sk-theirs", "x-api-key": "sk-theirs-too"}
    assert gateway.call(body=CHAT, headers=headers, key=None).status == 200
    got = gateway.upstream.last
    assert got.header("authorization") == "Bearer sk-theirs" and got.header("x-api-key") == "sk-theirs-too"
    assert got.header("x-popi-key") is None and APP_KEY not in str(got.headers)


@pytest.mark.parametrize(
    ("form", "path", "headers", "expected"),
    [
        ("auto", "/v1/chat/completions", {}, ("Bearer sk-ours", None)),
        ("auto", "/v1/messages", {}, (None, "sk-ours")),
        ("auto", "/v1/models", {"anthropic-version": "2023-06-01"}, (None, "sk-ours")),
        ("bearer", "/v1/messages", {}, ("Bearer sk-ours", None)),
        ("x-api-key", "/v1/chat/completions", {}, (None, "sk-ours")),
        ("auto", "/v1/chat/completions", {"x-popi-key": APP_KEY}, ("Bearer sk-theirs", None)),
    ],
)
def test_the_gateways_upstream_key(
    upstream: RecordingUpstream, form: str, path: str, headers: dict[str, str], expected: tuple[str | None, str | None]
) -> None:
    with running_gateway(upstream, upstream_key="sk-ours", upstream_auth=form) as gateway:
        key = "sk-theirs" if "x-popi-key" in headers else APP_KEY
        gateway.call(path, CHAT, headers, key=key)
    assert (upstream.last.header("authorization"), upstream.last.header("x-api-key")) == expected


def test_ours_is_sent_where_the_client_has_none_for_the_upstream(upstream: RecordingUpstream) -> None:
    with running_gateway(upstream, upstream_key="sk-ours") as gateway:
        gateway.call(body=CHAT, headers={"x-popi-key": APP_KEY}, key=None)
    assert upstream.last.header("authorization") == "Bearer sk-ours"


def test_other_paths_are_untouched(gateway: RunningGateway) -> None:
    body = b'[{"input":"hi","user":"ann"}]\x00\xff'
    answer = gateway.call("/v1/embeddings?a=%2F&b=c+d&e=%C3%B8", body, {"x-popi-user": "ann"})
    got = gateway.upstream.last
    assert (got.method, got.target, got.body) == ("POST", "/v1/embeddings?a=%2F&b=c+d&e=%C3%B8", body)
    assert answer.header("x-popi-personalized") is None
    assert got.header("transfer-encoding") is None and got.header("x-popi-user") is None
    for method in ("GET", "DELETE", "PATCH", "PUT", "OPTIONS"):
        gateway.call("/v1/chat/completions/abc%20d", None, method=method)
        assert (gateway.upstream.last.method, gateway.upstream.last.target) == (method, "/v1/chat/completions/abc%20d")
    assert gateway.summaries.asked == []


EMBEDDINGS = b'{"input": [1, 2.0], "user":"ann"}'


@pytest.mark.parametrize(
    ("headers", "pack"),
    [
        ({}, bytes),
        ({"Content-Type": "application/json"}, bytes),
        ({"Content-Type": "application/x-www-form-urlencoded"}, bytes),
        ({"Content-Type": "multipart/form-data; boundary=x"}, bytes),
        ({}, lambda body: b"\xef\xbb\xbf \n" + body),
        ({"Content-Encoding": "gzip"}, gzip.compress),
    ],
)
def test_ids_in_json_on_other_paths(gateway: RunningGateway, headers: dict[str, str], pack: Any) -> None:
    for path in ("/v1/embeddings", "/v1/completions", "/v1/images/generations", "/v1/messages/batches"):
        assert gateway.call(path, pack(EMBEDDINGS), headers).status == 200
        got = gateway.upstream.last
        assert got.target == path and got.header("content-encoding") is None
        assert re.fullmatch(rb'{"input":\[1,2.0\],"user":"[0-9a-f]{64}"}', got.body)
    plain = b'{"input": [1, 2.0]}'
    gateway.call("/v1/embeddings", plain)
    assert gateway.upstream.last.body == plain
    assert gateway.summaries.asked == []


@pytest.mark.parametrize(
    "body",
    [
        EMBEDDINGS + b"{}",
        b'{"user":"a","user":"ann"}',
        b'{"User":"ann"}',
        EMBEDDINGS.decode().encode("utf-16"),
        EMBEDDINGS.decode().encode("utf-16-be"),
        b'{"user":"ann"}\n{"user":"bert"}',
    ],
)
def test_json_on_other_paths_that_hides_ids(gateway: RunningGateway, body: bytes) -> None:
    assert gateway.call("/v1/embeddings", body).status == 400
    assert gateway.call("/v1/embeddings", zlib.compress(body), {"Content-Encoding": "deflate"}).status == 400
    assert gateway.call("/v1/embeddings", body, {"Content-Encoding": "br"}).status == 415
    assert gateway.upstream.received == []


def test_compressed_uploads_that_are_no_json_stay_as_they_are(gateway: RunningGateway) -> None:
    packed = gzip.compress(b"--x\r\n\r\nfile\r\n--x--")
    assert gateway.call("/v1/files", packed, {"Content-Encoding": "gzip"}).status == 200
    got = gateway.upstream.last
    assert (got.body, got.header("content-encoding"), got.header("content-length")) == (
        packed,
        "gzip",
        str(len(packed)),
    )


@pytest.mark.parametrize(
    "path",
    [
        "/v1//chat/completions",
        "/v1/chat/completions/",
        "/v1/Chat/Completions",
        "/v1/chat/completion%73",
        "/v1/chat/completions;a",
    ],
)
def test_a_chat_however_its_path_is_spelt(gateway: RunningGateway, path: str) -> None:
    answer = gateway.call(path + "?q=1", b'{"messages":[{"role":"user","content":"hi"}],"user":"ann"}')
    assert answer.header("x-popi-personalized") == "applied"
    assert gateway.upstream.last.target == "/v1/chat/completions?q=1" and b'"ann"' not in gateway.upstream.last.body
    assert gateway.call("/v1/models/", method="GET", key=USER_KEY).status == 200
    assert gateway.upstream.last.target == "/v1/models"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"x_popi_user": "ann"}, "header_name"),
        ({"X_Popi-User": "ann"}, "header_name"),
        ({"x_litellm_end_user_id": "ann"}, "header_name"),
        ({"content_encoding": "gzip"}, "header_name"),
        ([("Content-Encoding", "gzip"), ("Content-Encoding", "gzip")], "ambiguous_header"),
        ([("x-popi-user", "ann"), ("X-Popi-User", "bert")], "ambiguous_header"),
    ],
)
def test_headers_that_hide_ids(gateway: RunningGateway, headers: Any, code: str) -> None:
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        answer = gateway.call(path, CHAT, headers)
        assert (answer.status, answer.json["error"]["code"]) == (400, code)
    assert gateway.upstream.received == []


def test_an_upload_in_chunks_goes_on_while_it_comes(gateway: RunningGateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    heads = gateway.upstream.heads

    def pieces() -> object:
        yield b"first"
        until(lambda: gateway.upstream.heads > heads)  # the head is upstream before the rest was sent
        yield b"second"

    headers = {"Authorization": f"Bearer {APP_KEY}", "Transfer-Encoding": "chunked"}
    connection.request("POST", "/v1/files", pieces(), headers, encode_chunked=True)
    assert connection.getresponse().read() == b'{"ok":true}'
    assert gateway.upstream.last.body == b"firstsecond"
    connection.close()


def test_head_and_answers_without_a_body(gateway: RunningGateway) -> None:
    gateway.upstream.reply = fixed(b"", "204 No Content", "X-A: 1")
    assert gateway.call("/v1/files/x", method="DELETE").status == 204

    async def head(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n")

    gateway.upstream.reply = head
    answer = gateway.call("/v1/models", method="HEAD")
    assert (answer.status, answer.header("content-length"), answer.body) == (200, "1234", b"")
    gateway.upstream.reply = fixed(b"there", "307 Temporary Redirect", "Location: https://elsewhere/")
    answer = gateway.call("/v1/models", method="GET")
    assert (answer.status, answer.header("location"), answer.body) == (307, "https://elsewhere/", b"there")


@pytest.mark.parametrize(
    "path",
    ["/v1/../admin", "/v1/%2e%2E/admin", "/v1/files/..%2f..%2fadmin", "/v1/./x", "/v1/..", "/v1/a/..;/b", "/v1/..\\x"],
)
def test_paths_that_lead_out_are_refused(gateway: RunningGateway, path: str) -> None:
    assert gateway.call(path, method="GET").status == 400
    assert gateway.upstream.received == []


@pytest.mark.parametrize(("scope", "allowed"), [("app", True), ("admin", False), ("nobody", False)])
def test_who_may_use_other_paths(upstream: RecordingUpstream, scope: str, allowed: bool) -> None:
    with running_gateway(upstream, other_paths=scope) as gateway:
        assert gateway.call("/v1/files", method="GET").status == (200 if allowed else 403)
        assert gateway.call("/v1/files", method="GET", key=ADMIN_KEY).status == (403 if scope == "nobody" else 200)
        assert gateway.call("/v1/files", method="GET", key=USER_KEY).status == 403
        assert gateway.call("/v1/models", method="GET", key=USER_KEY).status == 200
        assert gateway.call(body=CHAT, key=USER_KEY).header("x-popi-personalized") == "applied"


def test_answers_in_any_encoding_as_they_are(gateway: RunningGateway) -> None:
    packed = gzip.compress(b'{"ok":true}')
    gateway.upstream.reply = fixed(packed, "200 OK", "Content-Encoding: gzip", "X-Request-Id: r1", "Set-Cookie: a=b")
    answer = gateway.call(body=CHAT, headers={"Accept-Encoding": "gzip"})
    assert answer.body == packed
    assert (answer.header("content-encoding"), answer.header("content-length")) == ("gzip", str(len(packed)))
    assert answer.header("x-request-id") == "r1"
    gateway.call(body=CHAT)
    assert gateway.upstream.last.header("cookie") is None  # one client's cookie is not another's


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_requests(gateway: RunningGateway, encoding: str, pack: object) -> None:
    packed = pack(CHAT)  # type: ignore[operator]
    headers = {"Content-Encoding": encoding, "x-popi-user": "ann"}
    assert gateway.call(body=packed, headers=headers).header("x-popi-personalized") == "applied"
    got = gateway.upstream.last
    assert got.header("content-encoding") is None
    assert SUMMARY in got.json["messages"][0]["content"]
    gateway.call(body=packed, headers=headers | {"x-popi-personalize": "off"})
    got = gateway.upstream.last
    assert (got.header("content-encoding"), got.body) == (None, CHAT)
    assert gateway.call(body=packed, headers={"Content-Encoding": "br"}).status == 415


EVENTS = [f'data: {{"n":{n},"t":"é☃"}}\n\n'.encode() for n in range(5)] + [b"data: [DONE]\n\n"]


def test_streams_byte_for_byte_and_at_once(gateway: RunningGateway) -> None:
    """Each piece is with the client before the next is written: nothing is held back."""
    read: list[bytes] = []

    async def stream(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n, event in enumerate(EVENTS):
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            while len(read) <= n:
                await asyncio.sleep(0.002)
        writer.write(b"0\r\n\r\n")

    gateway.upstream.reply = stream
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request("POST", "/v1/chat/completions", CHAT, {"Authorization": f"Bearer {APP_KEY}"})
    reply = connection.getresponse()
    assert reply.getheader("content-type") == "text/event-stream"
    while event := reply.read1():
        read.append(event)
    assert read == EVENTS
    connection.close()


def test_an_answer_that_ends_with_its_connection(gateway: RunningGateway) -> None:
    async def old(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nabc")
        await writer.drain()
        writer.close()

    gateway.upstream.reply = old
    assert gateway.call(body=CHAT).body == b"abc"


def test_large_answers_and_bodies(gateway: RunningGateway) -> None:
    content = bytes(range(256)) * 20_000
    gateway.upstream.reply = fixed(content)
    long = json.dumps({"messages": [{"role": "user", "content": "x" * 5_000_000}]}).encode()
    answer = gateway.call(body=long, headers={"x-popi-user": "ann"})
    assert answer.body == content
    assert gateway.upstream.last.json["messages"][1:] == json.loads(long)["messages"]


class Looked:
    """Notes which requests would be looked on at."""

    def __init__(self) -> None:
        self.at: list[tuple[str, str]] = []

    def begin(self, tenant: str, user_id: str, api: str, *_: Any) -> None:
        self.at.append((user_id, api))


def test_a_count_of_tokens_is_no_answer_to_look_on_at(upstream: RecordingUpstream) -> None:
    looked = Looked()
    with running_gateway(upstream, recorder=looked) as gateway:
        for path in ("/v1/responses/input_tokens", "/v1/messages/count_tokens", "/v1/messages"):
            answer = gateway.call(path, b'{"messages":[],"input":"hi"}', {"x-popi-user": "ann"})
            assert answer.header("x-popi-personalized") == "applied"
    assert looked.at == [("ann", "messages")]
