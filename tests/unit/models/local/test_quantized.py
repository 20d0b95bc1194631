"""Bases of 4 and 8 bits: what transformers is asked for, and what is refused. Packing itself needs a GPU: a stand-in
gives the weights in full."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from popi.config import RunConfig, resolve
from popi.errors import ConfigError, ModelError, RunError
from popi.evaluation.runner import evaluate
from popi.models.local.model import LocalModel
from popi.models.local.quantized import refuse_quantization
from popi.models.spec import ModelSpec
from popi.runs.run_directory import RunDirectory
from popi.training import vllm_rollouts
from popi.training.merging import merge
from popi.training.planning.dry_run import dry_run
from popi.training.planning.plan import refuse_settings
from popi.training.train import refuse, train

GPU = torch.device("cuda")
Asked = list[dict[str, Any]]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bitsandbytes was there."""
    monkeypatch.setattr("popi.models.local.quantized.find_spec", lambda name: object())


@pytest.fixture
def asked(installed: None, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What `from_pretrained` is asked for, call by call, on a machine with a GPU; it gives the weights in full."""
    calls: Asked = []
    take = AutoModelForCausalLM.from_pretrained

    def from_pretrained(path: str, **options: Any) -> Any:
        calls.append(dict(options))
        for name in ("quantization_config", "device_map"):
            options.pop(name, None)
        return take(path, **options)

    monkeypatch.setattr("popi.models.local.loading.AutoModelForCausalLM.from_pretrained", from_pretrained)
    monkeypatch.setattr("popi.models.local.model.device_of", lambda name: torch.device("cpu") if name == "cpu" else GPU)
    monkeypatch.setattr("popi.training.train.device_of", lambda name: GPU)
    return calls


def config(base: Path, root: Path, **model: Any) -> RunConfig:
    inference = {"steps": 2, "users_per_step": 2, "group_size": 2, "targets_per_summary": 1, "warmup_steps": 0}
    return resolve(
        {
            "name": "run",
            "root": str(root),
            "model": {"base": str(base), "dtype": "float32", "adapter": "lora", "quantization": "4bit"} | model,
            "data": {"train_users": 4, "test_users": 2, "targets_per_user": 2},
            "summary": {"max_tokens": 4},
            "training": {
                "orders": ["alternating"],
                "inference": inference,
                "generator": {"steps": 2, "batch_size": 2, "warmup_steps": 0},
            },
        }
    )


def test_four_bits(asked: Asked, tiny_base: Path) -> None:
    LocalModel.load(tiny_base, dtype="bfloat16", quantization="4bit")
    [options] = asked
    packing = options["quantization_config"]
    assert options["device_map"] == {"": GPU} and options["dtype"] == torch.bfloat16
    assert (packing.load_in_4bit, packing.load_in_8bit) == (True, False)
    assert (packing.bnb_4bit_quant_type, packing.bnb_4bit_use_double_quant) == ("nf4", True)
    assert packing.bnb_4bit_compute_dtype == torch.bfloat16
    assert packing.llm_int8_skip_modules is None, "transformers leaves the LM head as it is"


def test_eight_bits(asked: Asked, tiny_base: Path) -> None:
    ModelSpec(str(tiny_base), dtype="float32", quantization="8bit").load()
    packing = asked[0]["quantization_config"]
    assert (packing.load_in_4bit, packing.load_in_8bit, packing.llm_int8_threshold) == (False, True, 0.0)


def test_whole_weights_are_asked_for_as_before(tiny_base: Path, asked: Asked) -> None:
    LocalModel.load(tiny_base, device="cpu")
    assert not {"quantization_config", "device_map"} & asked[0].keys()


def test_a_run_loads_its_base_alike_everywhere(asked: Asked, tiny_base: Path, tmp_path: Path) -> None:
    path = train(config(tiny_base, tmp_path), console=Console(quiet=True))
    evaluate(RunDirectory.open(path), console=Console(quiet=True))
    assert len(asked) >= 4, "two phases, and the evaluation's models"
    assert all(options["quantization_config"].load_in_4bit for options in asked)
    folder = path / "phases" / "inference-1" / "inference_model"
    assert json.loads((folder / "popi.json").read_text())["quantization"] == "4bit"
    with pytest.raises(RunError, match="trained over 4bit weights .*quantization = 'none'"):
        merge(folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.warns(UserWarning, match="trained over 4-bit weights but is used over unquantised weights"):
        LocalModel.load(folder, dtype="float32", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        LocalModel.load(folder, dtype="float32", quantization="4bit")


def test_where_it_cannot_be(installed: None, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(tiny_base, tmp_path, device="cpu")
    for call in (refuse, dry_run):
        with pytest.raises(ModelError, match="model.quantization = '4bit' needs a GPU, but the device is cpu"):
            call(asked)
    with pytest.raises(ModelError, match="needs a GPU"):
        LocalModel.load(tiny_base, device="cpu", quantization="8bit")
    with pytest.raises(ModelError, match="is incompatible with a.gguf.*original weights"):
        refuse_quantization("4bit", GPU, "a.gguf")
    with pytest.raises(ModelError, match="'3bit': allowed are 'none', '8bit', '4bit'"):
        refuse_quantization("3bit", GPU)
    refuse_quantization("none", torch.device("cpu"))
    refuse_quantization("4bit", GPU)
    monkeypatch.setattr("popi.models.local.quantized.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"bitsandbytes is not installed; pip install 'popi\[qlora\]'"):
        refuse_quantization("4bit", GPU)


def test_full_weights_do_not_train_on_it(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.quantization='4bit' packs .*set model.adapter=lora"):
        refuse_settings(config(tiny_base, tmp_path, adapter="none"))


def test_not_with_rollouts_by_vllm(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm_rollouts.importlib.util, "find_spec", lambda name: object())
    model = {"base": str(tiny_base), "adapter": "lora", "quantization": "4bit"}
    asked = resolve({"model": model, "training": {"rollouts": "vllm"}})
    with pytest.raises(ConfigError, match="'vllm' does not work with model.quantization = '4bit'"):
        vllm_rollouts.refuse_vllm(asked)
