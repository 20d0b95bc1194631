"""A local model's log-probs as judge: which response does it find likelier of this user?"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from popi.data.users import Person
from popi.errors import ModelError
from popi.evaluation.judge.question import Missing, OnVerdict, Question, Told, Verdict, told_persona
from popi.evaluation.models import weights_stamp
from popi.generator import Generator
from popi.models.remote.chat import Messages

TIE = 1e-4
"""Nats per token below which two means are one: scores of one text differ by that much from batch to batch."""


class LogProbJudge:
    """Prefers the response with the higher *mean* log-prob a token, the user's persona or signals in the prompt.

    The mean over response tokens, the end-of-turn token included: a sum falls with every token and would prefer the
    shorter response nearly always. It asks how well a model that knows the user expects a response, which is less than
    which one the user would choose: fluent, common wording wins, too. Where the model has written one of the responses
    itself, that one has an advantage; take another model than the generators compared.

    Args:
        generator: the model.
        told: what its prompt says of the user: the oracle persona in the place of a summary, or raw signals.
        token_budget: most tokens of a user's signals; whole signals are dropped beyond.
        batch_size: questions scored at once.
    """

    def __init__(
        self, generator: Generator, told: Told = "auto", token_budget: int = 8192, batch_size: int = 32
    ) -> None:
        self.generator, self.told = generator, told
        self.token_budget, self.batch_size = token_budget, batch_size

    @property
    def label(self) -> str:
        return f"log-probs-{Path(self.generator.local.name).name}"

    def settings(self) -> dict[str, Any]:
        name = self.generator.local.name
        return {
            "kind": "local",
            "model": f"{name} {weights_stamp(name)}".strip(),
            "templates": self.generator.templates.name,
            "told": self.told,
            "token_budget": self.token_budget,
        }

    def check(self, people: Sequence[Person]) -> None:
        for person in people:
            told_persona(person, self.told)

    def ask(self, questions: Sequence[Question], on_verdict: OnVerdict) -> None:
        from popi.engine.scoring import ScoringItem, pair_logps

        local = self.generator.local
        for start in range(0, len(questions), self.batch_size):
            items: dict[int, ScoringItem] = {}
            for index, question in enumerate(questions[start : start + self.batch_size], start):
                prefix = local.encode_chat([dict(m) for m in self._messages(question)])
                first, second = map(local.encode_response, (question.first, question.second))
                item = ScoringItem(tuple(prefix), tuple(first), tuple(second))
                longest = len(prefix) + max(len(first), len(second))
                if local.context is not None and longest > local.context:
                    on_verdict(index, Missing("too long", f"{longest} tokens exceed the context of {local.context}"))
                else:
                    items[index] = item
            sums = pair_logps(local.model, list(items.values()), local.pad_id, self.batch_size)
            for (index, item), a, b in zip(items.items(), *(s.tolist() for s in sums), strict=True):
                on_verdict(index, self._likelier(a / len(item.chosen), b / len(item.rejected)))

    def _messages(self, question: Question) -> Messages:
        persona, templates = told_persona(question.person, self.told), self.generator.templates
        if persona is not None:
            return templates.generator_messages(question.prompt, persona)
        kept, _ = templates.fit(question.person.user.signals, self.token_budget, self.generator.count_tokens)
        return templates.raw_signals_messages(question.prompt, kept)

    def _likelier(self, first: float, second: float) -> Verdict:
        gain = first - second
        if not math.isfinite(gain):
            raise ModelError(f"{self.generator.local.name}: its log-probs are not numbers: its weights are damaged")
        return "tie" if abs(gain) <= TIE else "first" if gain > 0 else "second"
