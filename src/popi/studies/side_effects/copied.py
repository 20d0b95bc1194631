"""Does a summary carry a user's own text over? Pure functions of texts: no models, no files.

A summary should hold preferences in its own words. Two things are looked for: the longest span of words, and of
characters, that stands in a signal as it stands in the summary; and private items of the signals that reappear: names,
numbers, e-mail addresses, phone numbers, web addresses.

What this can't see: private facts that are reworded, names in lower case, names at the start of a sentence (they look
like any first word), scripts without capitals.
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
"""What may stand between the end of a sentence and the first word of the next."""
_TITLES = ("Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "St.")
_NO_NAMES = set(
    "Mr Mrs Ms Dr Prof St Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May "
    "June July August September October November December".split()
)
PHONE_DIGITS = 7
"""A phone number has this many digits or more."""


@dataclass(frozen=True)
class Span:
    """The longest copied span: of words, and of characters, which may be another one."""

    words: int
    characters: int


def text_of(signals: Iterable[Signal]) -> list[str]:
    """Every text of a user's signals, each by itself, the prompts' too."""
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
    """The longest span that stands in the summary and in one of the texts.

    Words count without case and punctuation; characters without case, white space folded to single blanks.
    """
    texts = list(texts)
    mine = words_of(summary)
    words = longest_common(mine, [words_of(text) for text in texts])
    characters = longest_common(_folded(summary), [_folded(text) for text in texts])
    return Span(words, characters)


def longest_common(one: Sequence[str], others: Sequence[Sequence[str]]) -> int:
    """Length of the longest run of items (words of a list, characters of a text) that stands in `one` and in another.

    A run of length n holds one of every shorter length, so the length is found by bisection.
    """
    low, high = 0, len(one)
    while low < high:
        middle = (low + high + 1) // 2
        mine = set(_runs(one, middle))
        if any(run in mine for other in others for run in _runs(other, middle)):
            low = middle
        else:
            high = middle - 1
    return low


def _runs(items: Sequence[str], length: int) -> Iterator[Hashable]:
    for i in range(len(items) - length + 1):
        run = items[i : i + length]
        yield run if isinstance(run, str) else tuple(run)


def private_items(text: str) -> dict[str, set[str]]:
    """Private items of a text, by kind, each in one form: addresses in lower case, numbers as digits alone.

    A number is one of two digits or more that is part of no address, phone number or word ("3 points" is no secret). A
    name is a word with a capital that does not begin a sentence, a line or a list item, nor is a day, a month or an
    abbreviation all in capitals.
    """
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    rest = text
    for kind, pattern in (("email", _EMAIL), ("url", _URL)):
        found[kind] = {match.lower().rstrip("/.,;:!?") for match in pattern.findall(rest)}
        rest = pattern.sub(" ", rest)
    phones = [match for match in _PHONE.findall(rest) if len(_digits(match)) >= PHONE_DIGITS]
    found["phone"] = set(map(_digits, phones))
    for phone in phones:
        rest = rest.replace(phone, " ")
    found["number"] = {_digits(match) for match in _NUMBER.findall(rest) if len(_digits(match)) > 1}
    for match in _WORD.finditer(rest):
        word = match[0]
        capital = word[0].isupper() and any(letter.islower() for letter in word)
        if capital and word not in _NO_NAMES and not _begins_sentence(rest[: match.start()]):
            found["name"].add(word)
    return found


def _begins_sentence(before: str) -> bool:
    """Whether what comes behind this text is the first word of a sentence, a line or a list item."""
    before = before.rstrip(_OPENING)
    if before.endswith(_TITLES):
        return False
    return not before or before[-1] in ".!?:…\n"


def reappearing(summary: str, texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Kind → (how many different private items of the texts stand in the summary, how many there are).

    A name reappears where the summary has it as a word with its capital, at the start of a sentence too; the others
    where the summary has the same item.
    """
    items = [private_items(text) for text in texts]
    own = private_items(summary)
    own["name"] = set(_WORD.findall(summary))
    counts = {}
    for kind in KINDS:
        there = set().union(*(found[kind] for found in items))
        counts[kind] = (len(there & own[kind]), len(there))
    return counts


def flags(span: Span, counts: dict[str, tuple[int, int]]) -> list[str]:
    """What a summary exceeds: `words`, `characters`, and each kind of private item that reappears."""
    long = {"words": span.words >= WORDS, "characters": span.characters >= CHARACTERS}
    return [name for name, exceeded in long.items() if exceeded] + [kind for kind in KINDS if counts[kind][0]]


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)
