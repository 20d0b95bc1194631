"""What the hot path holds at its peak, in bytes of live tensors: not by the vocabulary, less with checkpointing."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from popi.engine.scoring import ScoringItem, pair_logps
from popi.training.phases.inference import summary_logps
from popi.training.phases.scorer import TreeScorer


class Peak(TorchDispatchMode):
    """Counts the bytes of storages that operations make, and the most that lived at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs)):  # those that were there before are not ours
            if isinstance(tensor, torch.Tensor):
                self.known.add(tensor.untyped_storage()._cdata)
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return found

    def freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_of(work: Callable[[], object]) -> int:
    mode = Peak()
    with mode:
        work()
    return mode.peak


def model_of(vocabulary: int, layers: int = 1) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=64,
        )
    )


def test_the_count_by_hand() -> None:
    """Two tensors of 4,000 bytes live together; the third comes when the first is gone."""

    def work() -> None:
        first = torch.zeros(1000)
        second = first + 1
        del first
        second.mul(2)

    assert peak_of(work) == 8000


def test_scoring_does_not_grow_with_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """800 scored tokens: all of their float32 logits would take 205 MB of the large vocabulary."""
    monkeypatch.setattr("popi.engine.head.TILE", {"cpu": (256, 2048)})  # 2 MB
    items = [ScoringItem((3, 4, 5, i), tuple(range(1, 51)), tuple(range(2, 52))) for i in range(8)]
    peaks = []
    for vocabulary in (4_000, 64_000):
        model = model_of(vocabulary).eval()
        pair_logps(model, items, 0)  # switches its attention
        peaks.append(peak_of(lambda model=model: pair_logps(model, items, 0)))
    assert peaks[1] < 1.3 * peaks[0] and peaks[1] < 8 * 2**20


@pytest.mark.parametrize("width", [40, 200])
def test_gradient_checkpointing_pays(width: int) -> None:
    peaks = []
    prompts, summaries = torch.randint(1, 90, (1, width)).tolist() * 4, torch.randint(1, 90, (4, 10)).tolist()
    for checkpointing in (False, True):
        model = model_of(100, layers=8).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

        def work(model: Any = model) -> None:
            summary_logps(TreeScorer(model), prompts, summaries, 0, 1.0, True)[0].sum().backward()

        work()  # gradients are there from now on
        peaks.append(peak_of(work))
    assert peaks[1] < 0.5 * peaks[0]
