"""The cases to measure: models by shape, and steps on seeded random tokens."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from popi.errors import PopiError

SUMMARY, PROMPT, RESPONSE, PAIRS = 64, 428, 128, 8
"""Tokens of a summary, of a task prompt with its template and of a response; target pairs in a generator step."""
BETA = 0.1
DTYPES = ("float32", "bfloat16")
LLAMAS = {
    "llama-100m": (16384, 768, 12, 12, 12, 2048),
    "llama-100m-128k": (128256, 512, 12, 8, 8, 1408),  # with the vocabulary size of Llama 3 and other current models
    "llama-1b": (128256, 2048, 16, 32, 8, 8192),
    "llama-3b": (128256, 3072, 28, 24, 8, 8192),
}
"""Shapes of models with random weights: vocabulary, hidden, layers, heads, key/value heads, intermediate."""
PARTS = ("scoring", "policy_update", "rollouts", "whole_step", "generator_step")
READ_SIGNALS = ("policy_update", "rollouts", "whole_step")
"""Parts whose cost depends on the length of the signals."""


@dataclass(frozen=True)
class Case:
    """One measurement: a part of a step with one model; lengths in tokens.

    `at_once`: sequences that the released pattern trains on in one forward and backward pass; 0: the whole group.
    """

    what: str
    model: str
    dtype: str
    device: str
    signals: int
    group: int
    seed: int = 0
    at_once: int = 0

    def ids(self, n: int, salt: int, vocabulary: int) -> list[int]:
        """`n` seeded random token ids."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + salt)
        return torch.randint(1, vocabulary, (n,), generator=generator).tolist()

    def signal_ids(self, vocabulary: int) -> list[int]:
        return self.ids(self.signals, 1, vocabulary)

    def summaries(self, vocabulary: int, n: int | None = None) -> list[list[int]]:
        """The group's summaries, the same for all ways, used instead of the timed rollouts' results."""
        return [self.ids(SUMMARY, 100 + i, vocabulary) for i in range(n or self.group)]

    def pair(self, vocabulary: int, i: int = 0) -> tuple[list[int], list[int], list[int]]:
        """Task prompt, chosen and rejected response of a target pair."""
        prompt, chosen, rejected = (
            self.ids(n, 10 * i + s, vocabulary) for s, n in ((2, PROMPT), (3, RESPONSE), (4, RESPONSE))
        )
        return prompt, chosen, rejected

    def advantages(self) -> torch.Tensor:
        """Seeded advantages: (group,)."""
        rewards = torch.randn(self.group, generator=torch.Generator().manual_seed(self.seed + 7))
        return rewards - rewards.mean()

    @property
    def distinct_tokens(self) -> int:
        """Number of tokens in the trees of this part."""
        policy, row = self.signals + self.group * SUMMARY, SUMMARY + PROMPT + 2 * RESPONSE
        return {
            "scoring": self.group * row,
            "generator_step": PAIRS * row,
            "whole_step": policy + self.group * row,
        }.get(self.what, policy)

    @property
    def tolerance(self) -> float:
        """Maximum difference of a reward or log-prob (nats), and of a gradient relative to its norm.

        Log-probs are sums of about a thousand nats, and rounding on a CPU amounts to 0.002 or more.
        """
        return 1e-2 if self.dtype == "float32" else 0.25


def load(case: Case) -> Any:
    """A newly loaded causal LM, or one with a shape in `LLAMAS` and seeded random weights."""
    dtype = getattr(torch, case.dtype)
    if case.model in LLAMAS:
        from transformers import LlamaConfig, LlamaForCausalLM

        vocabulary, hidden, layers, heads, kv_heads, intermediate = LLAMAS[case.model]
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=intermediate,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
        torch.manual_seed(case.seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # creating it in float32 first would raise the peak of memory
        try:
            with torch.device(case.device):
                return LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)
    from popi.models.local.model import LocalModel

    return LocalModel.load(case.model, dtype=case.dtype, device=case.device).model


def context(name: str) -> int:
    """A model's context length."""
    if name in LLAMAS:
        return 8192
    from transformers import AutoConfig

    from popi.models.local.loading import locate

    source = locate(name)
    return int(AutoConfig.from_pretrained(source.path, **source.arguments()).max_position_embeddings)


def installed(name: str) -> bool:
    """Whether a model is available."""
    if name in LLAMAS:
        return True
    try:
        context(name)
    except (PopiError, OSError, ValueError):
        return False
    return True


def default_models(device: str) -> list[str]:
    models = ["nano", "llama-100m", "smollm2"] + (["llama-1b", "llama-3b"] if device == "cuda" else [])
    return [name for name in models if installed(name)]


def cases(
    models: list[str],
    device: str,
    parts: list[str],
    signals: list[int],
    groups: list[int],
    seed: int,
    dtype: str | None = None,
) -> list[Case]:
    """The grid: every signal length at one group size (8 if requested), the other group sizes at one length (2,000 if
    requested); parts that read no signals at each group size."""
    at = 8 if 8 in groups else groups[0]
    length = 2000 if 2000 in signals else signals[0]
    shapes = [(s, at) for s in signals] + [(length, g) for g in groups if g != at]
    grid = []
    for model in models:
        own_dtype = dtype or ("bfloat16" if model in (*LLAMAS, "smollm2") else "float32")
        fits = context(model) - SUMMARY
        for part in parts:
            own = shapes if part in READ_SIGNALS else [(0, g) for g in groups]
            own = own if part != "generator_step" else [(0, 0)]
            grid += [Case(part, model, own_dtype, device, s, g, seed) for s, g in own if s <= fits]
    return grid


def threads() -> int:
    """Number of torch's threads: OMP_NUM_THREADS, or all cores."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
