"""What to ask a prompted LLM for, and which parts of its answer are statements about the user."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from popi.errors import AnswerError
from popi.profiles.statements.form import parts, storable, without_thoughts, without_unfinished
from popi.profiles.statements.phrases import ADDRESSED, LETTER, REFUSAL, asks, normal, says_nothing, words

LONGEST_ANSWER = 50_000
"""Characters of an answer that are read; what is beyond counts as cut off."""
RECITED = 0.6
"""From this share of its runs of three words on a statement is taken for a piece of the prompt."""
LOOP_WORDS = 12
"""A statement of so many words or more of whose runs of three at most half are different goes round in circles."""
QUOTED_WORDS = 3
"""Of so many words or more, a statement can be a quotation."""
NUMBERED = 3
"""So many statements that differ by a number alone are one."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"statements": {"type": "array", "items": {"type": "string"}}},
    "required": ["statements"],
    "additionalProperties": False,
}
"""JSON schema of the answer that servers with structured output are asked for. Without bounds on length or number,
which several of them refuse."""


@dataclass(frozen=True)
class Bounds:
    """How much an answer may say.

    Attributes:
        clauses: maximum number of statements; the first count.
        characters: maximum length of a statement; a longer one is dropped.
    """

    clauses: int = 8
    characters: int = 500


def request(bounds: Bounds) -> str:
    """What an LLM is asked beyond its template; it goes with a JSON schema and without."""
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
    """The statements of an answer; none where it is an empty list, or says that nothing is known of the user.

    Dropped are hidden reasoning, introductions, questions, what is addressed to the reader, repetitions, sentences of
    popi's own prompt, what is too long, and the last statement of an answer that was cut off.

    Args:
        answer: what the model wrote.
        cut: whether it hit its token limit.
        own: the prompt without anything of the user; what recites it is dropped.
        quotable: texts that the user did not write, prompts' answers say: a piece of one tells nothing of the user.
        bounds: how many statements, and how long.
        nothing: whether a statement says that nothing is known.

    Raises:
        AnswerError: nothing in it can be used. The message says why, and quotes nothing of it.
    """
    text = without_thoughts(storable(answer[:LONGEST_ANSWER])).strip()
    if not text:
        raise AnswerError("the answer is nothing but hidden reasoning" if answer.strip() else "the answer is empty")
    found = parts(text)
    if found.whole and not found.parts:
        return []
    said: Sequence[str] = found.parts
    if (cut or len(answer) > LONGEST_ANSWER) and not found.whole:
        said = without_unfinished(found)
        if not said:
            raise AnswerError("the answer was cut off within its first statement; raise max_tokens")
    if not said:
        raise AnswerError("nothing in the answer can be used: it holds no text")
    return _usable(said, own, quotable, bounds or Bounds(), nothing)


def _usable(
    said: Sequence[str], own: str, quotable: Sequence[str], bounds: Bounds, nothing: Callable[[str], bool]
) -> list[str]:
    if REFUSAL.match(said[0]):
        raise AnswerError("the model refused to write a summary")
    own_runs, own_lines = set(_runs(own)), {normal(line) for line in own.splitlines()}
    quoted = [f" {normal(text)} " for text in quotable]
    numbered = Counter(map(_numberless, said))
    seen: set[str] = set()
    dropped: Counter[str] = Counter()
    usable: list[str] = []
    nothing_known = False
    for part in said:
        same = without if numbered[without := _numberless(part)] >= NUMBERED else normal(part)
        if nothing(part) or says_nothing(part):
            nothing_known = True
        elif not LETTER.search(part) or REFUSAL.match(part) or ADDRESSED.match(part) or asks(part):
            dropped["no statement about the user"] += 1
        elif normal(part) in own_lines or _share(_runs(part), own_runs) >= RECITED:
            dropped["its own prompt"] += 1
        elif len(words(part)) >= QUOTED_WORDS and any(f" {normal(part)} " in text for text in quoted):
            dropped["quotations of the signals"] += 1
        elif same in seen or _loops(part):
            dropped["repetition"] += 1
        elif len(part) > bounds.characters:
            dropped[f"a statement of more than {bounds.characters} characters"] += 1
        else:
            usable.append(part)
        seen.add(same)
    if not usable and not nothing_known:
        raise AnswerError(f"nothing in the answer can be used: {dropped.most_common(1)[0][0]}")
    return usable[: bounds.clauses]


def _numberless(text: str) -> str:
    return " ".join("#" if word.isdigit() else word for word in words(text))


def _runs(text: str) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[i : i + 3]) for i in range(len(found) - 2)]


def _share(part: Sequence[tuple[str, ...]], whole: Collection[tuple[str, ...]]) -> float:
    return sum(run in whole for run in part) / len(part) if part else 0.0


def _loops(text: str) -> bool:
    runs = _runs(text)
    return len(runs) + 2 >= LOOP_WORDS and len(set(runs)) <= len(runs) / 2
