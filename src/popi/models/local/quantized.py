"""Bases with 4 or 8 bits per weight (QLoRA, Dettmers et al., arXiv 2305.14314), using bitsandbytes.

Linear layers between the embeddings and the LM head are packed during loading and unpacked layer by layer in each
forward pass. Embeddings, norms and the LM head, which popi accesses directly, are not quantised. Packed weights can't
be trained, but adapters on top of them can. Without its adapters, the base is the reference model.
"""

from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from popi.errors import ModelError

Quantization = Literal["none", "8bit", "4bit"]


def refuse_quantization(quantization: str, device: torch.device, gguf: str | None = None) -> None:
    """Raise ModelError if a base can't be quantised: unknown kind, no GPU, no bitsandbytes, or a GGUF file."""
    if quantization == "none":
        return
    setting = f"model.quantization = {quantization!r}"
    if quantization not in get_args(Quantization):
        raise ModelError(f"{setting}: allowed are {', '.join(map(repr, get_args(Quantization)))}")
    if device.type != "cuda":
        raise ModelError(
            f"{setting} needs a GPU, but the device is {device.type}: set it to 'none', or set model.device"
        )
    if find_spec("bitsandbytes") is None:
        raise ModelError(f"{setting}: bitsandbytes is not installed; pip install 'popi[qlora]', or set it to 'none'")
    if gguf is not None:
        raise ModelError(
            f"{setting} is incompatible with {gguf}, whose weights are unpacked from a GGUF file; set model.base to "
            "the folder or hub id of the original weights, or set it to 'none'"
        )


def quantized(quantization: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for quantised weights: how to pack them, and the device, since they can't be
    moved.

    4bit: NF4 with double quantisation, as in QLoRA; computed in `dtype`. 8bit: LLM.int8 (arXiv 2208.07339) with a scale
    per token and without outlier columns. Outliers are detected over all tokens of a forward pass, which would make a
    text's log-probs depend on the texts around it.
    """
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": device}}
