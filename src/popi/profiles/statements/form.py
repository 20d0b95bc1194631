"""The form of an answer: hidden reasoning, fences, JSON, headings, lists and lines."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from popi.profiles.statements.phrases import PREAMBLE, TITLE
from popi.profiles.statements.sentences import bullet, sentences

MAX_LINES = 400
"""Maximum number of lines to read from an answer."""
DEPTH = 4
"""Maximum nesting of lists and objects."""

_NAMES = r"think|thinking|thought|reasoning|reflection|scratchpad"
_THOUGHT = re.compile(
    rf"<({_NAMES})\b[^<>]{{0,99}}>.*?(?:</\1\s{{0,9}}>|\Z)|◁think▷.*?(?:◁/think▷|\Z)"
    r"|<\|channel\|>(?:analysis|commentary).*?(?:<\|end\|>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_THOUGHT_END = re.compile(rf"</(?:{_NAMES})\s{{0,9}}>|◁/think▷|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[\w-]*[ \t]*$\n?", re.MULTILINE)
_NO_TEXT = re.compile("[\ud800-\udfff\x00]")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*+"(\s*:)?')
_HEADING = re.compile(r"\s*(?:#{1,6}\s+(.+?)\s*#*|\*\*([^*]+?)[:：]?\*\*[:：]?|([^.!?。！？]{1,80})[:：])\s*")
_DECORATION = re.compile(r"\*\*|__|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)|^>\s*")
_RULE = re.compile(r"\s*(?:[-*_=]{3,}|\|?[\s:|-]+\|?)\s*")
_QUOTES = ('"', '"'), ("“", "”"), ("«", "»"), ("「", "」"), ("„", "“")


class Parts(NamedTuple):
    """The parts of an answer.

    Attributes:
        parts: its statements, and whatever else it says.
        json: whether they are strings from JSON.
        whole: whether that JSON is complete.
    """

    parts: list[str]
    json: bool = False
    whole: bool = False


def parts(text: str) -> Parts:
    """Split an answer in JSON or in lines into its parts. A truncated last string of JSON is dropped."""
    return _from_json(text) or Parts(_from_lines(text))


def without_thoughts(text: str) -> str:
    """An answer without the reasoning, complete or not, that some models write first."""
    text = _THOUGHT.sub("", text)
    ends = [end.end() for end in _THOUGHT_END.finditer(text)]  # the opening tag may be in the prompt
    return text[ends[-1] :] if ends else text


def storable(text: str) -> str:
    """The text without lone surrogates and NUL, which databases don't accept."""
    return _NO_TEXT.sub("", text)


def _from_json(text: str) -> Parts | None:
    text = _FENCE.sub("", text).strip()
    match = re.search(r"[\[{]\s*[\[{\"\]}]", text)
    if match is None or (match.start() and not PREAMBLE.match(text[: match.start()])):
        return None
    text = text[match.start() :]
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return Parts([item for one in _whole_strings(text) if (item := storable(one).strip())], json=True)
    return Parts([part for one in _strings(value) for part in _item(storable(one))], json=True, whole=True)


def _whole_strings(text: str) -> Iterator[str]:
    """Yield the strings of broken JSON, without field names, up to the first unterminated one."""
    at = text.find('"')
    while at >= 0 and (match := _STRING.match(text, at)) is not None:
        if match[1] is None:
            try:
                yield json.loads(match[0])
            except ValueError:
                return
        at = text.find('"', match.end())


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and depth < DEPTH:
        known = [value[name] for name in ("statement", "text", "preference", "summary") if name in value]
        for one in known[:1] or value.values():
            yield from _strings(one, depth + 1)
    elif isinstance(value, list) and depth < DEPTH:
        for one in value:
            yield from _strings(one, depth + 1)


def _item(text: str) -> list[str]:
    """A JSON string is one statement, unless it has several lines; then it is split like a text."""
    plain = _undecorated(text)
    return _from_lines(text) if "\n" in text.strip() else [plain] if plain else []


def _from_lines(text: str) -> list[str]:
    """List items and sentences. Items under a meaningful heading ("Avoid:") are prefixed with it."""
    statements: list[str] = []
    heading = ""
    lines = [line for line in _FENCE.sub("", text).splitlines() if line.strip() and not _RULE.fullmatch(line)]
    for line in lines[:MAX_LINES]:
        start = bullet(line)
        line = line[start or 0 :]
        if (titled := _HEADING.fullmatch(line)) is not None:
            title = _undecorated(next(filter(None, titled.groups()))).rstrip(":： ")
            heading = "" if PREAMBLE.match(f"{title}:") or TITLE.fullmatch(title) else title
        elif start is not None:
            statements.append(f"{heading}: {_undecorated(line)}" if heading else _without_preamble(_undecorated(line)))
        else:
            heading = ""
            statements += sentences(_without_preamble(_undecorated(line)))
    return [part for part in statements if part]


def _undecorated(line: str) -> str:
    """The line without emphasis, and without quotation marks around the whole line."""
    line = " ".join(_DECORATION.sub("", line.strip()).split())
    inner = line[1:-1]
    quoted = (line[:1], line[-1:]) in _QUOTES and line[0] not in inner and line[-1] not in inner
    return inner.strip() if quoted and inner.strip() else line


def _without_preamble(line: str) -> str:
    while match := PREAMBLE.match(line):
        line = line[match.end() :].strip()
    return line


def without_unfinished(answer: Parts) -> Sequence[str]:
    """The parts of a truncated answer, without the last one unless it ends like a sentence."""
    if answer.json or (answer.parts and len(sentences(f"{answer.parts[-1]} Xyz abc.")) > 1):
        return answer.parts
    return answer.parts[:-1]
