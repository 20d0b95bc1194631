"""The user's own words of a request.

Only the last message of role `user` counts; of that only text that the user typed, as far as rules can tell: quoted
lines, forwarded mail, fenced blocks, long quotations and pasted conversations are other people's words.
"""

import re
from collections.abc import Mapping
from typing import Any

from popi.serving.proxy.inject import Api

CUT = "[…]"
"""Stands where something was taken out."""
LONG_QUOTATION = 8
"""Words from which on text in quotation marks is taken for somebody else's."""
LONGEST_TEXT = 20_000
"""Characters of a message or an answer that count."""

_FENCED = re.compile(r"^(```|~~~).*?(?:^\1[^\S\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_QUOTED_LINES = re.compile(r"(?:^[ \t]*>.*(?:\n|\Z))+", re.MULTILINE)
_FORWARDED = re.compile(
    r"^[ \t]*(?:-{2,}[ \t]*(?:original|forwarded)\b.*|on\b.{4,200}\bwrote:"
    r"|from:[ \t]*\S.*\n[ \t]*(?:to|sent|date|subject):.*)"
    r"[\s\S]*\Z",
    re.IGNORECASE | re.MULTILINE,
)
_QUOTATION = re.compile(r"[\"“„«]([^\"”“»„«]{20,})[\"”“»]")
_SPEAKER = re.compile(r"^[ \t]*(?:\[[^\]\n]{1,40}\][ \t]*)?([^\W\d_][\w .'’-]{0,30}):[ \t]+\S.*$", re.MULTILINE)
_OWN_NAMES = {"me", "i", "note", "task", "question", "please", "ps", "p.s", "edit", "context", "example"}


def last_message(api: Api, body: Mapping[str, Any]) -> str:
    """The text of the last message that the user wrote; empty where there is none."""
    found = body.get("input") if api == "responses" else body.get("messages")
    if isinstance(found, str) and api == "responses":
        return found.strip()
    messages: list[Any] = found if isinstance(found, list) else []
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            text = _text_of(message.get("content"))
            if text:
                return text
    return ""


def own_words(text: str) -> str:
    """A message without what the user quotes from others; empty where nothing of their own is left."""
    text = text[: 2 * LONGEST_TEXT].replace("\r\n", "\n")
    text = _FENCED.sub(CUT, text)
    text = _FORWARDED.sub(CUT, text)
    text = _QUOTED_LINES.sub(CUT + "\n", text)
    speakers = [match for match in _SPEAKER.finditer(text) if match[1].strip().casefold() not in _OWN_NAMES]
    if len(speakers) > 1:  # a conversation; one line alone may be a heading
        for match in reversed(speakers):
            text = text[: match.start()] + CUT + text[match.end() :]
    text = _QUOTATION.sub(lambda match: CUT if len(match[1].split()) >= LONG_QUOTATION else match[0], text)
    text = re.sub(rf"(?:{re.escape(CUT)}\s*)+", CUT + " ", text).strip()
    return text if has_words(text) else ""


def has_words(text: str) -> bool:
    """Whether anything is left beside what was taken out."""
    return re.search(r"\w", text.replace(CUT, "")) is not None


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content.strip()
    parts = [
        part["text"]
        for part in (content if isinstance(content, list) else ())
        if isinstance(part, dict) and part.get("type") in ("text", "input_text") and isinstance(part.get("text"), str)
    ]
    return "\n".join(parts).strip()
