"""The request to a prompted LLM, and selecting the statements about the user from its answer."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from popi.errors import AnswerError
from popi.profiles.statements.form import parts, storable, without_thoughts, without_unfinished
from popi.profiles.statements.phrases import ADDRESSED, LETTER, REFUSAL, asks, normal, says_nothing, words

LONGEST_ANSWER = 50_000
"""Maximum characters to read from an answer; a longer one counts as truncated."""
RECITED = 0.6
"""A statement with at least this share of its three-word runs in the prompt counts as recited from it."""
LOOP_WORDS = 12
"""A statement of at least this many words counts as a loop if at most half of its three-word runs are distinct."""
QUOTED_WORDS = 3
"""Minimum words for a statement to count as a quotation."""
NUMBERED = 3
"""This many statements that differ only in a number count as one."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"statements": {"type": "array", "items": {"type": "string"}}},
    "required": ["statements"],
    "additionalProperties": False,
}
"""JSON schema of the answer, for servers with structured output. It has no limits on length or number, since several
servers reject those."""


@dataclass(frozen=True)
class Bounds:
    """Limits on an answer.

    Attributes:
        clauses: maximum number of statements; further ones are dropped.
        characters: maximum characters per statement; longer ones are dropped.
    """

    clauses: int = 8
    characters: int = 500


def request(bounds: Bounds) -> str:
    """The request that is added to the template's prompt, with or without a JSON schema."""
    return (
        f"Give at most {bounds.clauses} statements, each one a short, complete sentence about one preference of this "
        "user, understandable without the others. One statement per line: no numbering, no headings, no introduction, "
        "nothing after the last. Where a JSON list of statements is asked for, one statement per element."
    )


def read(
    answer: str,
    *,
    cut: bool = False,
    own: str = "",
    quotable: Sequence[str] = (),
    bounds: Bounds | None = None,
    nothing: Callable[[str], bool] = says_nothing,
) -> list[str]:
    """The statements of an answer; empty if it is an empty list, or says that nothing is known about the user.

    It drops hidden reasoning, introductions, questions, text addressed to the reader, repetitions, sentences from
    popi's own prompt, statements that are too long, and the last statement of a truncated answer.

    Args:
        answer: what the model wrote.
        cut: whether it hit its token limit.
        own: the prompt without user data; statements that recite it are dropped.
        quotable: texts that the user did not write, such as responses; quotations from them are dropped.
        bounds: maximum number and length of statements.
        nothing: decides whether a statement says that nothing is known.

    Raises:
        AnswerError: nothing in it can be used. The message says why, without quoting it.
    """
    text = without_thoughts(storable(answer[:LONGEST_ANSWER])).strip()
    if not text:
        raise AnswerError("the answer is nothing but hidden reasoning" if answer.strip() else "the answer is empty")
    parsed = parts(text)
    if parsed.whole and not parsed.parts:
        return []
    statements: Sequence[str] = parsed.parts
    if (cut or len(answer) > LONGEST_ANSWER) and not parsed.whole:
        statements = without_unfinished(parsed)
        if not statements:
            raise AnswerError("the answer was cut off within its first statement; raise max_tokens")
    if not statements:
        raise AnswerError("nothing in the answer can be used: it has no text")
    return _usable(statements, own, quotable, bounds or Bounds(), nothing)


def _usable(
    statements: Sequence[str], own: str, quotable: Sequence[str], bounds: Bounds, nothing: Callable[[str], bool]
) -> list[str]:
    if REFUSAL.match(statements[0]):
        raise AnswerError("the model refused to write a summary")
    own_runs, own_lines = set(_runs(own)), {normal(line) for line in own.splitlines()}
    quoted = [f" {normal(text)} " for text in quotable]
    numbered = Counter(map(_numberless, statements))
    seen: set[str] = set()
    dropped: Counter[str] = Counter()
    usable: list[str] = []
    nothing_known = False
    for part in statements:
        key = without if numbered[without := _numberless(part)] >= NUMBERED else normal(part)
        if nothing(part) or says_nothing(part):
            nothing_known = True
        elif not LETTER.search(part) or REFUSAL.match(part) or ADDRESSED.match(part) or asks(part):
            dropped["no statement about the user"] += 1
        elif normal(part) in own_lines or _share(_runs(part), own_runs) >= RECITED:
            dropped["its own prompt"] += 1
        elif len(words(part)) >= QUOTED_WORDS and any(f" {normal(part)} " in text for text in quoted):
            dropped["quotations of the signals"] += 1
        elif key in seen or _loops(part):
            dropped["repetition"] += 1
        elif len(part) > bounds.characters:
            dropped[f"a statement of more than {bounds.characters} characters"] += 1
        else:
            usable.append(part)
        seen.add(key)
    if not usable and not nothing_known:
        raise AnswerError(f"nothing in the answer can be used: {dropped.most_common(1)[0][0]}")
    return usable[: bounds.clauses]


def _numberless(text: str) -> str:
    return " ".join("#" if word.isdigit() else word for word in words(text))


def _runs(text: str) -> list[tuple[str, ...]]:
    split = words(text)
    return [tuple(split[i : i + 3]) for i in range(len(split) - 2)]


def _share(part: Sequence[tuple[str, ...]], whole: Collection[tuple[str, ...]]) -> float:
    return sum(run in whole for run in part) / len(part) if part else 0.0


def _loops(text: str) -> bool:
    runs = _runs(text)
    return len(runs) + 2 >= LOOP_WORDS and len(set(runs)) <= len(runs) / 2
