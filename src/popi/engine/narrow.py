"""Linear layers for a few tokens on a CPU, as in decoding, where reading the weights is the bottleneck.

With the weights as the left factor of the product they are read in memory order, which is faster than torch's own
linear (`benchmarks/narrow.py`). The sum of products is the same, added up in another order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

FEW = 32
"""Maximum tokens for which it is faster."""


def narrow_linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
    """The module's forward: (…, in) to (…, out)."""
    tokens = x.numel() // x.shape[-1]
    if not 1 < tokens <= FEW:
        return linear(x, module.weight, module.bias)
    result = torch.mm(module.weight, x.reshape(tokens, -1).t()).t().contiguous()  # (tokens, out)
    if module.bias is not None:
        result += module.bias
    return result.reshape(*x.shape[:-1], -1)


@contextmanager
def narrow_linears(model: Any) -> Iterator[None]:
    """A context in which a model's plain linear layers use `narrow_linear` where it is faster: bfloat16 with AMX.

    For use without gradients. Other threads that use the model may get either implementation.
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
