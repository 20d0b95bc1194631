"""What models are taken, and how their weights are loaded."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from popi.errors import ModelError
from popi.models.local.adapters import TRAINED, attach_adapters, save_adapter
from popi.models.local.loading import Source, load_weights
from popi.models.local.model import LocalModel

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
}


def saved(model: Any, folder: Path) -> Source:
    model.save_pretrained(folder)
    return Source(str(folder))


def test_attention_drops_nothing_and_the_config_stays(tmp_path: Path) -> None:
    """TRL switches off the modules of dropout; attention's is a number of each layer."""
    source = saved(tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, attention_dropout=0.5)), tmp_path)
    model = load_weights(source, torch.float32).train()
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert model.config.attention_dropout == 0.5


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_is_refused_and_never_read(tiny_base: Path, tmp_path: Path) -> None:
    folder, mark = tmp_path / "model", tmp_path / "it ran"
    shutil.copytree(tiny_base, folder)
    (folder / "model.safetensors").rename(tmp_path / "whole.safetensors")
    torch.save({"lm_head.weight": Trap(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model.safetensors, the only format.*pytorch_model.bin"):
        LocalModel.load(folder, device="cpu")
    assert not mark.exists()
    (tmp_path / "whole.safetensors").rename(folder / "model.safetensors")
    LocalModel.load(folder, device="cpu")  # a pickle beside safetensors is not looked at
    assert not mark.exists()


def test_an_adapters_pickle_is_refused_and_never_read(tiny_base: Path, tmp_path: Path) -> None:
    model = attach_adapters(LocalModel.load(tiny_base, device="cpu").model, 2, 4.0, {TRAINED: None})
    save_adapter(model, TRAINED, tmp_path / "adapter", str(tiny_base))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"x": Trap(tmp_path / "it ran")}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ModelError, match="no adapter_model.safetensors, the only format"):
        LocalModel.load(tmp_path / "adapter", device="cpu")
    with pytest.raises(ModelError, match="no adapter_model.safetensors, the only format"):
        attach_adapters(LocalModel.load(tiny_base, device="cpu").model, 2, 4.0, {"partner": tmp_path / "adapter"})
    assert not (tmp_path / "it ran").exists()
