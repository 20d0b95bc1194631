"""The ids and texts of a proxied answer, of each API, in one piece or as server-sent events."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from popi.serving.proxy.body import inflate
from popi.serving.proxy.inject import Api
from popi.serving.proxy.refusals import Refusal

MOST = 2**22
"""Most bytes of an answer once unpacked."""


def read_answer(api: Api, raw: bytes, encoding: str) -> dict[str, str]:
    """Text by answer id; several of a chat completion's choices are `id`, `id#1`, `id#2`. Empty: nothing readable."""
    body = _unpacked(raw, encoding)
    if body is None:
        return {}
    try:
        if body.lstrip()[:1] == b"{":
            return _STEPS[api](json.loads(body))
        return _joined(api, body)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return {}


def _chat(answer: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for choice in answer.get("choices") or ():
        text = (choice.get("message") or choice.get("delta") or {}).get("content")
        if isinstance(text, str) and isinstance(answer.get("id"), str):
            index = choice.get("index") or 0
            found[answer["id"] if index == 0 else f"{answer['id']}#{index}"] = text
    return found


def _responses(answer: dict[str, Any]) -> dict[str, str]:
    texts = [
        part["text"]
        for item in answer.get("output") or ()
        if item.get("type") == "message"
        for part in item.get("content") or ()
        if part.get("type") == "output_text"
    ]
    return {answer["id"]: "".join(texts)} if texts and isinstance(answer.get("id"), str) else {}


def _messages(answer: dict[str, Any]) -> dict[str, str]:
    texts = [part["text"] for part in answer.get("content") or () if part.get("type") == "text"]
    return {answer["id"]: "".join(texts)} if texts and isinstance(answer.get("id"), str) else {}


_STEPS = {"chat": _chat, "responses": _responses, "messages": _messages}


def _joined(api: Api, body: bytes) -> dict[str, str]:
    """The answer that a stream adds up to."""
    found: defaultdict[str, str] = defaultdict(str)
    answer_id = ""
    for event in _events(body):
        if api == "chat":
            for name, text in _chat(event).items():
                found[name] += text
        elif api == "messages":
            if event.get("type") == "message_start":
                answer_id = event["message"]["id"]
            elif event.get("type") == "content_block_delta" and event["delta"].get("type") == "text_delta":
                found[answer_id] += event["delta"]["text"]
        elif event.get("type") == "response.completed":
            return _responses(event["response"])
    return {name: text for name, text in found.items() if name}


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.decode("utf-8", "replace").splitlines():
        if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
            event = json.loads(data)
            if isinstance(event, dict):
                yield event


def _unpacked(raw: bytes, encoding: str) -> bytes | None:
    try:
        return b"".join(inflate(raw, encoding, MOST))
    except Refusal:
        return None
