"""The shape of a model, without its weights: counted as published, as torch counts, and refused where it is unknown."""

import json
from pathlib import Path

import pytest

import popi.models.architecture as architecture
from popi.errors import ConfigError, ModelError
from popi.models.architecture import Architecture, architecture_of, known_models
from popi.models.spec import NANO


@pytest.mark.parametrize("name", known_models())
def test_known_models_have_the_published_number_of_weights(name: str) -> None:
    row = known_models()[name]
    assert Architecture.from_config(row, name).parameters == row["parameters"]


@pytest.mark.parametrize("adapter", [None, 5])
def test_weights_are_counted_as_torch_counts_them(tiny_base: Path, adapter: int | None) -> None:
    from popi.models.local.adapters import adapter_parameters, attach_adapters
    from popi.models.local.model import LocalModel

    model, shape = LocalModel.load(tiny_base, device="cpu").model, architecture_of(str(tiny_base))[0]
    if adapter is None:
        assert shape.parameters == sum(p.numel() for p in model.parameters())
    else:
        model = attach_adapters(model, adapter, 8, {"default": None})
        assert shape.lora_parameters(adapter) == sum(p.numel() for p in adapter_parameters(model, "default").values())


def test_an_unknown_model_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'someone/llm' is not available locally and its shape is unknown.*smollm2"):
        architecture_of("someone/llm")
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 768}))
    with pytest.raises(ModelError, match="no hidden_size, num_hidden_layers"):
        architecture_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="can't be read"):
        architecture_of(str(tmp_path))
    monkeypatch.setattr(architecture, "_cached", lambda base: NANO / "config.json")
    assert architecture_of("someone/llm")[0].layers == 4
