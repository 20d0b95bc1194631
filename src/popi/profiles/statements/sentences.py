"""Splitting prose between sentences, and never within one."""

import re
from collections.abc import Iterable

import sentencex

from popi.profiles.statements.phrases import GOES_ON, LETTER, asks

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "tr", "hi", "ar")
"""The language of a text is unknown, so it is split only where the rules and abbreviations of all of these agree: two
sentences may stay together, but none is cut. Scripts without abbreviations work with any of them."""
BY_CASE = ("de",)
"""Languages whose rules need a capital after a full stop. They are skipped for texts without capitals."""
LONGEST_LINE = 4_000
"""Longer lines are split by the first language only: the rules for quotation marks take quadratic time."""
_NO_END = re.compile(r"(?:(?<![^\s(.])[^\W\d_\u3040-\u30ff\u3400-\u9fff]\.|[。！？][”’」』])\s*$")
"""Initials and single-letter abbreviations; and quotations in Chinese and Japanese, after which a sentence continues as
often as it ends."""
_UNSPACED = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]$")
_BULLET = re.compile(
    r"\s*(?:[-*+–—](?:\s+|(?=[^\W\d]))|(?:[•·・‣◦▪✅✔➤→]|\(?\d{1,2}[.):、](?!\d)|[a-z]\)|\d\ufe0f?\u20e3)\s*)(?=\S)"
)
_ENDS = (".", "!", "?", ";", ":", ",", "。", "！", "？", "।", "؟")


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph. A sentence that depends on the previous one ("But only when asked.") stays with it,
    as does the answer to a question.
    """
    text = " ".join(text.split())
    languages: tuple[str, ...] = LANGUAGES[:1] if len(text) > LONGEST_LINE else LANGUAGES
    if text == text.lower():
        languages = tuple(language for language in languages if language not in BY_CASE)
    ends = set.intersection(*(_ends(text, language) for language in languages))
    parts: list[str] = []
    start = 0
    for end in sorted({end for end in ends if not _NO_END.search(text[max(0, end - 9) : end])} | {len(text)}):
        part, start = text[start:end].strip(), end
        if parts and (GOES_ON.match(part) or asks(parts[-1]) or not LETTER.search(part)):
            parts[-1] += part if _UNSPACED.search(parts[-1]) else f" {part}"
        elif part:
            parts.append(part)
    return [part.strip() for part in parts]


def _ends(text: str, language: str) -> set[int]:
    return {boundary["end_index"] for boundary in sentencex.get_sentence_boundaries(language, text)}


def bullet(line: str) -> int | None:
    """Where the text of a list item begins; `None` if the line is not one."""
    match = _BULLET.match(line)
    return match.end() if match else None


def lines(text: str) -> list[str]:
    """The parts of a text: list items, and the sentences of other lines."""
    parts = []
    for line in text.splitlines():
        start = bullet(line)
        parts += sentences(line) if start is None else [line[start:].strip()]
    return [part for part in parts if part]


def ended(texts: Iterable[str]) -> list[str]:
    """Prepare texts for joining: add a full stop to all but the last if they don't end with punctuation."""
    items = list(texts)
    return [*(text if text.endswith(_ENDS) else f"{text}." for text in items[:-1]), *items[-1:]]
