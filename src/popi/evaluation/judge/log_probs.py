"""A local model's log-probs as judge: which response does it find more likely for this user?"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from popi.config import RunConfig
from popi.data.users import Person
from popi.errors import ModelError
from popi.evaluation.judge.question import Evidence, Missing, OnVerdict, Question, Verdict, persona_for
from popi.evaluation.models import weights_stamp
from popi.generator import Generator
from popi.models.backend import Messages
from popi.models.spec import ModelSpec

TIE = 1e-4
"""Means that differ by at most this, in nats per token, are a tie: a text's score varies that much between batches."""


class LogProbJudge:
    """Prefers the response with the higher *mean* log-prob per token, given the user's persona or signals.

    The mean is over response tokens, including the end-of-turn token; a sum falls with every token and would nearly
    always prefer the shorter response. It measures how well a model that knows the user predicts a response, which is
    weaker than what the user would choose: fluent, common wording also wins. A response that the model itself wrote has
    an advantage, so use a model other than the generators compared.

    Args:
        generator: the model.
        evidence: what its prompt contains about the user: the oracle persona in place of a summary, or raw signals.
        token_budget: maximum tokens of a user's signals; whole signals are dropped to fit.
        batch_size: questions per batch.
    """

    def __init__(
        self, generator: Generator, evidence: Evidence = "auto", token_budget: int = 8192, batch_size: int = 32
    ) -> None:
        self.generator, self.evidence = generator, evidence
        self.token_budget, self.batch_size = token_budget, batch_size

    @classmethod
    def of(cls, config: RunConfig, name: str | None, evidence: Evidence) -> "LogProbJudge":
        """A judge for a run: the named model, by default the run's base.

        Raises:
            ModelError: the model can't be loaded.
        """
        spec = replace(ModelSpec.of(config), attn_implementation="auto")
        if name is not None:
            spec = replace(spec, name=name, templates="auto", chat_template=None)
        return cls(Generator.from_spec(spec), evidence, config.signals.token_budget, config.evaluation.batch_size)

    @property
    def label(self) -> str:
        return f"log-probs-{Path(self.generator.name).name}"

    def settings(self) -> dict[str, Any]:
        name = self.generator.name
        return {
            "kind": "local",
            "model": f"{name} {weights_stamp(name)}".strip(),
            "templates": self.generator.templates.name,
            "evidence": self.evidence,
            "token_budget": self.token_budget,
        }

    def check(self, people: Sequence[Person]) -> None:
        for person in people:
            persona_for(person, self.evidence)

    def ask(self, questions: Sequence[Question], on_verdict: OnVerdict) -> None:
        from popi.engine.scoring import ScoringItem, pair_logps

        local = self.generator.local
        for start in range(0, len(questions), self.batch_size):
            items: dict[int, ScoringItem] = {}
            for index, question in enumerate(questions[start : start + self.batch_size], start):
                prefix = local.encode_chat(self._messages(question))
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
        persona, templates = persona_for(question.person, self.evidence), self.generator.templates
        if persona is not None:
            return templates.generator_messages(question.prompt, persona)
        signals, _ = templates.fit(question.person.user.signals, self.token_budget, self.generator.count_tokens)
        return templates.raw_signals_messages(question.prompt, signals)

    def _likelier(self, first: float, second: float) -> Verdict:
        gain = first - second
        if not math.isfinite(gain):
            raise ModelError(f"{self.generator.name}: log-probs are not finite, so its weights are damaged")
        return "tie" if abs(gain) <= TIE else "first" if gain > 0 else "second"
