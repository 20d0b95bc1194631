"""Linear maps of a few tokens on a CPU, as decoding has them: bound by how fast the weights are read.

As the left factor of the product they are read as they lie, faster than by torch's own (`benchmarks/narrow.py`). It is
the same sum of products, added up in another order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

FEW = 32
"""Most tokens for which it is faster."""


def narrow_linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
    """What the module does: (…, in) to (…, out)."""
    tokens = x.numel() // x.shape[-1]
    if not 1 < tokens <= FEW:
        return linear(x, module.weight, module.bias)
    found = torch.mm(module.weight, x.reshape(tokens, -1).t()).t().contiguous()  # (tokens, out)
    if module.bias is not None:
        found += module.bias
    return found.reshape(*x.shape[:-1], -1)


@contextmanager
def narrow_linears(model: Any) -> Iterator[None]:
    """Within it a model's plain linear maps take `narrow_linear`, where that is faster: bfloat16 on a CPU with AMX.

    Without gradients. Of several threads on one model the others may get torch's own, or this.
    """
    changed = []
    if torch.cpu._is_amx_tile_supported():
        changed = [
            module
            for module in model.modules()
            if type(module) is torch.nn.Linear
            and "forward" not in vars(module)
            and module.weight.dtype == torch.bfloat16
            and module.weight.device.type == "cpu"
        ]
    for module in changed:
        module.forward = partial(narrow_linear, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)
