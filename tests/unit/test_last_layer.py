"""The last layer for the positions that are read, against all of it, in models of several families."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch.testing import assert_close

from popi.last_layer import read_from
from popi.tree import Segment, TreeBatch, pack, token_logps

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
    "gpt-neox": (tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig(**SIZES)),
}


def ids(n: int, seed: int) -> list[int]:
    return torch.randint(1, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def batch() -> TreeBatch:
    """Two rows of a root and three branches; positions from 8 on are read."""
    rows = [[Segment(ids(n, n)), *(Segment(ids(4, n + i), 0, True) for i in (1, 2, 3))] for n in (9, 11)]
    return pack(rows, pad_id=0)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    kind, config = FAMILIES[request.param]
    torch.manual_seed(0)
    made = kind(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3.0)  # far from uniform
    return made.eval()


def last(model: Any) -> Any:
    return model.get_decoder().layers[-1]


def read(model: Any, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and gradients; with `monkeypatch`, of whole last layers."""
    if monkeypatch is not None:
        monkeypatch.setattr("popi.tree.read_from", lambda decoder, first: read_from(decoder, 0))
    model.zero_grad()
    logps = token_logps(model, batch())
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_gives_what_the_whole_layer_gives(model: Any, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()  # no dropout in any of them
    found, gradients = read(model)
    assert "forward" not in vars(last(model)) and getattr(last(model), "gradient_checkpointing", False) == checkpointing
    expected, of_whole = read(model, monkeypatch)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert gradients.keys() == of_whole.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, of_whole[name], atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def test_the_root_ends_at_its_keys_and_values(model: Any) -> None:
    seen: dict[str, set[int]] = {}
    for place in (0, -1):
        layer = model.get_decoder().layers[place]
        layer.mlp.register_forward_hook(
            lambda _, given, __, place=place: seen.setdefault(str(place), set()).add(given[0].shape[1])
        )
    token_logps(model, batch())
    knows = not isinstance(model, tf.GPTNeoXForCausalLM)  # its layers give their cache another name
    assert seen == {"0": {23}, "-1": {15 if knows else 23}}  # positions 8 to 22, of 23


@pytest.mark.parametrize("unknown", ["a layer without a cache", "another tensor for each token"])
def test_what_it_does_not_know_is_left_whole(unknown: str) -> None:
    kind, config = FAMILIES["llama"]
    torch.manual_seed(0)
    model: Any = kind(config).eval()
    expected = token_logps(model, batch())
    whole, layer = last(model).forward, last(model)
    if unknown == "a layer without a cache":
        layer.forward = lambda hidden, past_key_values=None, **more: whole(hidden, **more)
    else:
        layer.forward = lambda hidden, **more: whole(hidden, **{n: v for n, v in more.items() if n != "per_layer"})
        decoder = model.get_decoder()
        forward = decoder.forward
        decoder.forward = lambda **more: forward(**more, per_layer=torch.zeros(2, 23, 4))
    own, seen = layer.forward, []
    layer.mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    assert_close(token_logps(model, batch()), expected)
    assert 23 in seen and layer.forward is own
