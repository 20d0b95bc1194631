"""The nano world's truth as judge: no LLM, no guess."""

from collections.abc import Sequence
from typing import Any

from popi.data.users import Person
from popi.errors import ConfigError
from popi.evaluation.judge.question import OnVerdict, Question, Verdict
from popi.nano.truth import wanted_shown


class TruthJudge:
    """Prefers the response that meets more of the user's true preferences; a tie where both meet as many.

    What a response shows is read off its text (`popi.nano.truth.wanted_shown`). What it shows of attributes that the
    user does not care about counts for nothing.
    """

    label = "truth"

    def settings(self) -> dict[str, Any]:
        return {"kind": "truth"}

    def check(self, people: Sequence[Person]) -> None:
        for person in people:
            _preferences(person)

    def ask(self, questions: Sequence[Question], on_verdict: OnVerdict) -> None:
        for index, question in enumerate(questions):
            on_verdict(index, verdict(_preferences(question.person), question.first, question.second))


def _preferences(person: Person) -> dict[str, str]:
    if person.preferences is None:
        raise ConfigError(
            f"user {person.user.user_id!r}: their true preferences are not known, as they are in the nano world alone; "
            "use --judge api or --judge local"
        )
    return {one[0]: one[1] for one in person.preferences}


def verdict(preferences: dict[str, str], first: str, second: str) -> Verdict:
    """Which response meets more of the preferences (attribute → wanted value)."""
    gain = wanted_shown(first, preferences) - wanted_shown(second, preferences)
    return "first" if gain > 0 else "second" if gain < 0 else "tie"
