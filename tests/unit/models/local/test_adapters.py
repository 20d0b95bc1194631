from pathlib import Path
from typing import Any

import pytest
import torch
from exact import assert_exact

from popi.models.local.adapters import TRAINED, adapter_parameters, attach_adapters, save_adapter, using
from popi.models.local.model import LocalModel

IDS = torch.tensor([[5, 9, 17, 30]])


@pytest.fixture
def model(tiny_base: Path) -> Any:
    torch.manual_seed(0)
    base = LocalModel.load(tiny_base, device="cpu").model
    found = attach_adapters(base, 4, 8.0, {TRAINED: None, "generator": None})
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return found.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_using_leaves_everything_as_found(model: Any) -> None:
    for parameter in adapter_parameters(model, "generator").values():
        parameter.requires_grad_(True)  # as joint training wants it
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    outside = logits(model)
    seen = []
    for adapter in ("generator", None, TRAINED):
        with using(model, adapter):
            seen.append(logits(model))
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        assert model.active_adapter == TRAINED
        assert_exact(logits(model), outside)
    with pytest.raises(KeyboardInterrupt), using(model, "generator"):
        raise KeyboardInterrupt
    assert model.active_adapter == TRAINED
    assert_exact(seen[2], outside)
    assert not torch.allclose(seen[0], seen[1]) and not torch.allclose(seen[0], seen[2])


def test_without_adapters_nothing_happens(tiny_base: Path) -> None:
    plain = LocalModel.load(tiny_base, device="cpu").model
    with using(plain, None):
        assert plain(input_ids=IDS).logits.requires_grad


def test_bare_base_is_the_base(model: Any, tiny_base: Path) -> None:
    with using(model, None):
        assert_exact(logits(model), logits(LocalModel.load(tiny_base, device="cpu").model))


def test_no_adapter_on_the_head(model: Any) -> None:
    assert not any("lm_head" in name and "lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("adapter", [TRAINED, "generator"])
def test_a_saved_adapter_stands_alone(
    precision: torch.dtype, model: Any, tiny_base: Path, tmp_path: Path, adapter: str
) -> None:
    save_adapter(model, adapter, tmp_path / "saved", str(tiny_base))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    with using(model, adapter):
        expected = logits(model)
    assert_exact(logits(LocalModel.load(tmp_path / "saved", device="cpu").model), expected)
    merged = LocalModel.load(tmp_path / "saved", device="cpu").model.merge_and_unload()
    assert_exact(logits(merged), expected)
    again = attach_adapters(
        LocalModel.load(tiny_base, device="cpu").model, 4, 8.0, {TRAINED: None, "partner": tmp_path / "saved"}
    ).eval()
    with using(again, "partner"):
        assert_exact(logits(again), expected)
    assert not any(p.requires_grad for p in adapter_parameters(again, "partner").values())
