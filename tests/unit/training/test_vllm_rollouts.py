"""Rollouts through TRL's vLLM client, against a stand-in: weights go over, are compared, and the base stays."""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from trl.generation.vllm_generation import VLLMGeneration

from popi.config import resolve
from popi.engine.decoding import decode
from popi.errors import ConfigError
from popi.training import vllm_rollouts
from popi.training.phases.inference import InferenceTrainer
from popi.training.reward import SummaryReward
from popi.training.rollout_check import RolloutError
from popi.training.train import refuse
from popi.training.vllm_rollouts import base_unchanged, check_log_probs


class FakeVllm:
    """In the place of TRL's `VLLMGeneration`: a copy of the model that changes on `sync_weights` alone."""

    made: list["FakeVllm"] = []

    def __init__(self, model: Any, **arguments: Any) -> None:
        self.source, self.arguments, self.synced = model, arguments, 0
        self.deaf = False
        self.weights: dict[str, torch.Tensor] = {}
        FakeVllm.made.append(self)

    def sync_weights(self) -> None:
        self.synced += 1
        if self.deaf and self.weights:
            return
        if hasattr(self.source, "peft_config"):  # as TRL does
            self.source.merge_adapter()
        self.weights = {n: p.detach().clone() for n, p in self.source.named_parameters()}
        if hasattr(self.source, "peft_config"):
            self.source.unmerge_adapter()

    def generate(self, prompts: list[list[int]], images: None, num_generations: int) -> Any:
        model = self.source
        own = {n: p.detach().clone() for n, p in model.named_parameters()}
        seen: list[torch.Tensor] = []
        hook = model.register_forward_hook(lambda module, args, output: seen.append(output.logits.float()))
        with torch.inference_mode():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.weights[name])
            if hasattr(model, "peft_config"):
                model.base_model.disable_adapter_layers()  # merged already
            texts, logprobs = [], []
            for prompt in prompts:
                seen.clear()
                drawn = decode(model, [prompt], n=1, steps=3, temperature=1.0, top_p=1.0, stop_ids=(), end_id=0)
                texts.append(drawn[0].tolist())
                picked = zip(seen, texts[-1], strict=True)
                logprobs.append([[float(x[0, -1].log_softmax(-1)[t])] for x, t in picked])
            if hasattr(model, "peft_config"):
                model.base_model.enable_adapter_layers()
            for name, parameter in model.named_parameters():
                parameter.copy_(own[name])
        hook.remove()
        return None, texts, logprobs, None


@pytest.fixture
def make(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., InferenceTrainer]:
    FakeVllm.made.clear()
    monkeypatch.setattr("trl.generation.vllm_generation.VLLMGeneration", FakeVllm)

    def build(adapter: str = "none", **training: Any) -> InferenceTrainer:
        b = bench({"inference_model"}, adapter, rollouts="vllm", **training)
        return InferenceTrainer(
            local=b.parts.inference_model.local,
            rows=b.rows,
            reward=SummaryReward(b.parts.generator, b.parts.adapters["generator"], 0.1),
            anchor=b.parts.base.local.model,
            **b.common("inference-1"),
        )

    return build


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_weights_go_over_before_each_step_and_are_compared(make: Callable[..., Any], adapter: str) -> None:
    trainer = make(adapter, vllm={"tolerance": 1e-3}, inference={"learning_rate": 0.01})
    before = {n: p.detach().clone() for n, p in trainer.local.model.named_parameters() if ".base_layer." in n}
    trainer.run_phase()
    [fake] = FakeVllm.made
    assert fake.synced == 2, "once a step"
    inspect.signature(VLLMGeneration).bind(fake.source, **fake.arguments)
    inspect.signature(VLLMGeneration.generate).bind(fake, prompts=[[1]], images=None, num_generations=1)
    assert fake.arguments["max_model_length"] == max(len(r.prompt_ids) for r in trainer.rows) + 6
    assert set(fake.arguments["generation_kwargs"]["stop_token_ids"]) == set(trainer.local.stop_ids)
    assert bool(before) == (adapter == "lora")
    for name, parameter in trainer.local.model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]), "the base is the same to the bit"


def test_rollouts_from_older_weights_end_the_run(make: Callable[..., Any]) -> None:
    trainer = make(vllm={"tolerance": 0.01}, inference={"learning_rate": 0.05})
    FakeVllm.made[0].deaf = True
    with pytest.raises(RolloutError, match="do not come from the weights being trained"):
        trainer.run_phase()


def test_the_comparison_by_hand() -> None:
    """Differences 0.1, 0.3 and 0.2; the fourth token's log-prob is not told."""
    ours = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    told = [[-1.1, -2.3], [-3.2, None]]
    assert check_log_probs(told, ours, 0.25) == pytest.approx(0.2)
    with pytest.raises(RolloutError, match=r"differ by 0.2 nats.*tolerance = 0.1"):
        check_log_probs(told, ours, 0.1)
    assert check_log_probs(told, ours, 0.1, top_p=0.9) == pytest.approx(0.2)  # -log 0.9 is 0.105
    with pytest.raises(RolloutError, match=r"differ by 0.2 nats.*tolerance = 0.1, plus 0.0513 for top_p = 0.95\)"):
        check_log_probs(told, ours, 0.1, top_p=0.95)
    with pytest.raises(RolloutError, match="no log-probs"):
        check_log_probs([[None], []], ours, 0.1)


def test_merging_in_half_precision_leaves_no_trace(make: Callable[..., Any]) -> None:
    model = make("lora").local.model.to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.merge_adapter()
    model.unmerge_adapter()
    drifted = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert drifted, "the trap: without the copy the base would drift"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    with base_unchanged(model):
        model.merge_adapter()
        model.unmerge_adapter()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = resolve({"training": {"rollouts": "vllm"}})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs a GPU"):
        refuse(wanted)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(vllm_rollouts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed"):
        refuse(wanted)
    monkeypatch.setattr(vllm_rollouts.importlib.util, "find_spec", lambda name: ModuleType(name))
    refuse(wanted)
    with pytest.raises(ConfigError, match="training.vllm is set"):
        refuse(resolve({"training": {"vllm": {"gpu_memory": 0.5}}}))
    assert "vllm" not in sys.modules
