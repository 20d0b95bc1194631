"""Summaries renewed from an old one and the signals that came since, by local models and behind an API."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from popi.inference_model import InferenceModel
from popi.nano.world import make_users
from popi.signals.fading import Previous, worth
from popi.signals.types import Signal, StatementSignal
from popi.summary import Summary

SIGNALS: list[Signal] = list(make_users(1, 0, "test")[0].user.signals)
OLD = Summary("wants numbers.", 3, signals_total=6)


@pytest.fixture
def model(tiny_base: Path) -> InferenceModel:
    return InferenceModel.from_pretrained(tiny_base)


def test_the_prompt_shows_the_old_summary_with_its_worth(model: InferenceModel) -> None:
    ids, used, dropped = model.prompt_ids(SIGNALS[6:], None, OLD)
    counts = int(worth(6, 3) + 0.5)
    assert counts == 5 and (used, dropped) == (3, ())  # 2^(−3/16)·(1 − 2^(−6/16))/(1 − 2^(−1/16)) = 4.74
    messages = model.templates.inference_messages(SIGNALS[6:], previous=Previous("wants numbers.", counts))
    assert ids == model.local.encode_chat(messages) != model.prompt_ids(SIGNALS[6:])[0]


def test_a_text_counts_as_much_as_any_summary_can(model: InferenceModel) -> None:
    counts = int(worth(None, 3) + 0.5)
    messages = model.templates.inference_messages(SIGNALS[6:], previous=Previous("wants numbers.", counts))
    assert model.prompt_ids(SIGNALS[6:], None, "wants numbers.")[0] == model.local.encode_chat(messages)


@pytest.mark.parametrize("old", [None, "", " \n", "no clear preference.", Summary("No preference is known.", 5)])
def test_one_that_names_no_preference_counts_as_none(model: InferenceModel, old: Any) -> None:
    assert model.prompt_ids(SIGNALS, None, old) == model.prompt_ids(SIGNALS)
    renewed = model.summarize(SIGNALS, previous=old)
    assert renewed == model.summarize(SIGNALS) and renewed.signals_total == 9


def test_one_that_has_faded_counts_as_none(model: InferenceModel) -> None:
    many = [StatementSignal(text="i like jokes.")] * 89  # 2^(−89/16)/(1 − 2^(−1/16)) = 0.499
    assert model.prompt_ids(many, None, "wants numbers.") == model.prompt_ids(many)
    assert model.prompt_ids(many[1:], None, "wants numbers.") != model.prompt_ids(many[1:])
    assert model.summarize(many, previous=OLD).signals_total == 89


def test_what_a_renewal_rests_on(model: InferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.local, "decode", lambda ids: "wants numbers and jokes.")
    renewed = model.summarize(SIGNALS[6:], previous=OLD)
    assert (renewed.text, renewed.signals_used, renewed.signals_total) == ("wants numbers and jokes.", 3, 9)


def test_what_a_text_rests_on_stays_unknown(model: InferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a text that a person edited would count as very many signals once, and then as next to none."""
    monkeypatch.setattr(model.local, "decode", lambda ids: "wants numbers and jokes.")
    assert model.summarize(SIGNALS[6:], previous="wants numbers.").signals_total == 0


def test_without_new_signals_the_old_summary_stays_and_no_model_is_asked(
    model: InferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.local, "generate", lambda *_, **__: pytest.fail("asked"))
    same, text, nothing = model.summarize_many([[], [], []], previous=[OLD, "wants numbers.", None])
    assert same == OLD and (text.text, text.tokens) == ("wants numbers.", model.local.count_tokens("wants numbers."))
    assert nothing.abstained


def test_many_are_renewed_as_one_by_one(model: InferenceModel) -> None:
    users, olds = [SIGNALS[:4], SIGNALS[4:], SIGNALS], [OLD, None, "wants jokes."]
    together = model.summarize_many(users, previous=olds)
    assert together == [model.summarize(part, previous=old) for part, old in zip(users, olds, strict=True)]


def test_which_models_renew(tiny_base: Path, model: InferenceModel, tmp_path: Path) -> None:
    assert not model.renewable("wants numbers.")  # popi trained it, and not to renew
    model.local.settings = {}
    assert InferenceModel(model.local, "nano").renewable("wants numbers.")  # any other LLM
    able = InferenceModel(model.local, "nano", renews=True)
    assert not able.renewable("no clear preference.")
    bare = replace(able.templates, sources={k: v for k, v in able.templates.sources.items() if "previous" not in k})
    assert not InferenceModel(model.local, bare, renews=True).renewable("wants numbers.")  # nowhere to show it
    able.save(tmp_path / "able")
    assert json.loads((tmp_path / "able" / "popi.json").read_text())["renews"] is True
    assert InferenceModel.from_pretrained(tmp_path / "able").renewable("wants numbers.")


def test_behind_an_api(upstream: Any) -> None:
    upstream.answer = lambda messages: "Likes short answers and jokes."
    model = InferenceModel.from_api(upstream.url + "/v1", "m")
    new = [StatementSignal(text="i like jokes.")]
    renewed = model.summarize(new, previous=Summary("Likes short answers.", 4, signals_total=4))
    sent = upstream.received[0].body["messages"]
    counts = int(worth(4, 1) + 0.5)
    *before, last = model.templates.inference_messages(new, previous=Previous("Likes short answers.", counts))
    assert sent[:-1] == before and sent[-1]["content"].startswith(last["content"])
    assert (renewed.text, renewed.signals_used, renewed.signals_total) == ("Likes short answers and jokes.", 1, 5)
    assert model.summarize([], previous=renewed).text == renewed.text and len(upstream.received) == 1
    assert model.renewable("Likes tea.") and not model.renewable("No preference is known.")
