"""Two computations of the same numbers, compared on whatever CPU: what rounding may change, and nothing more.

Which kernel multiplies depends on the CPU, on the shapes and on the number of threads. Each adds up in another order,
and rounds otherwise; a network amplifies that from layer to layer. By how much is a property of the network and not of
the precision: the error of a comparison, in units of the precision's epsilon, is about the same in float64 and in
float32. So both are bounded by the same number of epsilons, relative to the largest number of the tensor: sums that
cancel leave small numbers with the errors of large ones.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

CASTS = {Tensor: ("to",), torch.nn.functional: ("softmax",), torch: ("tensor", "zeros", "ones", "full")}
"""What libraries ask for float32 by."""
ROUNDINGS = 2**14
"""Epsilons that two computations may differ by: 4e-12 in float64, 2e-3 in float32."""


def assert_exact(found: Any, expected: Any, of: float | None = None) -> None:
    """Tensors, or mappings and sequences of them, are equal but for roundings.

    Args:
        found, expected: of the same structure, shapes and types.
        of: the largest number that went into the computation, where `expected` is what is left of larger ones.
    """
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for name in expected:
            _assert_close(found[name], expected[name], of, str(name))
    elif isinstance(expected, Tensor):
        _assert_close(found, expected, of, "")
    else:
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            _assert_close(one, other, of, f"[{i}]")


def _assert_close(found: Tensor, expected: Tensor, of: float | None, name: str) -> None:
    assert expected.dtype == torch.get_default_dtype(), "made before `precision`, which must be the first fixture"
    largest = of or (float(expected.detach().abs().max()) if expected.numel() else 0.0)
    assert_close(found, expected, atol=_allowed(largest), rtol=0, msg=lambda told: f"{name}: {told}")


def nearly(expected: Tensor | float, of: float | None = None) -> Any:
    """What a plain number is compared with, as `assert_exact` compares tensors."""
    number = float(expected.detach() if isinstance(expected, Tensor) else expected)
    return pytest.approx(number, rel=0, abs=_allowed(of or abs(number)))


def _allowed(largest: float) -> float:
    return ROUNDINGS * torch.finfo(torch.get_default_dtype()).eps * largest


@contextmanager
def in_precision(name: str) -> Iterator[torch.dtype]:
    """Within it, weights that are made or loaded are float64 or float32, whichever is named.

    float64 stays float64 where a library casts to float32 by name, as transformers' norms do. popi's own casts stay as
    they are: one to float32 would break the bounds of float64.
    """
    if name == "float32":
        yield torch.float32
        return

    def keeping(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if any(one is torch.float32 for one in (*args, *named.values())) and _called_by_a_library():
                args = tuple(torch.float64 if one is torch.float32 else one for one in args)
                named = {name: torch.float64 if one is torch.float32 else one for name, one in named.items()}
            return function(*args, **named)

        return call

    with torch.device("meta"):  # the first time, torch notes by which functions tensors are made: not by ours
        torch.empty(0)
    to_float32 = Tensor.float
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", lambda x: x.double() if _called_by_a_library() else to_float32(x))
        for owner, names in CASTS.items():
            for one in names:
                patch.setattr(owner, one, keeping(getattr(owner, one)))
        patch.setattr("popi.models.local.model.dtype_of", lambda *_: torch.float64)
        torch.set_default_dtype(torch.float64)
        try:
            yield torch.float64
        finally:
            torch.set_default_dtype(torch.float32)


def _called_by_a_library() -> bool:
    """Whether the innermost code outside torch is of a library."""
    frame: Any = sys._getframe(2)
    while (name := frame.f_globals["__name__"].partition(".")[0]) == "torch":
        frame = frame.f_back
    return name in ("transformers", "trl", "peft")
