"""Simultaneous training: the gradients of both components are those of two separate computations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import assert_exact

from popi.engine.scoring import pair_logps_plain
from popi.models.local.adapters import using
from popi.models.local.model import LocalModel
from popi.training.objective import dpo_loss, margin
from popi.training.phases.joint import PARTNER, JointTrainer

Make = Callable[..., JointTrainer]


@pytest.fixture
def make(bench: Callable[..., Any]) -> Make:
    def build(adapter: str, checkpointing: bool = False, **training: Any) -> JointTrainer:
        from popi.training.reward import SummaryReward

        b = bench({"inference_model", "generator"}, adapter, gradient_checkpointing=checkpointing, **training)
        trainer = JointTrainer(
            generator=b.parts.generator.local if adapter == "none" else None,
            local=b.parts.inference_model.local,
            rows=b.rows,
            reward=SummaryReward(b.parts.generator, b.parts.adapters["generator"], 0.1),
            anchor=b.parts.base.local.model,
            **b.common("joint"),
        )
        if adapter == "lora":  # LoRA's B starts at zero, and with it the gradient of A
            with torch.no_grad():
                for part in trainer.scorer.components().values():
                    for parameter in part.values():
                        parameter.add_(0.05 * torch.randn_like(parameter))
        return trainer

    return build


def one_step(trainer: JointTrainer) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients by component after one `training_step`."""
    trainer.create_optimizer()
    trainer.training_step(trainer.scorer, list(trainer.rows[:3]))
    return {
        part: {n: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for n, p in parameters.items()}
        for part, parameters in trainer.scorer.components().items()
    }


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_gradients_of_both(
    precision: torch.dtype, make: Make, adapter: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_clip = {"max_grad_norm": 1e9}
    generator = no_clip | {"batch_size": 10_000, "loss": "dpo"}  # all pairs: nothing left to chance
    trainer = make(adapter, checkpointing, inference=no_clip, generator=generator)
    kept: dict[str, Any] = {}
    score, loss = trainer.score, trainer.compute_loss
    monkeypatch.setattr(trainer, "score", lambda *given: kept.setdefault("scores", score(*given)))
    monkeypatch.setattr(trainer, "compute_loss", lambda m, batch, **_: loss(m, kept.setdefault("batch", batch)))
    found = one_step(trainer)
    parts = trainer.scorer.components()
    assert {part: set(gradients) for part, gradients in found.items()} == {p: set(v) for p, v in parts.items()}

    # the inference model: GRPO alone, nothing of the generator in the graph
    trainer.local.model.gradient_checkpointing_disable()
    kept["batch"].roots = None  # their graph went with the backward pass
    expected = torch.autograd.grad(loss(trainer.scorer, kept["batch"]), list(parts["inference_model"].values()))
    assert all(gradient.abs().max() > 0 for part in found.values() for gradient in part.values())
    assert_exact(found["inference_model"], dict(zip(parts["inference_model"], expected, strict=True)))

    # the generator: DPO by whole sequences, under its own weights
    scores = kept["scores"]
    with using(trainer.both.generator_model, PARTNER if adapter == "lora" else None):
        chosen, rejected = pair_logps_plain(
            trainer.both.generator_model, [trainer.item(scores, i) for i in range(len(scores.targets))]
        )
        h = margin(chosen, rejected, scores.ref_chosen, scores.ref_rejected)
        expected = torch.autograd.grad(dpo_loss(h, 0.1).mean(), list(parts["generator"].values()))
    assert_exact(found["generator"], dict(zip(parts["generator"], expected, strict=True)))


def test_why_one_summed_loss_is_not_enough(make: Make) -> None:
    """The trap: switch adapters, sum, go backward, and the first adapter's gradient is gone without a word."""
    trainer = make("lora")
    model = trainer.local.model
    ids = torch.tensor([[*trainer.rows[0].prompt_ids]])
    first = model(input_ids=ids).logits.float().logsumexp(-1).sum()
    model.set_adapter(PARTNER)
    second = model(input_ids=ids).logits.float().logsumexp(-1).sum()
    (first + second).backward()
    parts = trainer.scorer.components()
    assert all(p.grad is None or not p.grad.any() for p in parts["inference_model"].values())
    assert all(p.grad is not None for p in parts["generator"].values())


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_rates_and_clips_of_their_own(make: Make, adapter: str) -> None:
    trainer = make(
        adapter,
        inference={"learning_rate": 1e-3, "max_grad_norm": 0.5},
        generator={"learning_rate": 2e-5, "max_grad_norm": 0.25},
    )
    groups = trainer.create_optimizer().param_groups
    assert [group["lr"] for group in groups] == [1e-3, 2e-5]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]  # torch's own default is 0.01
    parts = trainer.scorer.components()
    assert [len(group["params"]) for group in groups] == [len(p) for p in parts.values()]
    assert not set(map(id, groups[0]["params"])) & set(map(id, groups[1]["params"]))
    for part in parts.values():
        for parameter in part.values():
            parameter.grad = torch.ones_like(parameter)
    trainer.clip()
    norms = [torch.stack([p.grad.norm() for p in part.values()]).norm() for part in parts.values()]
    assert_exact(torch.stack(norms), torch.tensor([0.5, 0.25]))


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_both_move_and_nothing_else(make: Make, adapter: str) -> None:
    trainer = make(adapter)
    watched = dict(trainer.local.model.named_parameters())
    if adapter == "none":
        watched |= {f"anchor.{n}": p for n, p in trainer.anchor.model.named_parameters()}
    before = {name: p.detach().clone() for name, p in watched.items()}
    trained = {name: p.detach().clone() for name, p in trainer.scorer.trained_parameters().items()}
    trainer.run_phase()
    assert all((p != trained[name]).any() for name, p in trainer.scorer.trained_parameters().items())
    kept = {id(p) for p in trainer.scorer.trained_parameters().values()}
    assert all(torch.equal(p, before[name]) for name, p in watched.items() if id(p) not in kept)


def test_the_generator_too_trains_without_dropout(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What trains has to be what the reward was read from."""
    load = LocalModel.load

    def with_dropout(*args: Any, **kwargs: Any) -> LocalModel:
        local = load(*args, **kwargs)
        local.model.model.layers[0].mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.5))
        return local

    monkeypatch.setattr(LocalModel, "load", with_dropout)
    trainer = make("none")
    for model in (trainer.local.model, trainer.both.generator_model):
        assert [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)] == [0]


def test_each_step_scores_its_own_samples(make: Make) -> None:
    trainer = make("none")
    one_step(trainer)
    with pytest.raises(AssertionError, match="scores its samples once"):
        trainer.generator_backward(trainer.scorer)
