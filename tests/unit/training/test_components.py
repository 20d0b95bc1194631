"""Which weights a phase loads, and as what."""

import shutil
from pathlib import Path

import pytest
import torch

from popi.config import resolve
from popi.models.local.model import LocalModel
from popi.training.components import GENERATOR, INFERENCE, load_components


@pytest.mark.parametrize(("adapter", "dtype"), [("none", torch.float32), ("lora", torch.bfloat16)])
def test_full_weights_never_train_in_half_precision_unasked(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / LocalModel.SETTINGS).write_text('{"template": "default"}')  # no longer a nano model
    model = {"base": str(tmp_path / "base"), "adapter": adapter, "device": "meta"}  # any device but the CPU
    config = resolve({"root": str(tmp_path), "model": model})
    parts = load_components(config, {INFERENCE, GENERATOR}, None, None)
    for part in (parts.inference_model, parts.generator, parts.base):
        weights = dict(part.local.model.named_parameters())
        assert {p.dtype for name, p in weights.items() if "lora" not in name} == {dtype}
        assert {p.dtype for name, p in weights.items() if "lora" in name} <= {torch.float32}  # adapters train
