"""Sampling in several processes: each decodes its share of the prompts, with the random numbers of one process.

A batch of P·n branches uses the same random numbers in each decoding step, however it is divided: every process draws
those of the whole batch and uses the ones for its own branches. A process whose branches end early keeps drawing,
without using the numbers, until the longest branch of any process has ended. So samples depend only on the seed and not
on the number of processes, except for rounding, which decides a draw between two adjacent tokens.

Models with the plain fallback (`popi.engine.plain`) are sampled by transformers, which draws only for its own rows. For
them each process has its own random stream, so the samples depend on the number of processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from popi.engine.decoding import GREEDY, pick, skip
from popi.engine.plain import trees_hold
from popi.engine.roots import Roots
from popi.engine.tree import causal_lm
from popi.models.local.model import LocalModel
from popi.training.processes import Processes


class _Draws:
    """Chooses the tokens of branches `first` to `first` + rows of a batch of `of` branches."""

    def __init__(self, first: int, of: int, temperature: float, top_p: float) -> None:
        self.first, self.of, self.temperature, self.top_p = first, of, temperature, top_p
        self.steps = 0

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        self.steps = step + 1
        return pick(logits, self.temperature, self.top_p, (self.first, self.of))


def generate_share(
    processes: Processes,
    local: LocalModel,
    prompts: Sequence[Sequence[int]],
    first: int,
    of: int,
    *,
    n: int = 1,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    roots: Roots | None = None,
) -> list[list[list[int]]]:
    """`LocalModel.generate` of this process's prompts, numbers `first` and following `of` all that are decoded now."""

    def generate(**choice: _Draws) -> list[list[list[int]]]:
        if not prompts:
            return []
        limits = {"n": n, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        return local.generate(prompts, **limits, roots=roots, **choice)  # type: ignore[arg-type]

    if processes.alone or temperature < GREEDY:
        return generate()
    causal = causal_lm(local.model)
    holds = trees_hold(causal, max(map(len, prompts), default=0) + max_new_tokens)
    if not all(processes.gather(holds)):
        with processes.own_noise():
            return generate()
    draws = _Draws(first * n, of * n, temperature, top_p)
    drawn = generate(choose=draws)
    weight = causal.get_output_embeddings().weight  # type: ignore[operator]
    dtype = torch.promote_types(weight.dtype, torch.float32)
    for _ in range(draws.steps, max(processes.gather(draws.steps))):
        skip(of * n, weight.shape[0], dtype, weight.device)
    return drawn


def generate_together(
    processes: Processes, local: LocalModel, prompts: Sequence[Sequence[int]], **limits: float
) -> list[list[list[int]]]:
    """`LocalModel.generate`, divided among the processes; all get the continuations of all prompts."""
    own = processes.share(prompts)
    first = processes.rank * len(prompts) // processes.size
    parts = processes.gather(generate_share(processes, local, own, first, len(prompts), **limits))  # type: ignore[arg-type]
    return [samples for part in parts for samples in part]
