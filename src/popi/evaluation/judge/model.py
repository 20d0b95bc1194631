"""An LLM behind an API as judge, given the user's persona or signals."""

from collections.abc import Sequence
from typing import Any

from popi.data.users import Person
from popi.errors import PopiError
from popi.evaluation.judge.prompt import JudgePrompt, read_verdict
from popi.evaluation.judge.question import Evidence, Missing, OnVerdict, Question, persona_for
from popi.models.backend import Reply, estimate_tokens
from popi.models.remote.api import ApiModel


class ModelJudge:
    """Asks an OpenAI-compatible or Anthropic model, with greedy decoding.

    A failed request and an answer without exactly one verdict, on its last line, are missing verdicts.

    Args:
        chat: the model.
        evidence: what it sees of the user.
        prompt: the judge's prompt.
        max_tokens: maximum tokens of an answer: reasons and verdict.
        token_budget: maximum estimated tokens of a user's signals; whole signals are dropped to fit.
    """

    def __init__(
        self,
        chat: ApiModel,
        evidence: Evidence = "auto",
        prompt: JudgePrompt | None = None,
        max_tokens: int = 512,
        token_budget: int = 8192,
    ) -> None:
        self.chat, self.evidence, self.prompt = chat, evidence, prompt or JudgePrompt()
        self.max_tokens, self.token_budget = max_tokens, token_budget

    @property
    def label(self) -> str:
        return self.chat.name

    def settings(self) -> dict[str, Any]:
        return {
            "kind": "api",
            "model": self.chat.name,
            "url": self.chat.upstream.url,
            "extra": self.chat.extra,
            "evidence": self.evidence,
            "prompt": self.prompt.name,
            "max_tokens": self.max_tokens,
            "token_budget": self.token_budget,
        }

    def check(self, people: Sequence[Person]) -> None:
        for person in people:
            persona_for(person, self.evidence)

    def ask(self, questions: Sequence[Question], on_verdict: OnVerdict) -> None:
        def answered(index: int, result: Reply | PopiError) -> None:
            if isinstance(result, PopiError):
                on_verdict(index, Missing("failed", str(result)))
            else:
                on_verdict(index, read_verdict(result.text))

        conversations = [[{"role": "user", "content": self._text(question)}] for question in questions]
        self.chat.chat_many(conversations, max_tokens=self.max_tokens, on_result=answered)

    def _text(self, question: Question) -> str:
        persona = persona_for(question.person, self.evidence)
        signals = question.person.user.signals if persona is None else []
        fitting, _ = self.prompt.signals.fit(signals, self.token_budget, estimate_tokens)
        return self.prompt.text(question, persona, fitting)
