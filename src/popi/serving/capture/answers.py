"""The id and texts of a proxied answer, of each API, in one piece or as server-sent events."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from popi.serving.proxy.body import inflate
from popi.serving.proxy.inject import Api
from popi.serving.proxy.refusals import Refusal

MOST = 2**22
"""Most bytes of an answer once unpacked."""


Choices = dict[int, str]
"""Text by the number of the choice; Anthropic's answers and OpenAI's responses have one, 0."""


def named(answer_id: str, choice: int) -> str:
    """The id of a choice: `id`, `id#1`, `id#2`."""
    return f"{answer_id}#{choice}" if answer_id and choice else answer_id


def read_answer(api: Api, raw: bytes, encoding: str) -> tuple[str, Choices]:
    """The id that the upstream gave an answer, empty where it gave none, and the answer's texts. No text: nothing
    readable."""
    body = _unpacked(raw, encoding)
    if body is None:
        return "", {}
    try:
        if body.lstrip()[:1] == b"{":
            whole = json.loads(body)
            return _id_of(whole), _STEPS[api](whole)
        return _joined(api, body)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return "", {}


def _id_of(answer: dict[str, Any]) -> str:
    found = answer.get("id")
    return found if isinstance(found, str) else ""


def _chat(answer: dict[str, Any]) -> Choices:
    found: Choices = {}
    for choice in answer.get("choices") or ():
        text = (choice.get("message") or choice.get("delta") or {}).get("content")
        if isinstance(text, str):
            found[int(choice.get("index") or 0)] = text
    return found


def _responses(answer: dict[str, Any]) -> Choices:
    texts = [
        part["text"]
        for item in answer.get("output") or ()
        if item.get("type") == "message"
        for part in item.get("content") or ()
        if part.get("type") == "output_text"
    ]
    return {0: "".join(texts)} if texts else {}


def _messages(answer: dict[str, Any]) -> Choices:
    texts = [part["text"] for part in answer.get("content") or () if part.get("type") == "text"]
    return {0: "".join(texts)} if texts else {}


_STEPS = {"chat": _chat, "responses": _responses, "messages": _messages}


def _joined(api: Api, body: bytes) -> tuple[str, Choices]:
    """The answer that a stream adds up to."""
    found: defaultdict[int, str] = defaultdict(str)
    answer_id = ""
    for event in _events(body):
        if api == "chat":
            answer_id = answer_id or _id_of(event)  # some servers give each piece another
            for choice, text in _chat(event).items():
                found[choice] += text
        elif api == "messages":
            if event.get("type") == "message_start":
                answer_id = _id_of(event["message"])
            elif event.get("type") == "content_block_delta" and event["delta"].get("type") == "text_delta":
                found[0] += event["delta"]["text"]
        elif event.get("type") == "response.completed":
            return _id_of(event["response"]), _responses(event["response"])
    return answer_id, dict(found)


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
