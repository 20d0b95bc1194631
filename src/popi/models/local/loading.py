"""From a model's name to its weights: where they lie, on which device and in which type they are loaded."""

import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from popi.errors import ModelError
from popi.models.local.gguf import mend_tokenizer, need_gguf, packaged_smollm2, unpacked
from popi.models.spec import SMOLLM2, SMOLLM2_ID, model_path

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BIG = 50_000_000
"""From so many parameters on, a CPU with bfloat16 units is the faster in bfloat16; below, float32 costs little."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars: popi draws its own, and they would break into each other."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True)
class Source:
    """Where a model lies, as transformers takes it.

    Attributes:
        path: a folder or a hub id.
        gguf: the name of a GGUF file there; None for a model in transformers' own layout.
    """

    path: str
    gguf: str | None = None

    def arguments(self) -> dict[str, Any]:
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def locate(name: str | Path) -> Source:
    """Where the model of this name lies.

    `nano`; `smollm2` (the installed package that carries it, else the hub); a folder; a GGUF file; a hub id
    (owner/name), or a GGUF file in a repository of the hub (owner/name/file.gguf).

    Raises:
        ModelError: the name is none of these.
    """
    text = str(name)
    packaged = packaged_smollm2() if text in (SMOLLM2, SMOLLM2_ID) else None
    if packaged is not None and (text == SMOLLM2 or not _on_hub(SMOLLM2_ID)):
        return _gguf(packaged)
    path = Path(model_path(text))
    if path.is_dir():
        if any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            return Source(str(path))
        packed = sorted(path.glob("*.gguf"))
        if len(packed) == 1:
            return _gguf(packed[0])
        if packed:
            raise ModelError(f"{name}: holds {len(packed)} GGUF files; name one: {', '.join(f.name for f in packed)}")
        raise ModelError(f"{name}: no model in this folder (it has neither config.json nor adapter_config.json)")
    if path.exists():
        if path.suffix.lower() == ".gguf":
            return _gguf(path)
        raise ModelError(f"{name}: is a file; name the folder of a Hugging Face model, or a .gguf file")
    on_hub = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)/(\w[\w.-]*\.gguf)", str(path))
    if on_hub:
        need_gguf(text)
        return Source(on_hub[1], on_hub[2])
    if text.endswith(".gguf") or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(path)):
        raise ModelError(f"{text or repr(text)}: no such folder, and not the form of a hub id (owner/name)")
    return Source(str(path))


def _gguf(file: Path) -> Source:
    need_gguf(str(file))
    return Source(str(file.parent), file.name)


def _on_hub(name: str) -> bool:
    """Whether the hub, or its cache on this machine, gives the model."""
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: it can't be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: can't be read ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: must hold a JSON object; got {type(content).__name__}")
    return content


def device_of(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU where there is one.

    Raises:
        ModelError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # an unknown name; or not on this machine
        raise ModelError(f"device {name!r} can't be used here ({first_line(error)}); try auto or cpu") from None


def refuse_type(name: str, device: torch.device) -> None:
    """Raise ModelError for a type that a device is not good for."""
    if name == "float16" and device.type == "cpu":
        raise ModelError("dtype float16 on a CPU is slow and overflows; use bfloat16, float32 or auto")


def dtype_of(name: str, device: torch.device, source: Source, nano: bool) -> torch.dtype:
    """The weights' type; `auto` takes bfloat16 where that is native, and float32 for the nano model.

    Raises:
        ModelError: float16 on a CPU.
    """
    refuse_type(name, device)
    if name != "auto":
        return DTYPES[name]
    if nano:
        return torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if bfloat16_on_cpu(_parameters(source)) else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32


def bfloat16_on_cpu(parameters: int) -> bool:
    """Whether `auto` takes bfloat16 on this machine's CPU for a model of that size."""
    found = torch.cpu.get_capabilities()
    return parameters >= BIG and bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def _parameters(source: Source) -> int:
    """How many parameters a model has, from its config alone; 0 where that can't be told.

    Of a GGUF file, which is slow to read, at most how many: as if all of it were packed to four bits.
    """
    try:
        if source.gguf is not None:
            return (Path(source.path) / source.gguf).stat().st_size * 2
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=False, **source.arguments())
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(config).num_parameters())
    except Exception:  # what is wrong with the config is told when the model is loaded
        return 0


