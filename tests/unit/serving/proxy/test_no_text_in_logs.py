"""No text, id or key of a user reaches a log, whatever goes wrong: every secret of these requests has one mark."""

import asyncio
import gc
import http.client
import time
from collections.abc import Callable

import jwt
import pytest
from all_logs import all_logs
from unit.serving.proxy.recording import (
    APP_KEY,
    SECRET,
    USER_KEY,
    Received,
    RecordingUpstream,
    RunningGateway,
    fixed,
    running_gateway,
    until,
)

from popi.serving.interfaces import StoredSummary

MARK = "hush-hush"
USER = f"ann-{MARK}@example.org"
HEADERS = {"x-popi-user": USER, "x-litellm-end-user-id": USER, "X-OpenWebUI-User-Email": USER, "cookie": MARK}
BODY = (
    f'{{"messages":[{{"role":"system","content":"{MARK}"}},{{"role":"user","content":"{MARK}"}}],'
    f'"user":"{USER}","metadata":{{"user_id":"{USER}"}}}}'
).encode()


def cut(kind: str) -> Callable[[Received, asyncio.StreamWriter], object]:
    async def reply(_: Received, writer: asyncio.StreamWriter) -> None:
        if kind == "amid":
            writer.write(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{MARK}\r\n5\r\nwo".encode())
        elif kind == "no http":
            writer.write(f"{MARK} {MARK}\r\n\r\n".encode())
        elif kind == "header":
            writer.write(f"HTTP/1.1 200 OK\r\n{MARK} no colon: \x01\r\n\r\n".encode())
        else:
            await asyncio.sleep(60)
        writer.close()

    return reply  # type: ignore[return-value]


def call(gateway: RunningGateway, *args: object, **more: object) -> int:
    try:
        return gateway.call(*args, **more).status  # type: ignore[arg-type]
    except http.client.HTTPException:
        return 0


def test_of_the_proxy(upstream: RecordingUpstream, capfd: pytest.CaptureFixture[str]) -> None:
    statuses = []
    token = jwt.encode({"sub": USER, "exp": time.time() + 60, "note": MARK}, SECRET, "HS256")
    settings = {
        "jwt": {"key": SECRET, "algorithms": ("HS256",)},
        "first_byte_timeout_s": 0.3,
        "read_timeout_s": 0.3,
        "summary_timeout_ms": 50.0,
    }
    with running_gateway(upstream, max_body_bytes=10_000, **settings) as gateway, all_logs() as lines:

        def chat(body: bytes = BODY, headers: dict[str, str] = HEADERS, **more: object) -> None:
            statuses.append(call(gateway, body=body, headers=headers, **more))

        gateway.summaries.known[("acme", USER)] = StoredSummary(f"Likes {MARK}.", 1)
        upstream.reply = fixed(f'{{"said":"{MARK}"}}'.encode(), "200 OK", f"x-request-id: {MARK}")
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", f"/v1/files/{MARK}?q={MARK}"):
            chat(path=path)
        chat(headers=HEADERS | {"x-popi-personalize": "off"})
        assert statuses == [200] * 5 and MARK in str(upstream.last.body)
        chat(headers={"x-popi-jwt": token})
        upstream.reply = fixed(MARK.encode(), "500 Internal Server Error")
        chat()
        for kind in ("amid", "no http", "header", "hang"):
            upstream.reply = cut(kind)  # type: ignore[assignment]
            chat()
        upstream.reply = RecordingUpstream().reply
        # refused
        chat(key=f"popi-{MARK}")
        chat(key=USER_KEY)
        chat(path=f"/v1/{MARK}/../x")
        chat(headers=HEADERS | {"x-popi-tenant": MARK})
        chat(headers=HEADERS | {"content-encoding": MARK})
        chat(headers=HEADERS | {"x-popi-jwt": token[:-3] + MARK})
        chat(headers=HEADERS | {"x-popi-jwt": MARK})
        chat(body=BODY + b" " * 10_000)
        # not readable
        for body in (MARK.encode(), BODY[:-9], b"[%b]" % BODY, b'{"messages": "%b"}' % MARK.encode(), b"\xff" + BODY):
            chat(body=body)
        # faults of the stores, with texts of users in their messages
        gateway.summaries.fault = RuntimeError(f"no summary of {USER}: {MARK}")
        chat()
        gateway.summaries.fault = None
        gateway.summaries.delay, gateway.summaries.stubborn = 0.2, True
        chat()
        gateway.summaries.delay = 0.0
        gateway.keys.fault = ValueError(f"{APP_KEY} {MARK}")
        chat()
        gateway.keys.fault = None
        gateway.summaries.known[("acme", USER)] = None  # type: ignore[assignment]
        chat()
        gateway.summaries.known[("acme", USER)] = MARK  # type: ignore[assignment]
        chat()  # a fault of ours: it has no text and no version
        until(lambda: len([line for line in lines if '"event": "request"' in line]) >= len(statuses))
        time.sleep(0.3)
        gc.collect()  # what was never looked at speaks up now
    assert {0, 200, 401, 403, 400, 413, 415, 500, 502, 503, 504} <= set(statuses)
    text = "\n".join(lines)
    assert "can't read a summary" in text and "gateway error" in text  # the log did hear of them
    assert [line for line in lines if MARK in line or APP_KEY in line] == []
    streams = capfd.readouterr()
    assert MARK not in streams.out + streams.err
