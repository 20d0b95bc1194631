"""Few-layer models of several families with random weights, tree rows for them, and the plain computation of these."""

from copy import deepcopy
from typing import Any

import torch
import transformers as tf

from popi.engine.tree import Segment, TreeBatch, pack

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES = {
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**SIZES)),
    "qwen3": (tf.Qwen3ForCausalLM, tf.Qwen3Config(**SIZES, head_dim=8)),
    "mistral, sliding": (tf.MistralForCausalLM, tf.MistralConfig(**SIZES, sliding_window=6)),
    "gemma 2": (tf.Gemma2ForCausalLM, tf.Gemma2Config(**SIZES, head_dim=8, sliding_window=6)),
    "gemma 3": (tf.Gemma3ForCausalLM, tf.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6)),
    "phi 3": (tf.Phi3ForCausalLM, tf.Phi3Config(**SIZES)),
    "olmo 2": (tf.Olmo2ForCausalLM, tf.Olmo2Config(**SIZES)),
    "mixtral": (tf.MixtralForCausalLM, tf.MixtralConfig(**SIZES, num_local_experts=2)),
    "granite": (tf.GraniteForCausalLM, tf.GraniteConfig(**SIZES, logits_scaling=8.0)),
    "cohere": (tf.CohereForCausalLM, tf.CohereConfig(**SIZES, logit_scale=0.25)),
    "gpt-neox": (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**SIZES)),
}


def ids(n: int, seed: int) -> list[int]:
    return torch.randint(1, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


ROWS = [[ids(n, n), *(ids(4, n + i) for i in (1, 2, 3))] for n in (9, 11)]
"""Two roots, each with three branches; positions from 8 on are read."""


def batch() -> TreeBatch:
    return pack([[Segment(root), *(Segment(branch, 0, True) for branch in rest)] for root, *rest in ROWS], pad_id=0)


def family(name: str) -> Any:
    """A model of the family in torch's default type, its outputs far from uniform."""
    kind, config = FAMILIES[name]
    torch.manual_seed(0)
    made = kind(deepcopy(config))
    if name == "mixtral" and torch.get_default_dtype() == torch.float64:
        made.set_experts_implementation("eager")  # the others take no float64
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3.0)
    return made.eval()


def plain(model: Any) -> torch.Tensor:
    """The same log-probs, each branch behind its root in a sequence of its own, through the model's own head."""
    found = []
    for root, *rest in ROWS:
        for branch in rest:
            logits = model(input_ids=torch.tensor([root + branch])).logits[0, len(root) - 1 : -1]
            found.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(branch)[:, None])[:, 0])
    return torch.cat(found)


def gradients(model: Any, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
