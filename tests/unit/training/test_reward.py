"""What a summary's length costs, and what is written of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import assert_exact

from popi.config import InferencePhaseConfig, resolve
from popi.errors import ConfigError
from popi.models.local.model import LocalModel
from popi.training.planning.plan import refuse_settings
from popi.training.reward import LengthBudget, SummaryReward


def test_the_penalty_is_taken_off_the_reward(bench: Callable[..., Any]) -> None:
    b = bench({"inference_model"})
    rows, texts = b.rows[:3], ["likes cats", "likes short sentences", ""]
    plain = SummaryReward(b.parts.generator, None, 0.1).score(texts, rows, [4, 9, 1])
    budget = LengthBudget(target=4, penalty=0.5)
    scores = SummaryReward(b.parts.generator, None, 0.1, budget=budget).score(texts, rows, [4, 9, 1])
    assert plain.penalties is None and "length_penalty" not in plain.table(1)[0]
    assert scores.penalties is not None and scores.penalties.tolist() == [0.0, 2.5, 0.0]
    assert_exact(scores.rewards, plain.rewards - torch.tensor([0.0, 2.5, 0.0]))
    assert_exact(scores.margins, plain.margins)  # the generator's own loss knows nothing of lengths
    assert [row["length_penalty"] for row in scores.table(1)] == [0.0, 2.5, 0.0]


def test_a_summary_that_was_cut_is_longer_than_any_that_ended(tiny_base: Path) -> None:
    local = LocalModel.load(tiny_base, device="cpu")
    words = local.encode_chat([{"role": "user", "content": "likes cats and dogs."}])[1:7]
    assert not set(words[:5]) & set(local.stop_ids)
    limit = 5
    assert local.length(words[:limit]) == 5, "five tokens and no end: cut at the limit"
    assert local.length([*words[: limit - 1], local.end_id]) == 4, "the most that end within it"
    assert local.length([local.end_id]) == 0


def test_a_budget_needs_both_settings_and_a_target_below_the_limit() -> None:
    assert LengthBudget.of(InferencePhaseConfig()) is None
    settings = {"length_target": 8, "length_penalty": 0.25}
    assert LengthBudget.of(InferencePhaseConfig(**settings)) == LengthBudget(8, 0.25)
    for name in settings:
        with pytest.raises(ConfigError, match="length_target = .* and length_penalty = .* go together"):
            resolve({"training": {"inference": {name: 8}}})
    refuse_settings(resolve({"summary": {"max_tokens": 9}, "training": {"inference": settings}}))
    with pytest.raises(ConfigError, match=r"length_target=8 is not below summary\.max_tokens=8"):
        refuse_settings(resolve({"summary": {"max_tokens": 8}, "training": {"inference": settings}}))
