"""Roots that are read once: what their branches and samples find is what whole sequences give."""

from typing import Any

import pytest
import torch
import transformers as tf
from exact import assert_exact
from tree_families import FAMILIES, ROWS, batch, family, gradients, plain

from popi.engine.decoding import decode
from popi.engine.roots import Roots
from popi.engine.tree import Segment, pack, token_logps_and_entropies
from popi.models.local.adapters import TRAINED, attach_adapters, using

PROMPTS = [root for root, *_ in ROWS]
"""Of 9 and 11 tokens."""


def logps(model: Any, roots: Roots | None) -> torch.Tensor:
    return token_logps_and_entropies(model, batch(), roots=roots)[0]


def samples(model: Any, prompts: list[list[int]], roots: Roots | None, temperature: float = 0.0) -> Any:
    torch.manual_seed(3)
    rest: dict[str, Any] = {"n": 3, "steps": 7, "top_p": 1.0, "stop_ids": (), "end_id": 0}
    with torch.inference_mode():
        return decode(model, prompts, temperature=temperature, roots=roots, **rest)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, precision: torch.dtype) -> Any:
    return family(request.param)


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_branches_behind_them_are_whole_sequences(model: Any, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs and gradients, the roots padded in one forward or each in its own."""
    if apart:
        monkeypatch.setattr("popi.engine.tree.FEW", 0)
        monkeypatch.setattr("popi.engine.tree.PADDING", 0.0)
    roots = Roots.read(model, PROMPTS, 0)
    assert len(roots.parts) == (2 if apart else 1)
    found, expected = logps(model, roots), plain(model)
    assert_exact(found, expected)
    assert_exact(gradients(model, found), gradients(model, expected))


def test_samples_behind_them_are_samples_of_the_prompts(model: Any) -> None:
    """In another order than they were read in, one of them twice; and the shorter one alone."""
    roots = Roots.read(model, PROMPTS, 0)
    for prompts in ([PROMPTS[1], PROMPTS[0], PROMPTS[1]], PROMPTS[:1], PROMPTS):
        for temperature in (0.0, 1.0):
            assert torch.equal(samples(model, prompts, roots, temperature), samples(model, prompts, None, temperature))


def test_the_graph_outlives_the_sampling(precision: torch.dtype) -> None:
    """Sampling, as a step has it between reading and update, changes neither log-probs nor gradients."""
    model = family("llama")
    roots = Roots.read(model, PROMPTS, 0)
    samples(model, PROMPTS, roots, 1.0)
    found, expected = logps(model, roots), plain(model)
    assert_exact(found, expected)
    assert_exact(gradients(model, found), gradients(model, expected))


def test_with_adapters_that_are_switched_between(precision: torch.dtype) -> None:
    """As the KL does it and a generator on the same base: gradients go to the adapter that read."""
    model = attach_adapters(family("llama"), 4, 8.0, {TRAINED: None, "generator": None})
    with torch.no_grad():  # LoRA's B starts at zero, and with it the gradient of A
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    roots = Roots.read(model, PROMPTS, 0)
    others = []
    with torch.no_grad():
        for adapter in (None, "generator"):
            with using(model, adapter):
                others.append(logps(model, None))
    found, expected = logps(model, roots), plain(model)
    assert_exact(found, expected)
    assert all((found - other).abs().max() > 0.01 for other in others)
    ours, theirs = gradients(model, found), gradients(model, expected)
    assert all(f".{TRAINED}." in name for name in ours) and len(ours) > 10
    assert_exact(ours, theirs)


def test_every_token_goes_through_the_model_once() -> None:
    """Two roots of 9 and 11 tokens, the shorter padded, then 12 tokens of branches each."""
    model = family("llama")
    seen: dict[int, list[int]] = {0: [], 1: []}
    for i, layer in enumerate(model.get_decoder().layers):
        layer.mlp.register_forward_hook(lambda _, given, __, i=i: seen[i].append(given[0].shape[:2].numel()))
    logps(model, Roots.read(model, PROMPTS, 0))
    assert seen == {0: [22, 24], 1: [22, 24]}


def test_the_same_prompt_is_read_once() -> None:
    roots = Roots.read(family("llama"), [PROMPTS[1], PROMPTS[0], PROMPTS[1]], 0)
    assert roots.prompts == [tuple(PROMPTS[1]), tuple(PROMPTS[0])]
    assert sum(len(part.rows) for part in roots.parts) == 2


def test_branches_of_different_lengths_and_trees_of_two_levels(precision: torch.dtype) -> None:
    """The longest branch is behind the shortest root; a segment stands behind another branch."""
    model = family("mistral, sliding")
    assert isinstance(model, tf.MistralForCausalLM)
    rows = [
        [
            Segment(PROMPTS[0]),
            Segment([5, 6, 7], 0, True),
            Segment(list(range(8, 20)), 0, True),
            Segment([9, 8], 1, True),
        ],
        [Segment(PROMPTS[1]), Segment([4], 0, True)],
    ]
    whole = pack(rows, 0)
    found = token_logps_and_entropies(model, whole, roots=Roots.read(model, PROMPTS, 0))
    assert_exact(found, token_logps_and_entropies(model, whole))
