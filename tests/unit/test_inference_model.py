"""A user without signals: no model is asked, and the summary says that nothing is known."""

from pathlib import Path
from typing import Any

import pytest

from popi.backends.chat import Reply
from popi.inference_model import ApiInferenceModel, InferenceModel
from popi.nano.world import make_users
from popi.signals.types import StatementSignal

SIGNALS = make_users(1, 0, "test")[0].user.signals


def test_a_local_model_is_not_asked(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = InferenceModel.from_pretrained(tiny_base)
    asked: list[int] = []
    generate = model.local.generate

    def spy(prompts: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        return generate(prompts, **options)

    monkeypatch.setattr(model.local, "generate", spy)
    told: list[int] = []
    first, known, last = model.summarize_many([[], SIGNALS, []], progress=told.append)
    assert asked == [1] and sum(told) == 3
    assert (first.text, first.abstained, first.signals_used) == ("no clear preference.", True, 0)
    assert first == last and first.tokens == model.local.count_tokens("no clear preference.") == 4
    assert known.signals_used == 9 and known.text == model.summarize(SIGNALS).text


def test_what_names_no_preference_is_said_in_one_way(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = InferenceModel.from_pretrained(tiny_base)
    written = iter(["wants any tone and any level.", "wants numbers and any level."])
    monkeypatch.setattr(model.local, "decode", lambda ids: next(written))
    nothing, numbers = model.summarize_many([SIGNALS, SIGNALS])
    assert (nothing.text, nothing.abstained, nothing.signals_used) == ("no clear preference.", True, 9)
    assert (numbers.text, numbers.abstained) == ("wants numbers and any level.", False)


class Answers:
    """A model behind an API that gives the same answer to all."""

    name = "m"

    def __init__(self, text: str) -> None:
        self.text, self.asked = text, 0

    def chat_many(self, conversations: Any, *, on_result: Any, **options: Any) -> None:
        self.asked += len(conversations)
        for i in range(len(conversations)):
            on_result(i, Reply(self.text, 7))


def test_a_model_behind_an_api_is_not_asked_either() -> None:
    chat = Answers("likes short answers.")
    model = ApiInferenceModel(chat)  # type: ignore[arg-type]
    unknown, known = model.summarize_many([[], [StatementSignal(text="keep it short")]])
    assert chat.asked == 1
    assert (unknown.text, unknown.abstained) == ("No preference is known.", True)
    assert (known.text, known.tokens, known.abstained) == ("likes short answers.", 7, False)
    silent = ApiInferenceModel(Answers("no preference is known"))  # type: ignore[arg-type]
    summary = silent.summarize([StatementSignal(text="it rains")])
    assert (summary.text, summary.abstained, summary.signals_used) == ("No preference is known.", True, 1)
