"""Two adapters on one shared base: which one a forward goes through, and where each is saved.

The adapter that trains is called `default`; its partner is called `generator` where the inference model is trained,
`inference_model` where the generator is. Switching in PEFT rewrites `requires_grad` of
*all* adapters; `using` puts it back, so that what trains is decided once.
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
    """Run a model under one adapter (None: the bare base) and leave everything as found; plain models pass through."""
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
    """Put adapters on a freshly loaded base, by name; each from a folder, or new (None), which changes nothing yet.

    LoRA on the layers named, by default every linear one except the LM head, which `popi.engine.tree` reads directly.
    `default` is active.

    Raises:
        ModelError: no layer has one of the names, or the embeddings or the LM head has.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank: any number will do
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
    """PEFT would read an adapter without safetensors from a pickle, which can run code.

    Raises:
        ModelError: the folder has no adapter_model.safetensors.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{folder}: the adapter has no adapter_model.safetensors, the only format of weights that popi loads; "
            "convert it, or take one that has it"
        )


def _refuse_targets(base: Any, target_modules: str | list[str]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    asked = [target_modules] if isinstance(target_modules, str) else target_modules
    modules = dict(base.named_modules())
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    for name in asked:
        rule = LoraConfig(target_modules=name if isinstance(target_modules, str) else [name])
        hit = [key for key, module in modules.items() if key and check_target_module_exists(rule, key)]
        if not hit:
            linear = sorted({key.rpartition(".")[2] for key, one in modules.items() if hasattr(one, "in_features")})
            raise ModelError(
                f"model.lora_target_modules: no layer of this model is {name!r}; it has {', '.join(linear)}"
            )
        if any(modules[key] in ends for key in hit):
            raise ModelError(
                f"model.lora_target_modules: {name!r} takes in the embeddings or the LM head, which popi reads past "
                "adapters; name layers between them"
            )


def set_dropout(model: Any, adapter: str, rate: float) -> None:
    """Dropout in front of one adapter, while the model is in training mode."""
    for module in model.modules():
        if adapter in getattr(module, "lora_dropout", {}):
            module.lora_dropout[adapter] = torch.nn.Dropout(rate)
    model.peft_config[adapter].lora_dropout = rate


def save_adapter(model: Any, adapter: str, path: Path, base_name: str) -> None:
    """Save one adapter as an ordinary adapter folder over `base_name`, loadable alone."""
    model.save_pretrained(path, selected_adapters=[adapter])
    inner = path / adapter  # PEFT puts every adapter but `default` into a folder of its own
    if inner.is_dir():
        for file in list(inner.iterdir()):
            file.rename(path / file.name)
        shutil.rmtree(inner)
    file = path / "adapter_config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(facts | {"base_model_name_or_path": base_name}, indent=2, sort_keys=True) + "\n")