def load_tokenizer(source: Source, *, local_files_only: bool = False) -> Any:
    """The tokenizer of a model; transformers' errors pass through."""
    tokenizer = AutoTokenizer.from_pretrained(
        source.path, local_files_only=local_files_only, trust_remote_code=False, **source.arguments()
    )
    if source.gguf is not None and os.path.isdir(source.path):
        mend_tokenizer(tokenizer, Path(source.path) / source.gguf)
    return tokenizer


def load_weights(
    source: Source, dtype: torch.dtype, attention: str = "auto", quantization: Mapping[str, Any] | None = None
) -> Any:
    """The causal LM with plain weights, on the CPU, or quantised (`popi.models.local.quantized`), on its device;
    transformers' errors pass through.

    The attention is transformers' choice (sdpa, or eager as for Gemma 2) where it is `auto`; `popi.models.local.probe`
    sees how it masks.
    """
    model: Any
    found: Any
    take: Any = AutoModelForCausalLM.from_pretrained
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "output_loading_info": True}
    options |= quantization or {}
    if attention != "auto":
        options["attn_implementation"] = attention
    if source.gguf is None:
        # Other formats are pickles, and reading one can run code.
        model, found = take(source.path, **options, use_safetensors=True)
    else:
        with redirect_stderr(io.StringIO()):  # the bar of the unpacking can't be switched off
            model, found = take(source.path, **options, gguf_file=source.gguf, quantization_config=unpacked())
            model = model.to(dtype)
    refuse_missing(found["missing_keys"], found["unexpected_keys"])
    for module in model.modules():  # one forward scores, another trains: they have to agree
        if isinstance(getattr(module, "attention_dropout", None), float):  # BLOOM has a module there
            module.attention_dropout = 0.0
    return model


def refuse_missing(missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """transformers fills weights that a file lacks with random ones, and only logs it; tied ones are not lacking.

    Raises:
        ModelError: some are missing.
    """
    if not (lacking := sorted(missing)):
        return
    others = sorted(unexpected)
    known = f"; the file has weights that the model lacks: {_some(others)}" if others else ""
    raise ModelError(
        f"the file lacks {len(lacking)} of its weights: {_some(lacking)}{known}; they would be random: is the file "
        "whole, and do its names fit the architecture in config.json?"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


@contextmanager
def whole_adapters() -> Iterator[None]:
    """Within it an adapter whose weights fit no layer is refused; PEFT begins with new ones, and warns.

    Raises:
        ModelError: weights of an adapter are missing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
        try:
            yield
        except UserWarning as error:
            raise ModelError(f"the adapter's file lacks weights, which would be new: {str(error)[:200]}") from None


def warn_of_another_base(
    name: str, trained_over: str | None, found: Source, quantized: str = "none", quantization: str = "none"
) -> None:
    """Unpacked and quantised weights are not the original ones: an adapter belongs to what it was trained over."""
    before, now = _kind_of_weights(trained_over, quantized), _kind_of_weights(found.gguf, quantization)
    if before != now:
        warnings.warn(f"{name}: this adapter was trained over {before} and is now used over {now}", stacklevel=3)


def _kind_of_weights(gguf: str | None, quantization: str) -> str:
    if gguf:
        return f"the unpacked {gguf}"
    return "weights in full" if quantization == "none" else f"weights of {quantization.replace('bit', ' bits')}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own (trust_remote_code), which popi does not run; take a model without"
    if "safetensors" in str(error) and isinstance(error, OSError):
        return (
            "it has no model.safetensors, the only format of weights that popi loads: reading a pickle "
            "(pytorch_model.bin) can run code; convert it, or take a model that has one"
        )
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
