"""Detect whether a summary copies a user's own text. Pure functions of texts, without models or files.

A summary should express preferences in its own words. This looks for the longest span of words, and of characters, that
a signal and the summary have in common, and for private items of the signals that reappear: names, numbers, e-mail
addresses, phone numbers, web addresses.

It can't detect reworded private facts, names in lower case, names at the start of a sentence (where any word is
capitalised), or names in scripts without capitals.
"""

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from popi.signals.types import Prompt, Signal, message_text

KINDS = ("email", "url", "phone", "number", "name")
WORDS = 8
"""A copied span of this many words or more is flagged."""
CHARACTERS = 50
"""A copied span of this many characters or more is flagged."""

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]]+", re.IGNORECASE)
_PHONE = re.compile(r"(?<![\w.])(?:\+|\(0|0|\(?\d{3}\)?[ -])[\d ()/.-]{5,}\d(?!\w)")
_NUMBER = re.compile(r"(?<!\w)\d+(?:[.,:/-]\d+)*(?!\w)")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_OPENING = " \t\"'“‘(*_#>•-"
"""Characters allowed between the end of a sentence and the first word of the next."""
_TITLES = ("Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "St.")
_NO_NAMES = set(
    "Mr Mrs Ms Dr Prof St Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May "
    "June July August September October November December".split()
)
PHONE_DIGITS = 7
"""Minimum digits of a phone number."""


@dataclass(frozen=True)
class Span:
    """The longest copied spans in words and in characters, which may be different spans."""

    words: int
    characters: int


def text_of(signals: Iterable[Signal]) -> list[str]:
    """All texts of a user's signals, including prompts, as separate items."""
    texts = []
    for signal in signals:
        values = signal.model_dump(exclude={"type", "id", "time", "prompt"}).values()
        texts += [value for value in values if isinstance(value, str)]
        prompt: Prompt = getattr(signal, "prompt", "")
        texts += [prompt] if isinstance(prompt, str) else list(map(message_text, prompt))
    return [text for text in texts if text]


def words_of(text: str) -> list[str]:
    """Words in lower case, without punctuation."""
    return [word.lower() for word in _WORD.findall(text)]


def copied_span(summary: str, texts: Iterable[str]) -> Span:
    """The longest span that the summary shares with one of the texts.

    Words are compared without case and punctuation; characters without case and with white space collapsed.
    """
    texts = list(texts)
    words = longest_common(words_of(summary), [words_of(text) for text in texts])
    characters = longest_common(_folded(summary), [_folded(text) for text in texts])
    return Span(words, characters)


def longest_common(items: Sequence[str], others: Sequence[Sequence[str]]) -> int:
    """Length of the longest run (of words in a list, or characters in a text) that `items` and one of `others` share.

    A run of length n contains runs of every shorter length, so bisection finds the maximum.
    """
    low, high = 0, len(items)
    while low < high:
        middle = (low + high + 1) // 2
        runs = set(_runs(items, middle))
        if any(run in runs for other in others for run in _runs(other, middle)):
            low = middle
        else:
            high = middle - 1
    return low


def _runs(items: Sequence[str], length: int) -> Iterator[Hashable]:
    for i in range(len(items) - length + 1):
        run = items[i : i + length]
        yield run if isinstance(run, str) else tuple(run)


def private_items(text: str) -> dict[str, set[str]]:
    """Private items of a text by kind, normalised: addresses in lower case, numbers as digits only.

    A number has at least two digits and is not part of an address, phone number or word ("3 points" is not private). A
    name is a capitalised word that does not begin a sentence, a line or a list item, and is not a day, a month or an
    abbreviation in capitals.
    """
    items: dict[str, set[str]] = {kind: set() for kind in KINDS}
    rest = text
    for kind, pattern in (("email", _EMAIL), ("url", _URL)):
        items[kind] = {match.lower().rstrip("/.,;:!?") for match in pattern.findall(rest)}
        rest = pattern.sub(" ", rest)
    phones = [match for match in _PHONE.findall(rest) if len(_digits(match)) >= PHONE_DIGITS]
    items["phone"] = set(map(_digits, phones))
    for phone in phones:
        rest = rest.replace(phone, " ")
    items["number"] = {_digits(match) for match in _NUMBER.findall(rest) if len(_digits(match)) > 1}
    for match in _WORD.finditer(rest):
        word = match[0]
        capital = word[0].isupper() and any(letter.islower() for letter in word)
        if capital and word not in _NO_NAMES and not _begins_sentence(rest[: match.start()]):
            items["name"].add(word)
    return items


def _begins_sentence(before: str) -> bool:
    """Whether the word after this text is the first of a sentence, a line or a list item."""
    before = before.rstrip(_OPENING)
    if before.endswith(_TITLES):
        return False
    return not before or before[-1] in ".!?:…\n"


def reappearing(summary: str, texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Kind → (number of distinct private items of the texts that appear in the summary, total number of them).

    A name reappears if the summary has it as a capitalised word, even at the start of a sentence; other items reappear
    if the summary has the same item.
    """
    by_text = [private_items(text) for text in texts]
    own = private_items(summary)
    own["name"] = set(_WORD.findall(summary))
    counts = {}
    for kind in KINDS:
        distinct = set().union(*(items[kind] for items in by_text))
        counts[kind] = (len(distinct & own[kind]), len(distinct))
    return counts


def flags(span: Span, counts: dict[str, tuple[int, int]]) -> list[str]:
    """The limits that a summary exceeds: `words`, `characters`, and each kind of private item that reappears."""
    long = {"words": span.words >= WORDS, "characters": span.characters >= CHARACTERS}
    return [name for name, exceeded in long.items() if exceeded] + [kind for kind in KINDS if counts[kind][0]]


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)
