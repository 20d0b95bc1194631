"""Tree rows, the last layer cut to what is read, against whole sequences, in models of several families."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch.testing import assert_close

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


def plain(model: Any) -> torch.Tensor:
    """The same log-probs, each branch behind its root in a sequence of its own, through the model's own head."""
    found = []
    for root, *rest in ROWS:
        for branch in rest:
            logits = model(input_ids=torch.tensor([root + branch])).logits[0, len(root) - 1 : -1].float()
            found.append(torch.log_softmax(logits, -1).gather(1, torch.tensor(branch)[:, None])[:, 0])
    return torch.cat(found)


def gradients(model: Any, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_gives_what_whole_sequences_give(model: Any, checkpointing: bool) -> None:
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()  # no dropout in any of them
    found, expected = token_logps(model, batch()), plain(model)
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert "forward" not in vars(last(model)) and getattr(last(model), "gradient_checkpointing", False) == checkpointing
    ours, theirs = gradients(model, found), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name], atol=2e-4, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


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


@pytest.mark.parametrize("unknown", ["no cache", "another question to the cache", "another tensor for each token"])
def test_what_it_does_not_know_is_left_whole(unknown: str) -> None:
    kind, config = FAMILIES["llama"]
    torch.manual_seed(0)
    model: Any = kind(config).eval()
    expected = token_logps(model, batch())
    whole, layer = last(model).forward, last(model)
    if unknown == "no cache":
        layer.forward = lambda hidden, past_key_values=None, **more: whole(hidden, **more)
    elif unknown == "another question to the cache":

        def asking(hidden: torch.Tensor, past_key_values: Any = None, **more: Any) -> Any:
            if past_key_values is not None:
                past_key_values.get_seq_length()
            return whole(hidden, past_key_values=past_key_values, **more)

        layer.forward = asking
    else:
        layer.forward = lambda hidden, **more: whole(hidden, **{n: v for n, v in more.items() if n != "per_layer"})
        decoder = model.get_decoder()
        forward = decoder.forward
        decoder.forward = lambda **more: forward(**more, per_layer=torch.zeros(2, 23, 4))
    own, seen = layer.forward, []
    layer.mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    assert_close(token_logps(model, batch()), expected)
    assert 23 in seen and layer.forward is own
