"""The tree's policy gradient is that of whole sequences: with LoRA, gradient checkpointing and DDP."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import exact
import pytest
import torch
from exact import assert_exact, in_precision

from popi.models.local.adapters import TRAINED, attach_adapters
from popi.models.local.model import LocalModel
from popi.training.phases.inference import summary_logps
from popi.training.phases.scorer import TreeScorer

GROUPS, SIZE, KEPT = 4, 3, 5
PRECISIONS = ("float64", "float32")


def model_of(base: str, adapter: str, checkpointing: bool) -> Any:
    model = LocalModel.load(base, device="cpu").model
    torch.manual_seed(1)
    if adapter == "lora":
        model = attach_adapters(model, 4, 8.0, {TRAINED: None})
        with torch.no_grad():  # LoRA's B starts at zero, and with it the gradient of A
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if adapter == "lora":
            model.enable_input_require_grads()
    return model.train()


def batch() -> tuple[list[list[int]], list[list[int]], torch.Tensor]:
    """Prompts of groups, of 4 to 40 tokens, and their summaries; a weight for each summary's token."""
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(6, 90, (n,), generator=generator).tolist()

    prompts = [prompt for length in (4, 9, 25, 40) for prompt in [tokens(length)] * SIZE]
    summaries = [tokens(1 + row % KEPT) for row in range(GROUPS * SIZE)]
    return prompts, summaries, torch.randn(GROUPS * SIZE, KEPT, generator=generator)


def tree_gradients(scorer: Any, rows: slice) -> dict[str, torch.Tensor]:
    prompts, summaries, weights = (x[rows] for x in batch())
    logps, _ = summary_logps(scorer, prompts, summaries, 0, 0.8)
    (logps * weights[:, : logps.shape[1]]).sum().backward()
    scorer = getattr(scorer, "module", scorer)
    return {n: p.grad for n, p in scorer.model.named_parameters() if p.grad is not None}


def plain_gradients(model: Any) -> dict[str, torch.Tensor]:
    """One sequence at a time, without padding or mask."""
    for prompt, summary, weights in zip(*batch(), strict=True):
        kept = len(summary)
        logits = model(input_ids=torch.tensor([[*prompt, *summary]])).logits[0, -kept - 1 : -1] / 0.8
        logps = logits.log_softmax(-1).gather(1, torch.tensor(summary)[:, None])[:, 0]
        (logps * weights[:kept]).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", ["", "tiles", "chunks"], ids=["", "head-by-tiles", "head-recomputed"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_one_process(
    precision: torch.dtype,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapter: str,
    checkpointing: bool,
    recompute: str,
) -> None:
    monkeypatch.setattr("popi.engine.tree.FEW", 8)  # so that short and long rows go apart
    if recompute:
        monkeypatch.setattr("popi.engine.tree.LARGE_VOCABULARY", 10)
        monkeypatch.setattr("popi.engine.head.TILE", {"cpu": (7, 30)})
    if recompute == "chunks":  # as heads go that are more than their weights
        monkeypatch.setattr("popi.engine.head.Head.tiles", False)
        monkeypatch.setattr("popi.engine.tree.chunk_of", lambda *_: 7)
    found = tree_gradients(TreeScorer(model_of(str(tiny_base), adapter, checkpointing)), slice(None))
    expected = plain_gradients(model_of(str(tiny_base), adapter, False))
    assert len(found) > 10 and all(gradient.abs().max() > 0 for gradient in expected.values())
    assert_exact(found, expected)


PROCESS = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path[:0] = sys.argv[1].split(":")
import test_exact_gradients as t
base, store, rank = *sys.argv[2:4], int(sys.argv[4])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
half = t.GROUPS * t.SIZE // 2
for adapter, checkpointing in t.WRAPPED:
    for precision in t.PRECISIONS:
        with t.in_precision(precision):
            scorer = DistributedDataParallel(t.TreeScorer(t.model_of(base, adapter, checkpointing)))
            found = t.tree_gradients(scorer, slice(rank * half, (rank + 1) * half))
        torch.save(found, f"{store}.{adapter}.{precision}.{rank}")
dist.destroy_process_group()
"""
WRAPPED = [("none", False), ("lora", True)]
"""Adapters, and whether with gradient checkpointing, of the models that DDP wraps."""


@pytest.fixture(scope="module")
def two_processes(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where two processes under DDP, each with half of the groups, left their gradients."""
    store = str(tmp_path_factory.mktemp("two") / "store")
    paths = f"{Path(__file__).parent}:{Path(exact.__file__).parent}"
    command = [sys.executable, "-c", PROCESS, paths, str(tiny_base), store]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE) for rank in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-3000:]
    return store


@pytest.mark.parametrize("adapter", [adapter for adapter, _ in WRAPPED])
def test_two_processes(tiny_base: Path, two_processes: str, adapter: str) -> None:
    """DDP's gradient, a mean, is half of the whole one, and the same in both."""
    for precision in PRECISIONS:
        one, other = (torch.load(f"{two_processes}.{adapter}.{precision}.{rank}") for rank in range(2))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        with in_precision(precision):
            expected = plain_gradients(model_of(str(tiny_base), adapter, False))
            assert_exact({name: 2 * gradient for name, gradient in one.items()}, expected)
