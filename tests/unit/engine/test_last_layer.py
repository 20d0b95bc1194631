"""Tree rows, the last layer cut to what is read, against whole sequences, in models of several families."""

from typing import Any

import pytest
import torch
import transformers as tf
from exact import assert_exact
from tree_families import FAMILIES, batch, family, gradients, plain

from popi.engine.tree import token_logps


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, precision: torch.dtype) -> Any:
    return family(request.param)


def last(model: Any) -> Any:
    return model.get_decoder().layers[-1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_gives_what_whole_sequences_give(model: Any, checkpointing: bool) -> None:
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()  # no dropout in any of them
    found, expected = token_logps(model, batch()), plain(model)
    assert_exact(found, expected)
    assert "forward" not in vars(last(model)) and getattr(last(model), "gradient_checkpointing", False) == checkpointing
    assert_exact(gradients(model, found), gradients(model, expected))


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
def test_what_it_does_not_know_is_left_whole(unknown: str, precision: torch.dtype) -> None:
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
    assert_exact(token_logps(model, batch()), expected)
    assert 23 in seen and layer.forward is own
