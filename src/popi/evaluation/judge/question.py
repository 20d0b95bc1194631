"""Questions to a judge, its verdicts, and the interface of a judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from popi.data.users import Person
from popi.errors import ConfigError
from popi.signals.types import Prompt

Verdict = Literal["first", "second", "tie"]
Evidence = Literal["auto", "persona", "signals"]
"""What a judge sees of a user: the oracle persona, the signals, or (auto) the persona if known, else the signals."""
SEEN = "seen_topics"
"""Key in judge.json of the figures on training topics; also the name of their folder."""
CHECKED = ("valid", "on_topic")
"""The nano world's checks of each response."""


@dataclass(frozen=True)
class Question:
    """Which of two responses does this user prefer?

    Attributes:
        person: the user: signals, and the true preferences if known. A judge uses only what it may see.
        prompt: the task prompt.
        first, second: the responses, in the order shown.
    """

    person: Person
    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True)
class Missing:
    """A missing verdict and the reason.

    Attributes:
        kind: `no response`: there was none to judge; `failed`: the request failed; `unreadable`: the answer has no
            verdict; `too long`: the question does not fit the judge's context. A resume retries the first two.
        reason: for people to read.
    """

    kind: Literal["no response", "failed", "unreadable", "too long"]
    reason: str


OnVerdict = Callable[[int, Verdict | Missing], None]
"""Called with a question's index and its result."""


Progress = Callable[[str, int, int], None]
"""Called with the current step, the amount done and the total."""


class Judge(Protocol):
    """Decides questions."""

    @property
    def label(self) -> str:
        """A short name, for tables and folders."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that its verdicts depend on, as JSON; resuming under other settings is refused."""
        ...

    def check(self, people: Sequence[Person]) -> None:
        """Raise ConfigError if it can't judge for one of these users."""
        ...

    def ask(self, questions: Sequence[Question], on_verdict: OnVerdict) -> None:
        """Judge every question; calls `on_verdict` with each result as soon as it is available, in any order."""
        ...


@runtime_checkable
class WorldJudge(Judge, Protocol):
    """A judge that knows the world that the users come from."""

    def inspect(self, prompt: str, response: str) -> dict[str, bool]:
        """Checks of a single response to a prompt; the figures report the share of responses that pass each."""
        ...

    def on_seen_topics(self, people: Sequence[Person], prompts: int | None, seed: int) -> list[Person]:
        """The same users with at most `prompts` prompts each on training topics, drawn with a seed."""
        ...


def persona_for(person: Person, evidence: Evidence) -> str | None:
    """The persona to show a judge, or None if it should see the signals.

    Raises:
        ConfigError: it should see the persona, and there is none.
    """
    persona = None if evidence == "signals" else person.oracle
    if evidence == "persona" and persona is None:
        raise ConfigError(f"user {person.user.user_id!r} has no known persona; use --evidence auto or signals")
    return persona
