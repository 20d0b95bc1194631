"""The screening itself; `patterns` has what it looks for."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from popi.errors import DataError
from popi.profiles.screening.patterns import DOMAIN, NAMES, NO_NAME, PATTERNS, RUN, SPAN, TLDS, TONGUES, Kind
from popi.signals.lookalikes import fold, without_hidden
from popi.signals.neutralise import neutralise

_UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\u3164]")
_LINE_END = re.compile("[\x0b\x0c\x85\u2028\u2029]")
_ORDER: tuple[Kind, ...] = ("link", "code", "markup", "encoded", "instruction")
_DESCRIPTIONS: dict[Kind, str] = {
    "link": "links or addresses",
    "code": "code",
    "markup": "tags or a chat template's tokens",
    "encoded": "encoded text",
    "instruction": "instructions about the model itself (its rules, role, prompt or tools)",
}


class Unfit(DataError):
    """A text has content that a summary must not contain.

    Attributes:
        kind: the kind of content.
        part: the sentence with it, cut to 80 characters.
    """

    def __init__(self, kind: Kind, part: str) -> None:
        super().__init__(f"a summary must not contain {_DESCRIPTIONS[kind]}, but {part!r} does; use plain words")
        self.kind, self.part = kind, part


@dataclass(frozen=True)
class Screened:
    """A summary fit for use.

    Attributes:
        text: the remaining text; may be empty.
        removed: the kinds of content that were removed, each once.
    """

    text: str
    removed: tuple[Kind, ...] = ()


def screened(text: str) -> Screened:
    """A model's text without content that a summary must not contain. Clean text is returned unchanged.

    Sentences with links and code are removed, since a model may quote them in good faith. With any other kind, the
    whole text is dropped: the rest of a text with an attack can't be trusted, and may only make sense with it.
    """
    parts, kinds = screened_parts(list(_sentences(text := visible(text))), "")
    return Screened("".join(parts).strip(), kinds) if kinds else Screened(text)


def screened_parts(parts: Sequence[str], joint: str = "\n") -> tuple[list[str], tuple[Kind, ...]]:
    """The parts of a text that pass, by the rules of `screened`, and the kinds of content removed."""
    parts = [visible(part) for part in parts]
    kinds = found_in(joint.join(parts))
    if kinds:
        parts = [part for part in parts if not found_in(part)] if set(kinds) <= {"link", "code"} else []
    return [] if kinds and found_in(joint.join(parts)) else parts, kinds


def checked(text: str) -> str:
    """A person's text without invisible characters.

    Raises:
        Unfit: it has content that a summary must not contain; the message names the sentence and what to do.
    """
    text = visible(text)
    if kinds_in_text := found_in(text):
        part, kinds = next(
            ((one, kinds_in_part) for one in _sentences(text) if (kinds_in_part := found_in(one))),
            (text, kinds_in_text),
        )
        shown = " ".join(part.split())
        shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
        raise Unfit(kinds[0], shown)
    return text


def visible(text: str) -> str:
    """The text without control and invisible characters, except joiners, which emoji and some scripts need."""
    return _UNSEEN.sub("", _LINE_END.sub("\n", without_hidden(text)))


def found_in(text: str) -> tuple[Kind, ...]:
    """All kinds of content in a text that a summary must not contain."""
    plain = fold(text)
    kinds: list[Kind] = [kind for kind, pattern in PATTERNS if pattern.search(plain)]
    if "code" not in kinds and any(NO_NAME.search(span) for span in SPAN.findall(plain)):
        kinds.append("code")
    if any(_LETTER.search(run) and _DIGIT.search(run) for run in RUN.findall(plain)):
        kinds.append("encoded")
    if "link" not in kinds and any(_is_address(name) for name in DOMAIN.findall(plain)):
        kinds.append("link")
    if "instruction" not in kinds and _orders(plain):
        kinds.append("instruction")
    if neutralise(text) != text and "markup" not in kinds:
        kinds.append("markup")
    return tuple(sorted(set(kinds), key=_ORDER.index))


# -- sentences ------------------------------------------------------------------------------------------------------

_LETTER, _DIGIT = re.compile("[a-z]"), re.compile("[0-9]")
_FENCE = re.compile(r"(?:```|~~~).*?(?:```|~~~|\Z)\s*", re.DOTALL)
_SENTENCE = re.compile(r".*?(?:[.!?…](?=\s)|[。！？]|\n|\Z)\s*", re.DOTALL)


def _sentences(text: str) -> Iterator[str]:
    """Yield consecutive pieces of a text, which join to the whole; a fenced block is one piece."""
    at = 0
    for fence in _FENCE.finditer(text):
        yield from filter(None, _SENTENCE.findall(text[at : fence.start()]))
        yield fence[0]
        at = fence.end()
    yield from filter(None, _SENTENCE.findall(text[at:]))


_PART = re.compile(r"[.!?\n。！？]+")


def _orders(plain: str) -> bool:
    """Whether a sentence in a language other than English says to ignore earlier text."""
    rows = [row for row in TONGUES if all(part.search(plain) for part in row)]
    return any(all(part.search(one) for part in row) for row in rows for one in _PART.split(plain))


def _is_address(match: tuple[str, str]) -> bool:
    name, slash = match
    last = name.rpartition(".")[2]
    # Exclude "e.g.it" and initials ("u.s. in"): some part before the last must have more than one letter.
    long = any(len(part) > 1 for part in name.split(".")[:-1])
    return bool(slash and long and last.isalpha()) or (long and last in TLDS and name not in NAMES)
