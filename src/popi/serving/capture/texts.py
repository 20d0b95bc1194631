"""Extract the user's own words from a request.

Only the last message with role `user` is used, and of that only what the user probably typed: quoted lines, forwarded
mail, fenced blocks, long quotations and pasted conversations are other people's words.
"""

import re
from collections.abc import Mapping
from typing import Any

from popi.serving.proxy.inject import Api

CUT = "[…]"
"""Replaces removed text."""
MIN_QUOTATION_WORDS = 8
"""Minimum words of text in quotation marks to be treated as someone else's."""
MAX_TEXT_CHARS = 20_000
"""Maximum characters of a message or an answer; the rest is ignored."""

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
    """The text of the user's last message; empty without one."""
    value = body.get("input") if api == "responses" else body.get("messages")
    if isinstance(value, str) and api == "responses":
        return value.strip()
    messages: list[Any] = value if isinstance(value, list) else []
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            text = _text_of(message.get("content"))
            if text:
                return text
    return ""


def own_words(text: str) -> str:
    """A message without quotations from others; empty if nothing else is left."""
    text = text[: 2 * MAX_TEXT_CHARS].replace("\r\n", "\n")
    text = _FENCED.sub(CUT, text)
    text = _FORWARDED.sub(CUT, text)
    text = _QUOTED_LINES.sub(CUT + "\n", text)
    speakers = [match for match in _SPEAKER.finditer(text) if match[1].strip().casefold() not in _OWN_NAMES]
    if len(speakers) > 1:  # a conversation; a single such line may be a heading
        for match in reversed(speakers):
            text = text[: match.start()] + CUT + text[match.end() :]
    text = _QUOTATION.sub(lambda match: CUT if len(match[1].split()) >= MIN_QUOTATION_WORDS else match[0], text)
    text = re.sub(rf"(?:{re.escape(CUT)}\s*)+", CUT + " ", text).strip()
    return text if has_words(text) else ""


def has_words(text: str) -> bool:
    """Whether a text has any words besides `CUT`."""
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
