"""The prompt that the untrained inference model is asked with: the best on training users, chosen once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from popi.config import resolve
from popi.evaluation import prompts
from popi.evaluation.prompts import ask, choose, named
from popi.signals.asking import OWN, SummaryPrompt
from popi.summary import Summary


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(prompt, users) of every time the model is asked; a prompt's summaries are its name, and the tally's are best."""
    calls: list[tuple[str, int]] = []

    def asking(model: Any, one: SummaryPrompt, users: Sequence[Any], _prompts: Any = None) -> list[Summary]:
        calls.append((one.name, len(users)))
        return [Summary(one.name, 5) for _ in users]

    def rows(generator: Any, people: Any, contexts: Any, reference: Any, **_: Any) -> Iterator[dict[str, Any]]:
        for window, context in enumerate(contexts):
            summary = context.summary(0)
            margin = 1.0 if summary and summary.text == "tally" else 1.0 if summary and window % 2 else -1.0
            logps = {"chosen_logp": -1.0, "rejected_logp": -1.0, "margin": margin, "missing": None}
            yield {"window": window, "target": 0, "user_id": str(window), **logps}

    monkeypatch.setattr(prompts, "ask", asking)
    monkeypatch.setattr(prompts, "score_rows", rows)
    return calls


def with_users(run: Any, n: int, **changes: Any) -> Any:
    tree = run.config.model_dump(mode="json")
    run.config = resolve(tree | changes | {"evaluation": tree["evaluation"] | {"prompt_users": n}})
    return run


def test_the_best_prompt_is_chosen_once(run: Any, tiny: Any, asked: list[tuple[str, int]], tmp_path: Path) -> None:
    models = tiny(with_users(run, 4))
    chosen = choose(models, tmp_path)
    assert chosen["chosen"] == "tally" and chosen["users"] == 4
    assert len(chosen["prompts"]) >= 10 and len(asked) == len(chosen["prompts"])
    assert {users for _, users in asked} == {4}
    assert chosen["prompts"]["tally"]["reward_accuracy"]["value"] == 1.0
    assert chosen["prompts"][OWN] == {
        "reward_accuracy": {"value": 0.5, "low": pytest.approx(0.0, abs=0.5), "high": pytest.approx(1.0, abs=0.5)},
        "tokens": 5.0,
    }
    del asked[:]
    assert choose(models, tmp_path) == chosen and asked == []
    choose(tiny(with_users(run, 3)), tmp_path)
    assert asked, "other users, another choice"


@pytest.mark.parametrize(
    "changes",
    [{"evaluation": {"prompt_users": 0}}, {"signals": {"template": "default"}}],
    ids=["no users", "one prompt"],
)
def test_nothing_is_asked_where_there_is_nothing_to_choose(
    run: Any, tiny: Any, asked: list[tuple[str, int]], tmp_path: Path, changes: dict[str, Any]
) -> None:
    tree = with_users(run, 4).config.model_dump(mode="json")
    run.config = resolve({**tree, **{part: tree[part] | values for part, values in changes.items()}})
    assert choose(tiny(run), tmp_path) == {"chosen": OWN, "users": 0, "prompts": {}}
    assert asked == [] and list(tmp_path.glob("prompts.json")) == []


def test_an_answer_is_restated(run: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(run).inference_model("nano")
    answers = iter(("tone formal level nothing.", "nothing."))
    monkeypatch.setattr(type(model), "summarize_many", lambda *_, **__: [Summary(text, 9) for text in answers])
    first, second = ask(model, named(model, "tally"), [[], []])
    assert first.text == "prefers a formal tone." and first.tokens == model.count_tokens(first.text)
    assert second.text == "no clear preference." and second.abstained and not first.abstained
