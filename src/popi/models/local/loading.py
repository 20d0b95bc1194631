"""Locate a model by name and load its weights, on a chosen device and in a chosen dtype."""

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
from popi.models.local.gguf import fix_tokenizer, need_gguf, packaged_smollm2, unpacked
from popi.models.spec import SMOLLM2, SMOLLM2_ID, model_path

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BIG = 50_000_000
"""Number of parameters from which bfloat16 is faster on a CPU with bfloat16 units; below it, float32 costs little."""


@contextmanager
def quiet() -> Iterator[None]:
    """Disable transformers' progress bars, which would interfere with popi's own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True)
class Source:
    """A model's location for transformers.

    Attributes:
        path: a folder or a hub id.
        gguf: the name of a GGUF file there; None for a model in transformers' format.
    """

    path: str
    gguf: str | None = None

    def arguments(self) -> dict[str, Any]:
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def locate(name: str | Path) -> Source:
    """Locate a model by name.

    The name may be `nano`; `smollm2` (from its Python package if installed, else from the hub); a folder; a GGUF file;
    a hub id (owner/name), or a GGUF file in a hub repository (owner/name/file.gguf).

    Raises:
        ModelError: if the name is none of these.
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
            raise ModelError(f"{name}: has {len(packed)} GGUF files; choose one: {', '.join(f.name for f in packed)}")
        raise ModelError(f"{name}: no model in this folder (it has neither config.json nor adapter_config.json)")
    if path.exists():
        if path.suffix.lower() == ".gguf":
            return _gguf(path)
        raise ModelError(f"{name}: is a file; pass the folder of a Hugging Face model, or a .gguf file")
    on_hub = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)/(\w[\w.-]*\.gguf)", str(path))
    if on_hub:
        need_gguf(text)
        return Source(on_hub[1], on_hub[2])
    if text.endswith(".gguf") or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(path)):
        raise ModelError(f"{text or repr(text)}: no such folder, and not a valid hub id (owner/name)")
    return Source(str(path))


def _gguf(file: Path) -> Source:
    need_gguf(str(file))
    return Source(str(file.parent), file.name)


def _on_hub(name: str) -> bool:
    """Whether the model is available from the hub or its local cache."""
    try:
        AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ModelError: if it can't be read, or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: can't be read ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: must hold a JSON object; got {type(content).__name__}")
    return content


def device_of(name: str) -> torch.device:
    """The device with this name; `auto` is the GPU if there is one.

    Raises:
        ModelError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # an unknown name, or no such device
        raise ModelError(f"device {name!r} is not available ({first_line(error)}); try auto or cpu") from None


def refuse_type(name: str, device: torch.device) -> None:
    """Raise ModelError for a dtype that is unsuitable for the device."""
    if name == "float16" and device.type == "cpu":
        raise ModelError("dtype float16 on a CPU is slow and overflows; use bfloat16, float32 or auto")


def dtype_of(name: str, device: torch.device, source: Source, nano: bool) -> torch.dtype:
    """The weights' dtype; `auto` is bfloat16 where that is native, and float32 for the nano model.

    Raises:
        ModelError: for float16 on a CPU.
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
    """Whether `auto` chooses bfloat16 on this machine's CPU for a model of this size."""
    capabilities = torch.cpu.get_capabilities()
    return parameters >= BIG and bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _parameters(source: Source) -> int:
    """A model's number of parameters, from its config alone; 0 if unknown.

    For a GGUF file, which is slow to read, an upper bound that assumes four bits per weight.
    """
    try:
        if source.gguf is not None:
            return (Path(source.path) / source.gguf).stat().st_size * 2
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=False, **source.arguments())
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(config).num_parameters())
    except Exception:  # loading the model will report what is wrong with the config
        return 0


def load_tokenizer(source: Source, *, local_files_only: bool = False) -> Any:
    """Load a model's tokenizer; transformers' errors pass through."""
    tokenizer = AutoTokenizer.from_pretrained(
        source.path, local_files_only=local_files_only, trust_remote_code=False, **source.arguments()
    )
    if source.gguf is not None and os.path.isdir(source.path):
        fix_tokenizer(tokenizer, Path(source.path) / source.gguf)
    return tokenizer


def load_weights(
    source: Source, dtype: torch.dtype, attention: str = "auto", quantization: Mapping[str, Any] | None = None
) -> Any:
    """Load a causal LM: with plain weights on the CPU, or quantised (`popi.models.local.quantized`) on its device.
    transformers' errors pass through.

    With `auto`, transformers chooses the attention (sdpa, or eager as for Gemma 2); `popi.models.local.probe` checks
    how it handles masks.
    """
    model: Any
    info: Any
    load: Any = AutoModelForCausalLM.from_pretrained
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "output_loading_info": True}
    options |= quantization or {}
    if attention != "auto":
        options["attn_implementation"] = attention
    if source.gguf is None:
        # Other formats are pickles, and loading one can run code.
        model, info = load(source.path, **options, use_safetensors=True)
    else:
        with redirect_stderr(io.StringIO()):  # the progress bar for unpacking can't be switched off
            model, info = load(source.path, **options, gguf_file=source.gguf, quantization_config=unpacked())
            model = model.to(dtype)
    refuse_missing(info["missing_keys"], info["unexpected_keys"])
    for module in model.modules():  # no dropout: the forward passes for scoring and for training have to agree
        if isinstance(getattr(module, "attention_dropout", None), float):  # in BLOOM it is a module
            module.attention_dropout = 0.0
    return model


def refuse_missing(missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse a file with missing weights, which transformers would silently initialise at random. Tied weights don't
    count as missing.

    Raises:
        ModelError: if weights are missing.
    """
    if not (names := sorted(missing)):
        return
    others = sorted(unexpected)
    extra = f"; the file has weights that the model lacks: {_some(others)}" if others else ""
    raise ModelError(
        f"the file lacks {len(names)} of its weights: {_some(names)}{extra}; they would be random. Check that the file "
        "is complete and that its names match the architecture in config.json"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


@contextmanager
def whole_adapters() -> Iterator[None]:
    """Turn PEFT's warning about missing adapter weights, which it would initialise, into an error.

    Raises:
        ModelError: if weights of an adapter are missing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
        try:
            yield
        except UserWarning as error:
            raise ModelError(f"the adapter's file lacks weights, which would be random: {str(error)[:200]}") from None


def warn_of_another_base(
    name: str, trained_over: str | None, base: Source, quantized: str = "none", quantization: str = "none"
) -> None:
    """Warn if an adapter's base has other weights than in training: unpacked and quantised weights are not the original
    ones.
    """
    before, now = _kind_of_weights(trained_over, quantized), _kind_of_weights(base.gguf, quantization)
    if before != now:
        warnings.warn(f"{name}: this adapter was trained over {before} but is used over {now}", stacklevel=3)


def _kind_of_weights(gguf: str | None, quantization: str) -> str:
    if gguf:
        return f"the unpacked {gguf}"
    return "unquantised weights" if quantization == "none" else f"{quantization.replace('bit', '-bit')} weights"


def first_line(error: BaseException) -> str:
    """The first non-blank line of an error's message."""
    if "trust_remote_code" in str(error):
        return "it needs custom code (trust_remote_code), which popi does not run; use a model without it"
    if "safetensors" in str(error) and isinstance(error, OSError):
        return (
            "it has no model.safetensors, the only format of weights that popi loads, since loading a pickle "
            "(pytorch_model.bin) can run code; convert it, or use a model that has one"
        )
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
