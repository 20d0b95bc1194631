"""Bases of 4 or 8 bits a weight (QLoRA, Dettmers et al., arXiv 2305.14314), through bitsandbytes.

Linear layers between embeddings and LM head are packed when the weights are loaded, and unpacked layer by layer in each
forward; embeddings, norms and the LM head, which popi reads past the layers, keep their type. Packed weights can't be
trained: adapters over them can. Without its adapters the base is the reference model.
"""

from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from popi.errors import ModelError

Quantization = Literal["none", "8bit", "4bit"]


def refuse_quantization(quantization: str, device: torch.device, gguf: str | None = None) -> None:
    """Raise ModelError where a base can't be quantised: no such kind, no GPU, no bitsandbytes, or packed already."""
    if quantization == "none":
        return
    asked = f"model.quantization = {quantization!r}"
    if quantization not in get_args(Quantization):
        raise ModelError(f"{asked}: allowed are {', '.join(map(repr, get_args(Quantization)))}")
    if device.type != "cuda":
        raise ModelError(f"{asked} needs a GPU, and the device is {device.type}: set it to 'none', or model.device")
    if find_spec("bitsandbytes") is None:
        raise ModelError(f"{asked}: bitsandbytes is not installed (pip install 'popi[qlora]'), or set it to 'none'")
    if gguf is not None:
        raise ModelError(
            f"{asked} does not go with {gguf}, whose weights are unpacked from a GGUF file; name the folder or hub id "
            "of the original weights as model.base, or set it to 'none'"
        )


def quantized(quantization: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` takes besides: how to pack, and the device, since packed weights can't be moved.

    4bit: NF4 with double quantisation, as in QLoRA; computed in `dtype`. 8bit: LLM.int8 (arXiv 2208.07339), each token
    by a scale of its own and without the columns of outliers: these are looked for in all tokens of a forward, so that
    a text's log-probs would depend on what stands behind it and beside it.
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
