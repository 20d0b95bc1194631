"""Linear maps of a few tokens in bfloat16, as in decoding: torch against `popi.engine.narrow`.

    python benchmarks/narrow.py

Weights are read from memory: enough matrices of a shape take turns that no cache holds them. Figures are GB of weights
per second, medians of 9 turns.
"""

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import linear

from popi.engine.narrow import FEW, narrow_linear

SHAPES = ((768, 768), (2048, 768), (768, 2048), (16384, 768))
"""Out, in: the matrices of `llama-100m` (benchmarks/bench/cases.py)."""
BYTES = 4 * 10**8


def speed(compute: Callable[[torch.nn.Linear], object], modules: list[torch.nn.Linear]) -> float:
    """GB of weights per second."""
    taken = []
    for _ in range(9):
        start = time.perf_counter()
        for module in modules:
            compute(module)
        taken.append(time.perf_counter() - start)
    return 2 * sum(module.weight.numel() for module in modules) / statistics.median(taken) / 1e9


def main() -> None:
    table = Table("out × in", "tokens", "torch, GB/s", "narrow, GB/s", "times")
    for out, width in SHAPES:
        modules = [
            torch.nn.Linear(width, out, bias=False).to(torch.bfloat16) for _ in range(BYTES // (2 * out * width))
        ]
        for tokens in (2, 4, 8, 16, FEW):
            x = torch.randn(tokens, width).to(torch.bfloat16)
            with torch.inference_mode():
                plain = speed(lambda module, x=x: linear(x, module.weight), modules)  # type: ignore[misc]
                narrow = speed(lambda module, x=x: narrow_linear(module, x), modules)  # type: ignore[misc]
            figures = (f"{plain:.1f}", f"{narrow:.1f}", f"{narrow / plain:.2f}")
            table.add_row(f"{out} × {width}", str(tokens), *figures)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
