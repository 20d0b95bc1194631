"""A merged adapter is the same model in one folder."""

import json
from pathlib import Path
from typing import Any

import torch
from exact import assert_exact

from popi.config import resolve
from popi.inference_model import InferenceModel
from popi.models.local.model import LocalModel
from popi.training.components import load_components

IDS = torch.tensor([[5, 9, 17, 30]])


def test_the_merged_model_is_the_adapters(run: Any, tiny_base: Path, tmp_path: Path) -> None:
    model = {"base": str(tiny_base), "adapter": "lora", "lora_rank": 2, "device": "cpu"}
    parts = load_components(resolve({"model": model, "summary": {"max_tokens": 9}}), {"inference_model"}, None, None)
    for name, parameter in parts.inference_model.local.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapter, out = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir()
    parts.saver("inference_model", str(tiny_base))(adapter)
    assert run("merge", adapter, "--out", out, "--device", "cpu", "--dtype", "float32")[0] == 0
    assert not (out / "adapter_config.json").exists() and "base" not in json.loads((out / "popi.json").read_text())
    loaded = [LocalModel.load(folder, device="cpu").model for folder in (adapter, out, tiny_base)]
    with torch.no_grad():
        under, merged, base = (one(input_ids=IDS).logits for one in loaded)
    assert_exact(merged, under)
    assert float((merged - base).abs().max()) > 0.1
    assert InferenceModel.from_pretrained(out, device="cpu").max_tokens == 9
    code, _, err = run("merge", adapter, "--out", out)
    assert code == 2 and "exists already" in err


def test_what_is_no_adapter(run: Any, tiny_base: Path, tmp_path: Path) -> None:
    code, _, err = run("merge", tiny_base, "--out", tmp_path / "out")
    assert code == 2 and "not an adapter" in err
    assert not (tmp_path / "out").exists()
