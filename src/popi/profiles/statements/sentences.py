"""Prose, cut between sentences and never within one."""

import re
from collections.abc import Iterable

import sentencex

from popi.profiles.statements.phrases import GOES_ON, LETTER, asks

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "tr", "hi", "ar")
"""Nobody says in which language a text is. So it is cut only where the rules and abbreviations of all of these agree:
two sentences may stay together, and none is cut in two. Scripts without abbreviations follow any of them."""
BY_CASE = ("de",)
"""Languages whose rules look for a capital after a full stop. They have no say over a text without capitals."""
LONGEST_LINE = 4_000
"""Longer lines are cut by the first language alone: the rules for quotation marks take quadratic time."""
_NO_END = re.compile(r"(?:(?<![^\s(.])[^\W\d_\u3040-\u30ff\u3400-\u9fff]\.|[。！？][”’」』])\s*$")
"""Initials and abbreviations of single letters; and quotations in Chinese and Japanese, after which a sentence goes on
as often as it ends."""
_UNSPACED = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]$")
_BULLET = re.compile(
    r"\s*(?:[-*+–—](?:\s+|(?=[^\W\d]))|(?:[•·・‣◦▪✅✔➤→]|\(?\d{1,2}[.):、](?!\d)|[a-z]\)|\d\ufe0f?\u20e3)\s*)(?=\S)"
)
_ENDS = (".", "!", "?", ";", ":", ",", "。", "！", "？", "।", "؟")


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph. One that only holds with the sentence before ("But only when asked.") stays with
    it, as an answer stays with its question.
    """
    text = " ".join(text.split())
    languages: tuple[str, ...] = LANGUAGES[:1] if len(text) > LONGEST_LINE else LANGUAGES
    if text == text.lower():
        languages = tuple(language for language in languages if language not in BY_CASE)
    ends = set.intersection(*(_ends(text, language) for language in languages))
    found: list[str] = []
    start = 0
    for end in sorted({end for end in ends if not _NO_END.search(text[max(0, end - 9) : end])} | {len(text)}):
        part, start = text[start:end].strip(), end
        if found and (GOES_ON.match(part) or asks(found[-1]) or not LETTER.search(part)):
            found[-1] += part if _UNSPACED.search(found[-1]) else f" {part}"
        elif part:
            found.append(part)
    return [part.strip() for part in found]


def _ends(text: str, language: str) -> set[int]:
    return {boundary["end_index"] for boundary in sentencex.get_sentence_boundaries(language, text)}


def bullet(line: str) -> int | None:
    """Where the text of a list's item begins; None where the line is no item."""
    match = _BULLET.match(line)
    return match.end() if match else None


def lines(text: str) -> list[str]:
    """What a text says, part by part: an item of a list is one, of other lines each sentence is."""
    parts = []
    for line in text.splitlines():
        start = bullet(line)
        parts += sentences(line) if start is None else [line[start:].strip()]
    return [part for part in parts if part]


def ended(texts: Iterable[str]) -> list[str]:
    """Texts as they stand in one: every one but the last has an end."""
    listed = list(texts)
    return [*(text if text.endswith(_ENDS) else f"{text}." for text in listed[:-1]), *listed[-1:]]
