"""Several target pairs behind what their prompts share: the numbers of a row for each pair."""

from typing import Any

import pytest
import torch
from exact import assert_exact
from model_families import VARIANTS
from model_families import family as family_of_all
from peft import LoraConfig, get_peft_model
from tree_families import family, gradients, ids

from popi.engine.plain import run_plain
from popi.engine.scoring import ScoringItem, shared_trees
from popi.engine.tree import Segment, pack, token_logps

SHARED = tuple(ids(7, 0))
"""Longer than the window of the families that slide."""


def items() -> list[ScoringItem]:
    """Prefixes of three lengths behind a common beginning; that of the second is the beginning itself."""
    rests = [tuple(ids(3, 1)), (), (49, *ids(5, 2))]
    return [
        ScoringItem(SHARED + rest, tuple(ids(3 + i, 10 + i)), tuple(ids(4, 20 + i))) for i, rest in enumerate(rests)
    ]


def test_layout_by_hand() -> None:
    chosen, rejected = (7, 8), (9,)
    a, b, c = (ScoringItem(prefix, chosen, rejected) for prefix in ((1, 2, 3), (1, 2, 4, 5), (1, 2)))
    [row] = shared_trees([a, b, c])
    assert row == [
        Segment((1, 2)),
        Segment((3,), 0),
        Segment(chosen, 1, True),
        Segment(rejected, 1, True),
        Segment((4, 5), 0),
        Segment(chosen, 4, True),
        Segment(rejected, 4, True),
        Segment(chosen, 0, True),
        Segment(rejected, 0, True),
    ]
    assert pack([row], 0).position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 2, 3, 4, 5, 4, 2, 3, 2]]
    assert shared_trees([a]) == [a.tree]
    other = ScoringItem((5, 1), chosen, rejected)
    assert shared_trees([a, other]) == [a.tree, other.tree], "nothing to share"


@pytest.mark.parametrize("way", ["trees", "plain"])
@pytest.mark.parametrize("name", ["llama", "mistral, sliding", "gemma 2", "gemma 3", "mixtral"])
def test_log_probs_and_gradients(precision: torch.dtype, name: str, way: str) -> None:
    model = family(name)
    if way == "plain":
        run_plain(model, "a test")
    _compare(model)


def test_under_lora(precision: torch.dtype) -> None:
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    _compare(get_peft_model(family("llama"), lora, autocast_adapter_dtype=False))


def test_beyond_the_limit_of_longrope(precision: torch.dtype) -> None:
    """A row that is wider than the limit, no text of which reaches it; and one of which a single text does."""
    model = family_of_all("phi3", **VARIANTS["phi 3, LongRoPE"][1]).eval()
    for longest in (40, 61):
        prefixes = (SHARED + tuple(ids(20, 1)), SHARED + tuple(ids(longest - 7, 2)))
        _compare(model, [ScoringItem(prefix, tuple(ids(4, 3)), tuple(ids(5, 4))) for prefix in prefixes])


def _compare(model: Any, of: list[ScoringItem] | None = None) -> None:
    of = of or items()
    alone, together = pack([item.tree for item in of], 0), pack(shared_trees(of), 0)
    assert together.lengths == (sum(alone.lengths) - (len(of) - 1) * len(SHARED),)
    expected = token_logps(model, alone)
    by_hand = gradients(model, expected)
    found = token_logps(model, together)
    assert_exact(found, expected)
    assert_exact(gradients(model, found), by_hand)
    assert torch.equal(alone.segment, together.segment) and torch.equal(alone.target, together.target)
