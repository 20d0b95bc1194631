"""Linear maps of few tokens: what torch's own give, in the model and by themselves."""

from typing import Any

import pytest
import torch
from exact import assert_exact
from tree_families import family

from popi.engine.decoding import decode
from popi.engine.narrow import FEW, narrow_linear, narrow_linears


@pytest.mark.parametrize("shape", [(2, 3), (1, 8), (1, 1), (FEW + 1,)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_linear_map(shape: tuple[int, ...], bias: bool, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x = torch.nn.Linear(32, 48, bias=bias), torch.randn(*shape, 32)
    largest = (x.abs() @ module.weight.detach().abs().t()).max()  # sum of products, whatever their signs
    with torch.inference_mode():
        found = narrow_linear(module, x)
        assert found.shape == (*shape, 48) and found.is_contiguous()
        assert_exact(found, module(x))
        half = narrow_linear(module.to(torch.bfloat16), x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    # Inputs, weights and result are rounded to 8 bits, and in between the sum may be.
    assert (half - found).abs().max() < 4 * 2**-8 * largest


def patched(model: Any) -> int:
    return sum("forward" in vars(module) for module in model.modules())


def test_where_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the plain linear maps of a bfloat16 model on a CPU with AMX, for the time being."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    model = family("llama")
    with narrow_linears(model):
        assert patched(model) == 0, "float32"
    model = model.to(torch.bfloat16)
    model.get_decoder().layers[0].mlp.up_proj.forward = lambda x: x  # someone's own
    with pytest.raises(KeyError), narrow_linears(model):
        assert patched(model) == 1 + 2 * 7 and "forward" in vars(model.lm_head)
        raise KeyError
    assert patched(model) == 1
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    with narrow_linears(model):
        assert patched(model) == 1


@pytest.mark.parametrize("amx", [False, True])
def test_decoding_goes_by_it_on_a_cpu_with_amx(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    """Whatever CPU this is: where there is no AMX the same products are only slower."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    seen: list[int] = []
    monkeypatch.setattr(
        "popi.engine.narrow.narrow_linear",
        lambda module, x: seen.append(x.shape[:-1].numel()) or narrow_linear(module, x),
    )
    model = family("llama").to(torch.bfloat16)
    more: dict[str, Any] = {"n": 3, "steps": 4, "temperature": 0.0, "top_p": 1.0, "stop_ids": (), "end_id": 0}
    with torch.inference_mode():
        drawn = decode(model, [[1, 2, 3], [4, 5]], **more)
    assert drawn is not None and drawn.shape == (6, 4)
    assert seen == ([6] * 3 * 15 if amx else [])  # two layers of seven maps, and the head


def test_a_model_says_the_same(precision: torch.dtype) -> None:
    model = family("llama")
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        for module in model.modules():
            if type(module) is torch.nn.Linear:
                module.forward = lambda x, module=module: narrow_linear(module, x)
        assert_exact(model(ids).logits, expected)
