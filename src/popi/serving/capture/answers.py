"""Read the id and texts of a proxied answer in each API, either whole or as server-sent events."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from popi.serving.proxy.body import inflate
from popi.serving.proxy.inject import Api
from popi.serving.proxy.refusals import Refusal

MAX_BYTES = 2**22
"""Maximum bytes of an answer after decompression."""


Choices = dict[int, str]
"""Text by choice number; answers of Anthropic's and of OpenAI's Responses API have one choice, 0."""


def choice_id(answer_id: str, choice: int) -> str:
    """The id of a choice: `id`, `id#1`, `id#2`."""
    return f"{answer_id}#{choice}" if answer_id and choice else answer_id


def read_answer(api: Api, raw: bytes, encoding: str) -> tuple[str, Choices]:
    """The id that the upstream gave an answer (empty if none) and the answer's texts (empty if it is not readable)."""
    body = _decompressed(raw, encoding)
    if body is None:
        return "", {}
    try:
        if body.lstrip()[:1] == b"{":
            document = json.loads(body)
            return _id_of(document), _TEXTS[api](document)
        return _from_stream(api, body)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return "", {}


def _id_of(answer: dict[str, Any]) -> str:
    value = answer.get("id")
    return value if isinstance(value, str) else ""


def _chat(answer: dict[str, Any]) -> Choices:
    texts: Choices = {}
    for choice in answer.get("choices") or ():
        text = (choice.get("message") or choice.get("delta") or {}).get("content")
        if isinstance(text, str):
            texts[int(choice.get("index") or 0)] = text
    return texts


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


_TEXTS = {"chat": _chat, "responses": _responses, "messages": _messages}


def _from_stream(api: Api, body: bytes) -> tuple[str, Choices]:
    """The id and texts of a streamed answer."""
    texts: defaultdict[int, str] = defaultdict(str)
    answer_id = ""
    for event in _events(body):
        if api == "chat":
            answer_id = answer_id or _id_of(event)  # some servers give every chunk a new id
            for choice, text in _chat(event).items():
                texts[choice] += text
        elif api == "messages":
            if event.get("type") == "message_start":
                answer_id = _id_of(event["message"])
            elif event.get("type") == "content_block_delta" and event["delta"].get("type") == "text_delta":
                texts[0] += event["delta"]["text"]
        elif event.get("type") == "response.completed":
            return _id_of(event["response"]), _responses(event["response"])
    return answer_id, dict(texts)


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.decode("utf-8", "replace").splitlines():
        if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
            event = json.loads(data)
            if isinstance(event, dict):
                yield event


def _decompressed(raw: bytes, encoding: str) -> bytes | None:
    try:
        return b"".join(inflate(raw, encoding, MAX_BYTES))
    except Refusal:
        return None
