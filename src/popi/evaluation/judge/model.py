"""An LLM behind an API as judge, told the user's persona or signals."""

from collections.abc import Sequence
from typing import Any

from popi.data.users import Person
from popi.errors import PopiError
from popi.evaluation.judge.prompt import JudgePrompt, read_verdict
from popi.evaluation.judge.question import Missing, OnVerdict, Question, Told, told_persona
from popi.models.remote.api import ApiModel
from popi.models.remote.chat import Reply, estimate_tokens


class ModelJudge:
    """Asks an OpenAI-compatible or Anthropic model, greedily.

    An answer without exactly one verdict on its last line is a missing verdict, as is none at all.

    Args:
        chat: the model.
        told: what it is told of the user.
        prompt: its prompt.
        max_tokens: most tokens of an answer: reasons and verdict.
        token_budget: most tokens of a user's signals, as estimated; whole signals are dropped beyond.
    """

    def __init__(
        self,
        chat: ApiModel,
        told: Told = "auto",
        prompt: JudgePrompt | None = None,
        max_tokens: int = 512,
        token_budget: int = 8192,
    ) -> None:
        self.chat, self.told, self.prompt = chat, told, prompt or JudgePrompt()
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
            "told": self.told,
            "prompt": self.prompt.name,
            "max_tokens": self.max_tokens,
            "token_budget": self.token_budget,
        }

    def check(self, people: Sequence[Person]) -> None:
        for person in people:
            told_persona(person, self.told)

    def ask(self, questions: Sequence[Question], on_verdict: OnVerdict) -> None:
        def answered(index: int, result: Reply | PopiError) -> None:
            if isinstance(result, PopiError):
                on_verdict(index, Missing("failed", str(result)))
            else:
                on_verdict(index, read_verdict(result.text))

        conversations = [[{"role": "user", "content": self._text(question)}] for question in questions]
        self.chat.chat_many(conversations, max_tokens=self.max_tokens, on_result=answered)

    def _text(self, question: Question) -> str:
        persona = told_persona(question.person, self.told)
        signals = question.person.user.signals if persona is None else []
        kept, _ = self.prompt.signals.fit(signals, self.token_budget, estimate_tokens)
        return self.prompt.text(question, persona, kept)
