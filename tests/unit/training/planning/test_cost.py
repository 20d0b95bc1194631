"""The cost of a phase: work and memory by hand, and memory against measured peaks."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from popi.config import resolve
from popi.models.architecture import architecture_of
from popi.training.planning.cost import OVERHEAD, dtype_of, phase_memory, work_of
from popi.training.planning.plan import Phase
from popi.training.planning.shapes import Shapes

ROOT = Path(__file__).parents[4]
ONE_B = architecture_of("meta-llama/Llama-3.2-1B-Instruct")[0]
SHAPES = Shapes(
    users=100,
    signals=4,
    targets=1,
    prompt=1000,
    prompt_mean=800,
    summary=100,
    plain=500,
    plain_mean=400,
    guide=150,
    raw=900,
    raw_mean=700,
    responses=400,
    reach=350,
    dropped=0,
    notes=(),
)
FIRST = Phase("inference-1", "inference")


def memory(phase: Phase = FIRST, gpu: bool = True, shapes: Shapes = SHAPES, **tree: Any) -> Any:
    config = resolve({"model": {"base": "meta-llama/Llama-3.2-1B-Instruct", **tree.pop("model", {})}, **tree})
    return phase_memory(config, phase, ONE_B, shapes, gpu)


def test_full_weights_by_hand() -> None:
    found, p = memory(), ONE_B.parameters
    assert found.weights == 2 * 4 * p, "the base, which is generator and reference too, and the trained copy, float32"
    assert (found.gradients, found.optimizer) == (4 * p, 8 * p)
    assert found.activities["optimizer's step"] == 4 * p
    assert memory(Phase("generator-1", "generator", "inference-1")).weights == 3 * 4 * p
    assert memory(Phase("joint", "joint")).gradients == 2 * 4 * p
    assert found.total == found.weights + found.gradients + found.optimizer + max(found.activities.values()) + OVERHEAD


def test_lora_shares_one_base_by_hand() -> None:
    rank, d, kv, i = 8, 2048, 512, 8192
    adapter = 16 * rank * ((d + d) + 2 * (d + kv) + (d + d) + 2 * (d + i) + (i + d))
    model = {"adapter": "lora", "lora_rank": rank}
    found = memory(Phase("generator-2", "generator", "inference-2", "generator-1"), model=model)
    assert found.weights == 2 * ONE_B.parameters + 2 * 4 * adapter, "a bfloat16 base, two float32 adapters"
    assert (found.gradients, found.optimizer) == (4 * adapter, 8 * adapter)
    full = {**model, "dtype": "float32"}
    assert memory(gpu=False, model=full).weights == 4 * ONE_B.parameters + 4 * adapter, "float32 if so set"


def test_packed_linear_layers_by_hand() -> None:
    d, kv, i = 2048, 512, 8192
    linear = 16 * (2 * d * d + 2 * d * kv + 3 * d * i)
    whole = memory(model={"adapter": "lora"}).weights
    assert whole - memory(model={"adapter": "lora", "quantization": "8bit"}).weights == linear
    found = memory(model={"adapter": "lora", "quantization": "4bit"}).weights
    assert whole - found == pytest.approx((2 - 4.127 / 8) * linear, rel=1e-4), "0.127 bits of constants a weight"


def test_user_embeddings_by_hand() -> None:
    p, d, k = ONE_B.parameters, 2048, 6
    tree = {"user_embedding": {"tokens": k}, "generator": {"batch_size": 4}}
    for source, vectors in (("user_id", 1 + 100), ("signals", 1 + d)):
        found = memory(Phase("user-embedding", "generator", context="none", embedding=source), training=tree)
        assert found.weights == 2 * 4 * p + 4 * k * d * vectors
        assert (found.gradients, found.optimizer) == (4 * (p + k * d * vectors), 8 * (p + k * d * vectors))


def test_what_stands_in_the_prompt_makes_a_row() -> None:
    assert [SHAPES.row(context) for context in ("none", "summary", "raw_signals")] == [500, 650, 1400]
    assert [SHAPES.row_mean(context) for context in ("none", "summary", "raw_signals")] == [400, 550, 1100]
    assert SHAPES.row("none", soft=10) == 510


def test_targets_behind_one_context_by_hand() -> None:
    """Three of a user's targets: opening and context once, then each target's own 490 tokens (390 in the mean)."""
    shapes = replace(SHAPES, targets=6, opening=10)
    assert shapes.row("raw_signals", 5, targets=3) == 10 + 900 + 5 + 3 * 490
    assert shapes.row_mean(targets=3) == 10 + 150 + 3 * 390
    assert [shapes.group(most) for most in (1, 3, 4, 12)] == [(1, 1.0), (3, 3.0), (4, 3.0), (6, 6.0)]

    def both(each: int) -> tuple[Any, Any]:
        tree = {"generator": {"steps": 10, "batch_size": 6, "targets_per_summary": each}}
        config = resolve({"training": tree, "model": {"base": "meta-llama/Llama-3.2-1B-Instruct"}})
        phase = Phase("generator-1", "generator", "inference-1")
        return work_of(config, phase, shapes), phase_memory(config, phase, ONE_B, shapes, gpu=False).activities

    (one, alone), (work, activities) = both(1), both(3)
    assert one.trained == 60 * 550 and work.trained == 20 * (10 + 150 + 3 * 390)
    assert one.samples == work.samples == 60, "target pairs"
    assert one.read - work.read == (60 - 20) * 100, "ten users' summaries: two each in place of six"
    assert activities["sampling"] < alone["sampling"] and activities["training"] < alone["training"]
    kept = 16 * 2 * (10 + 150 + 3 * 490) * 4 * (8 * 2048 + 4 * 2048 + 4 * 8192)
    assert kept < activities["training"] < 1.5 * kept


def test_the_type_is_the_one_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(gpu: bool, parameters: int = 10**9, **model: Any) -> str:
        return dtype_of(resolve({"model": {"base": "owner/llm", **model}}), gpu, parameters)

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})
    assert told(True) == told(False) == told(False, 10**6, adapter="lora") == "float32"
    assert told(True, adapter="lora") == told(False, adapter="lora") == told(False, dtype="bfloat16") == "bfloat16"
    assert told(True, adapter="lora", base="nano") == "float32"
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    assert told(False, adapter="lora") == "float32", "a CPU without units for bfloat16"


def test_what_lowers_the_largest_activity() -> None:
    def training(**inference: Any) -> float:
        checkpointing = inference.pop("gradient_checkpointing", False)
        tree = {"inference": {"users_per_step": 8, **inference}, "gradient_checkpointing": checkpointing}
        return memory(training=tree).activities["training"]

    assert training(micro_batch=1) < training(micro_batch=4) < training()
    assert training(gradient_checkpointing=True) < training() / 3
    assert training(group_size=2) < training(group_size=8)


def test_the_cache_of_sampling_by_hand() -> None:
    tree = {"inference": {"users_per_step": 8, "micro_batch": 2, "group_size": 4}}
    positions = 2 * (1000 + 4 * 100)
    cache = 4 * positions * (2 * 16 * 8 * 64 + 2 * 32 * 64)
    prefill = 4 * 2000 * (6 * 2048 + 3 * 8192 + 2 * 2048)
    assert memory(training=tree).activities["sampling"] == cache + prefill + 2 * 1000**2 + 2 * 4 * 128256 * 12


def test_signals_read_once_stay_while_summaries_are_sampled_and_scored() -> None:
    """Eight users at once, 1,000 tokens each; not with parts of a step, nor with checkpointing."""

    def activities(**training: Any) -> dict[str, float]:
        inference = {"users_per_step": 8, "group_size": 4, **training.pop("inference", {})}
        found: dict[str, float] = memory(training={"inference": inference, **training}).activities
        return found

    kept = 16 * 8000 * 4 * (8 * 2048 + 4 * 2048 + 4 * 8192)
    once, checkpointed = activities(), activities(gradient_checkpointing=True)
    for name in ("sampling", "scoring"):
        assert once[name] == checkpointed[name] + kept
    assert once["reference log-probs"] == checkpointed["reference log-probs"]
    assert once["training"] > once["sampling"] > kept


def evaluated(phase: Phase, **tree: Any) -> tuple[float, float, int]:
    """(tokens read, positions decoded, evaluations) of ten users set aside: what evaluating adds to a phase."""
    steps = {"inference": {"steps": 10, "users_per_step": 4, "group_size": 2}, "generator": {"steps": 10}}
    held = replace(SHAPES, held_out=10)
    often = {"eval_steps": 4, "eval_users": 10}
    without, given = (
        work_of(resolve({"training": steps | more, **tree}), phase, shapes)
        for more, shapes in (({}, SHAPES), (often, held))
    )
    assert given.trained == without.trained and given.samples == without.samples
    return given.read - without.read, given.decoded - without.decoded, given.evaluations


def test_evaluations_of_an_inference_phase_by_hand() -> None:
    """After steps 4 and 8: a prompt of 800, a summary of 100 and one target of 400 + 150 each; at first, references."""
    assert evaluated(FIRST) == (10 * 400 + 2 * 10 * (800 + 100 + 550), 2 * 3 * 100, 2)


def test_evaluations_of_generator_phases_by_hand() -> None:
    """References and greedy summaries once, in batches of four users; then ten targets in each evaluation."""
    batches = {"evaluation": {"batch_size": 4}}
    found = evaluated(Phase("generator-1", "generator", "inference-1"), **batches)
    assert found == (10 * 400 + 10 * 800 + 10 * 100 + 2 * 10 * 550, 3 * 100, 2)
    assert evaluated(Phase("fspo", "generator", context="raw_signals")) == (10 * 400 + 2 * 10 * (400 + 700), 0, 2)
    from_signals = Phase("user-embedding-from-signals", "generator", context="none", embedding="signals")
    read, decoded, _ = evaluated(from_signals)
    assert (read, decoded) == (10 * 400 + 10 * 700 + 2 * 10 * (400 + 10), 0)


def test_memory_of_evaluations() -> None:
    """With more pairs at once than a step of training has; else they never are the largest."""
    training: dict[str, Any] = {"inference": {"users_per_step": 2, "group_size": 2, "targets_per_summary": 1}}
    training |= {"eval_steps": 1, "gradient_checkpointing": True}
    found = memory(shapes=replace(SHAPES, held_out=50), training=training).activities
    assert found["evaluating"] > found["scoring"] and "evaluating" not in memory(training=training).activities


MEASURED = [
    ["training.inference.users_per_step=32"],
    ["training.inference.users_per_step=32", "training.inference.micro_batch=8"],
    ["training.inference.users_per_step=32", "training.gradient_checkpointing=true"],
    ["training.inference.users_per_step=32", "model.adapter=lora"],
    ['training.orders=["population_dpo"]', "training.generator.batch_size=512"],
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("overrides", MEASURED, ids=lambda overrides: overrides[-1])
def test_within_a_factor_of_two_of_a_measured_peak(overrides: list[str]) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "model.device=cpu", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = re.search(r"ratio ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert 0.5 <= float(found[1]) <= 2, done.stdout
