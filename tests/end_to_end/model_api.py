"""A model API that says whether a request was personal: OpenAI's two APIs and Anthropic's, whole and as streams."""

import asyncio
import json
from typing import Any

from unit.serving.proxy.recording import SUMMARY, Received, message

JSON = "Content-Type: application/json"


async def answer(got: Received, writer: asyncio.StreamWriter) -> None:
    """Reply "personal" or "plain"; where there are tools, call the first for Bonn."""
    body: dict[str, Any] = got.json if got.body else {}
    text = "personal" if SUMMARY in got.body.decode() else "plain"
    path = got.target.partition("?")[0]
    if path.endswith("/models"):
        reply: Any = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "us"}]}
    elif path.endswith("/chat/completions"):
        reply = _chunks(text) if body.get("stream") else _completion(text, body.get("tools"))
    elif path.endswith("/messages"):
        reply = _events(text) if body.get("stream") else _message(text)
    elif path.endswith("/responses"):
        reply = _response(text)
    else:
        writer.write(message(b'{"error": {"message": "no such path"}}', "404 Not Found", JSON))
        return
    if isinstance(reply, dict):
        writer.write(message(json.dumps(reply).encode(), "200 OK", JSON))
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    for event in reply:
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await writer.drain()
    writer.write(b"0\r\n\r\n")


def _completion(text: str, tools: list[dict[str, Any]] | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if tools:
        function = {"name": tools[0]["function"]["name"], "arguments": '{"place": "Bonn"}'}
        message = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function"}]}
        message["tool_calls"][0]["function"] = function
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if tools else "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }


def _chunks(text: str) -> list[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    deltas = [({"role": "assistant", "content": text[:2]}, None), ({"content": text[2:]}, None), ({}, "stop")]
    lines = [head | {"choices": [{"index": 0, "delta": delta, "finish_reason": why}]} for delta, why in deltas]
    return [*(b"data: " + json.dumps(line).encode() + b"\n\n" for line in lines), b"data: [DONE]\n\n"]


def _message(text: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 2},
    }


def _events(text: str) -> list[bytes]:
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    events = [
        {"type": "message_start", "message": _message(text) | {"content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        delta,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


def _response(text: str) -> dict[str, Any]:
    message = {"type": "output_text", "text": text, "annotations": []}
    usage = {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 11,
    }
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "m",
        "output": [
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [message]}
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
    }
