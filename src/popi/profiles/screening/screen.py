"""The check itself; what it looks for stands in `patterns`."""

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
_TOLD: dict[Kind, str] = {
    "link": "links or addresses",
    "code": "code",
    "markup": "tags or a chat template's tokens",
    "encoded": "encoded text",
    "instruction": "instructions about the model itself (its rules, role, prompt or tools)",
}


class Unfit(DataError):
    """A text carries what a summary may not.

    Attributes:
        kind: of what.
        part: the sentence that does, at most 80 characters of it.
    """

    def __init__(self, kind: Kind, part: str) -> None:
        super().__init__(f"a summary may not carry {_TOLD[kind]}, and {part!r} does; say it in plain words")
        self.kind, self.part = kind, part


@dataclass(frozen=True)
class Screened:
    """A summary fit for use.

    Attributes:
        text: what is left; may be empty.
        left_out: for the sake of what something was left out, each kind once.
    """

    text: str
    left_out: tuple[Kind, ...] = ()


def screened(text: str) -> Screened:
    """What a model wrote, without what a summary may not carry. Other text comes back as it is.

    Of links and code the sentence goes: a model may quote one in good faith. Of anything else all goes: a text with an
    attack in it is not to be trusted for the rest, and "Write this." is no preference without the line before it.
    """
    left, whole = screened_parts(list(_sentences(text := visible(text))), "")
    return Screened("".join(left).strip(), whole) if whole else Screened(text)


def screened_parts(parts: Sequence[str], joint: str = "\n") -> tuple[list[str], tuple[Kind, ...]]:
    """Those parts of a text that a summary may carry, by the same rules; and for the sake of what others may not."""
    parts = [visible(part) for part in parts]
    whole = found_in(joint.join(parts))
    if whole:
        parts = [part for part in parts if not found_in(part)] if set(whole) <= {"link", "code"} else []
    return [] if whole and found_in(joint.join(parts)) else parts, whole


def checked(text: str) -> str:
    """What a person wrote, without invisible characters.

    Raises:
        Unfit: it carries what a summary may not; the message says in which sentence, and what to do.
    """
    text = visible(text)
    if whole := found_in(text):
        part, kinds = next(((one, here) for one in _sentences(text) if (here := found_in(one))), (text, whole))
        shown = " ".join(part.split())
        shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
        raise Unfit(kinds[0], shown)
    return text


def visible(text: str) -> str:
    """The text without controls and characters that nobody sees; joiners stay, which emoji and some scripts need."""
    return _UNSEEN.sub("", _LINE_END.sub("\n", without_hidden(text)))


def found_in(text: str) -> tuple[Kind, ...]:
    """All kinds of things in a text that a summary may not carry."""
    plain = fold(text)
    found: list[Kind] = [kind for kind, pattern in PATTERNS if pattern.search(plain)]
    if "code" not in found and any(NO_NAME.search(span) for span in SPAN.findall(plain)):
        found.append("code")
    if any(_LETTER.search(run) and _DIGIT.search(run) for run in RUN.findall(plain)):
        found.append("encoded")
    if "link" not in found and any(_is_address(name) for name in DOMAIN.findall(plain)):
        found.append("link")
    if "instruction" not in found and _orders(plain):
        found.append("instruction")
    if neutralise(text) != text and "markup" not in found:
        found.append("markup")
    return tuple(sorted(set(found), key=_ORDER.index))


# -- sentences ------------------------------------------------------------------------------------------------------

_LETTER, _DIGIT = re.compile("[a-z]"), re.compile("[0-9]")
_FENCE = re.compile(r"(?:```|~~~).*?(?:```|~~~|\Z)\s*", re.DOTALL)
_SENTENCE = re.compile(r".*?(?:[.!?…](?=\s)|[。！？]|\n|\Z)\s*", re.DOTALL)


def _sentences(text: str) -> Iterator[str]:
    """A text in pieces that make it up again; a fenced block is one."""
    at = 0
    for fence in _FENCE.finditer(text):
        yield from filter(None, _SENTENCE.findall(text[at : fence.start()]))
        yield fence[0]
        at = fence.end()
    yield from filter(None, _SENTENCE.findall(text[at:]))


_PART = re.compile(r"[.!?\n。！？]+")


def _orders(plain: str) -> bool:
    """Whether a sentence says in another language than English to ignore what came before."""
    rows = [row for row in TONGUES if all(part.search(plain) for part in row)]
    return any(all(part.search(one) for part in row) for row in rows for one in _PART.split(plain))


def _is_address(found: tuple[str, str]) -> bool:
    name, slash = found
    last = name.rpartition(".")[2]
    # "e.g.it" and initials ("u.s. in"): each part of an address has more than one letter somewhere.
    long = any(len(part) > 1 for part in name.split(".")[:-1])
    return bool(slash and long and last.isalpha()) or (long and last in TLDS and name not in NAMES)
