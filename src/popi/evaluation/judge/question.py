"""What a judge is asked, and what it may say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from popi.data.users import Person
from popi.errors import ConfigError
from popi.signals.types import Prompt

Verdict = Literal["first", "second", "tie"]
Told = Literal["auto", "persona", "signals"]
"""What a judge is told of a user: the oracle persona, the user's signals, or (auto) the persona where it is known."""
SEEN = "seen_topics"
"""Of judge.json: the figures on topics that were trained on. Also their folder."""
CHECKED = ("valid", "on_topic")
"""What the nano world's truth checks of each response."""


@dataclass(frozen=True)
class Question:
    """Which of two responses does this user prefer?

    Attributes:
        person: the user: signals, and the truth where it is known. Each judge takes of it what it is told.
        prompt: the task prompt.
        first, second: the responses, in the order in which they are shown.
    """

    person: Person
    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True)
class Missing:
    """No verdict, and why.

    Attributes:
        kind: `no response`: there was none to judge; `failed`: no answer came; `unreadable`: what came is no verdict;
            `too long`: the question does not fit the judge's context. A resume asks the first two again.
        reason: for people to read.
    """

    kind: Literal["no response", "failed", "unreadable", "too long"]
    reason: str


OnVerdict = Callable[[int, Verdict | Missing], None]
"""Told a question's index and what came of it."""


Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


class Judge(Protocol):
    """Decides questions."""

    @property
    def label(self) -> str:
        """A short name, for tables and folders."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that its verdicts depend on, as JSON; a resume under other settings is refused."""
        ...

    def check(self, people: Sequence[Person]) -> None:
        """Raise ConfigError where it can't decide for one of these users."""
        ...

    def ask(self, questions: Sequence[Question], on_verdict: OnVerdict) -> None:
        """Decide every question; `on_verdict` is told each as soon as it is there, in any order."""
        ...


@runtime_checkable
class WorldJudge(Judge, Protocol):
    """A judge that knows the world which the users come from."""

    def inspect(self, prompt: str, response: str) -> dict[str, bool]:
        """What is so of a response to a prompt, by itself; the figures have the share of each method's responses."""
        ...

    def on_seen_topics(self, people: Sequence[Person], prompts: int | None, seed: int) -> list[Person]:
        """The same users with at most `prompts` prompts each on topics that were trained on, drawn by a seed."""
        ...


def told_persona(person: Person, told: Told) -> str | None:
    """The persona that a judge is told, None where it is told the signals.

    Raises:
        ConfigError: it should be told the persona, and there is none.
    """
    persona = None if told == "signals" else person.oracle
    if told == "persona" and persona is None:
        raise ConfigError(f"user {person.user.user_id!r} has no known persona; use --told auto or signals")
    return persona
