"""A step in parts has the gradient of the whole step."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from exact import assert_exact
from transformers import TrainerCallback

from popi.config import resolve
from popi.errors import ConfigError
from popi.training.phases.generator import GeneratorTrainer
from popi.training.phases.inference import InferenceTrainer
from popi.training.reward import SummaryReward
from popi.training.rows import GeneratorRow
from popi.training.train import refuse


class Gradients(TrainerCallback):
    """Keeps the gradient of every step, clipped, as the optimizer gets it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def train(trainer: Any) -> list[dict[str, torch.Tensor]]:
    kept = Gradients()
    trainer.add_callback(kept)
    trainer.train()
    return kept.seen


def written(prompts: Sequence[Sequence[int]], *, n: int = 1, **_: Any) -> list[list[list[int]]]:
    """Summaries that their prompt fixes, of 1 to 6 tokens: sampling in parts would draw other ones."""
    return [
        [[6 + (sum(p) * (k + 1) + 31 * j) % 400 for j in range(1 + (k + len(p)) % 6)] for k in range(n)]
        for p in prompts
    ]


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_inference_phase(
    precision: torch.dtype, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, adapter: str
) -> None:
    monkeypatch.setattr(InferenceTrainer, "check", lambda self: None)  # it compares real rollouts
    found, asked = {}, {}
    for micro_batch in (None, 1):
        torch.manual_seed(1)  # new adapters
        b = bench({"inference_model"}, adapter, inference={"micro_batch": micro_batch, "learning_rate": 1e-9})
        local = b.parts.inference_model.local
        monkeypatch.setattr(local, "generate", written)
        reward = SummaryReward(b.parts.generator, b.parts.adapters["generator"], 0.1)
        trainer = InferenceTrainer(
            local=local, rows=b.rows, reward=reward, anchor=b.parts.base.local.model, **b.common("inference-1")
        )
        widths = asked.setdefault(micro_batch, [])
        inner = trainer.compute_loss

        def compute(model: Any, part: Any, widths: Any = widths, inner: Any = inner, **_: Any) -> Any:
            widths.append(len(set(part.prompts)))
            return inner(model, part)

        monkeypatch.setattr(trainer, "compute_loss", compute)
        found[micro_batch] = train(trainer)
    assert asked == {None: [3, 3], 1: [1] * 6}, "users in each forward: a part holds whole groups"
    assert len(found[None]) == len(found[1]) == 2, "one optimizer step for each step's parts"
    for whole, parts in zip(found[None], found[1], strict=True):
        assert any(gradient.abs().max() > 1e-4 for gradient in whole.values())
        assert_exact(parts, whole)


def test_generator_phase(precision: torch.dtype, bench: Callable[..., Any]) -> None:
    found = {}
    for micro_batch in (None, 2):
        b = bench({"generator"}, generator={"micro_batch": micro_batch, "learning_rate": 1e-9, "batch_size": 6})
        generator = b.parts.generator
        rows = [
            GeneratorRow(
                row.user_id,
                "short",
                generator.items([t.pair], "short")[0],
                t.ref_chosen,
                t.ref_rejected,
            )
            for row in b.rows
            for t in row.targets
        ]
        found[micro_batch] = train(GeneratorTrainer(local=generator.local, rows=rows, **b.common("generator-1")))
    for whole, parts in zip(found[None], found[2], strict=True):
        assert_exact(parts, whole)


def test_a_micro_batch_divides_its_step() -> None:
    with pytest.raises(ConfigError, match="micro_batch = 3 does not divide users_per_step = 8; divisors: 1, 2, 4, 8"):
        resolve({"training": {"inference": {"users_per_step": 8, "micro_batch": 3}}})
    with pytest.raises(ConfigError, match="micro_batch = 5 does not divide batch_size = 32"):
        resolve({"training": {"generator": {"micro_batch": 5}}})


def test_simultaneous_training_takes_the_whole_step() -> None:
    tree = {"training": {"orders": ["simultaneous"], "inference": {"micro_batch": 1}}}
    with pytest.raises(ConfigError, match="does not work with order 'simultaneous'"):
        refuse(resolve(tree))
