"""The nano world's true preferences as judge, without an LLM."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from popi.data.users import Person
from popi.errors import ConfigError
from popi.evaluation.judge.question import CHECKED, OnVerdict, Question, Verdict
from popi.nano.grammar import TOPICS
from popi.nano.seen import seen_targets
from popi.nano.truth import topics_in, valid, wanted_at, wanted_shown
from popi.signals.render import flat

MOST = len(TOPICS)
"""Maximum prompts on seen topics, one per topic."""


class TruthJudge:
    """Prefers the response that meets more of the user's true preferences; equal numbers are a tie.

    What a response shows is parsed from its text (`popi.nano.truth.wanted_shown`). Attributes that the user does not
    care about are ignored. A response that the grammar could not have written, or that is not about the prompt's topic
    alone, loses to any valid one; two such responses are a tie.
    """

    label = "truth"

    def settings(self) -> dict[str, Any]:
        return {"kind": "truth", "a win needs": list(CHECKED)}

    def check(self, people: Sequence[Person]) -> None:
        for person in people:
            _wanted(person, "")

    def ask(self, questions: Sequence[Question], on_verdict: OnVerdict) -> None:
        for index, question in enumerate(questions):
            prompt = flat(question.prompt)
            first, second = (self._met(question.person, prompt, one) for one in (question.first, question.second))
            verdict: Verdict = "first" if first > second else "second" if second > first else "tie"
            on_verdict(index, verdict)

    def _met(self, person: Person, prompt: str, response: str) -> int:
        """Number of preferences that a response meets; −1 if it can't win."""
        fit = all(self.inspect(prompt, response).values())
        return wanted_shown(response, _wanted(person, prompt)) if fit else -1

    def inspect(self, prompt: str, response: str) -> dict[str, bool]:
        """Whether the grammar could have written a response, and whether it is about the prompt's topic alone."""
        return {"valid": valid(response), "on_topic": topics_in(response) == topics_in(prompt)}

    def on_seen_topics(self, people: Sequence[Person], prompts: int | None, seed: int) -> list[Person]:
        """The same users with as many prompts each, on topics of the training split instead of unseen ones."""
        result = []
        for person in people:
            n = min(prompts or MOST, len(person.user.targets), MOST)
            targets = seen_targets(person.user.user_id, partial(_wanted, person), n, seed)
            user = person.user.model_copy(update={"targets": targets})
            result.append(Person(user, person.preferences, person.oracle))
        return result


def _wanted(person: Person, prompt: str) -> dict[str, str]:
    """Attribute → the value that a user prefers in a response to a prompt."""
    if person.preferences is None:
        raise ConfigError(
            f"user {person.user.user_id!r}: true preferences are not known (only the nano world has them); use "
            "--judge api or --judge local"
        )
    topics = topics_in(prompt)
    return wanted_at(person.preferences, next(iter(topics), None))
