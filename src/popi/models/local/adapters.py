"""Two adapters on one shared base: switching between them, and saving each.

The adapter being trained is called `default`; the other one is called `generator` when the inference model is trained,
and `inference_model` when the generator is. Switching adapters in PEFT overwrites `requires_grad` of *all* adapters;
`using` restores it, so the trainable parameters are chosen only once.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from popi.errors import ModelError
from popi.models.local.loading import refuse_missing, whole_adapters

TRAINED = "default"


def has_adapters(model: Any) -> bool:
    """Whether this is a PEFT model."""
    return hasattr(model, "peft_config")


@contextmanager
def using(model: Any, adapter: str | None) -> Iterator[None]:
    """Run a model with one adapter (None: the bare base) and restore the state afterwards; no-op for plain models."""
    if not has_adapters(model):
        yield
        return
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    before = model.active_adapter
    try:
        if adapter is None:
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(adapter)
            yield
    finally:
        model.set_adapter(before)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def adapter_parameters(model: Any, adapter: str) -> dict[str, Any]:
    """The parameters of one adapter, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if f".{adapter}." in name}


def attach_adapters(
    base: Any,
    rank: int,
    alpha: float,
    adapters: dict[str, Path | None],
    target_modules: str | list[str] = "all-linear",
) -> Any:
    """Add named LoRA adapters to a freshly loaded base: loaded from a folder, or new and without effect if None.

    They are added to the layers in `target_modules`, by default all linear ones except the LM head, which
    `popi.engine.tree` reads directly. `default` becomes active.

    Raises:
        ModelError: if no layer matches one of the names, or the embeddings or the LM head match.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT only divides it by the rank, so a float works
        target_modules=target_modules,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    model: Any = None
    if target_modules != "all-linear":
        _refuse_targets(base, target_modules)
    for folder in adapters.values():
        if folder is not None:
            refuse_pickles(Path(folder))
    with whole_adapters():
        for name, folder in adapters.items():
            if model is None and folder is None:
                model = get_peft_model(base, config, adapter_name=name)
            elif model is None:
                model = PeftModel.from_pretrained(base, str(folder), adapter_name=name, is_trainable=True)
            elif folder is None:
                model.add_adapter(name, config)
            else:
                refuse_missing(model.load_adapter(str(folder), name, is_trainable=False).missing_keys, [])
    model.set_adapter(TRAINED)
    return model


def refuse_pickles(folder: Path) -> None:
    """Refuse an adapter without safetensors: PEFT would read it from a pickle, which can run code.

    Raises:
        ModelError: the folder has no adapter_model.safetensors.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{folder}: the adapter has no adapter_model.safetensors, the only format of weights that popi loads; "
            "convert the adapter, or use one in that format"
        )


def _refuse_targets(base: Any, target_modules: str | list[str]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    names = [target_modules] if isinstance(target_modules, str) else target_modules
    modules = dict(base.named_modules())
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    for name in names:
        rule = LoraConfig(target_modules=name if isinstance(target_modules, str) else [name])
        matches = [key for key, module in modules.items() if key and check_target_module_exists(rule, key)]
        if not matches:
            linear = sorted({key.rpartition(".")[2] for key, part in modules.items() if hasattr(part, "in_features")})
            raise ModelError(
                f"model.lora_target_modules: no layer of this model is {name!r}; it has {', '.join(linear)}"
            )
        if any(modules[key] in ends for key in matches):
            raise ModelError(
                f"model.lora_target_modules: {name!r} matches the embeddings or the LM head, where popi bypasses "
                "adapters; choose layers between them"
            )


def set_dropout(model: Any, adapter: str, rate: float) -> None:
    """Set the dropout on one adapter's input, active in training mode."""
    for module in model.modules():
        if adapter in getattr(module, "lora_dropout", {}):
            module.lora_dropout[adapter] = torch.nn.Dropout(rate)
    model.peft_config[adapter].lora_dropout = rate


def save_adapter(model: Any, adapter: str, path: Path, base_name: str, weights: Any = None) -> None:
    """Save one adapter as a regular adapter folder for `base_name` that can be loaded on its own."""
    model.save_pretrained(path, selected_adapters=[adapter], state_dict=weights)
    inner = path / adapter  # PEFT puts every adapter except `default` into a subfolder
    if inner.is_dir():
        for file in list(inner.iterdir()):
            file.rename(path / file.name)
        shutil.rmtree(inner)
    file = path / "adapter_config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(facts | {"base_model_name_or_path": base_name}, indent=2, sort_keys=True) + "\n")
