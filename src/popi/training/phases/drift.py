"""What training a generator costs the responses that users prefer.

A loss of margins is content with both responses becoming less likely, as long as the rejected one does so faster
(arXiv 2404.04626, 2402.13228). Then the generator ranks pairs as users do, and writes something else. Two figures show
it, of a step's chosen responses y⁺ under their summaries z:

    drift = log π_θ(y⁺|x,z) − log π_ref(y⁺|x)      π_ref: the base on the plain prompt. Free, and logged every step; but
                                                   what a summary does to a response counts, too
    loss  = log π_ref(y⁺|x,z) − log π_θ(y⁺|x,z)    per token: the base reads the same summary, so training alone counts

The loss costs a forward of the base, and is measured in every `EVERY`-th step of the generator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from popi.engine.tree import TreeBatch, segment_logps
from popi.models.local.adapters import using

EVERY = 5
"""Steps of the generator between two measurements of the loss."""
WINDOW = 4
"""Measurements that are averaged before they are judged: one batch alone has too much noise."""
LOSS = "chosen_loss"


def chosen_tokens(trees: TreeBatch) -> Tensor:
    """(B,) tokens of each pair's chosen response, end-of-turn token included."""
    return torch.bincount(trees.segment, minlength=trees.n_segments).reshape(-1, 2)[:, 0]


def drift(chosen: Tensor, reference: Tensor, tokens: Tensor) -> dict[str, float]:
    """Mean drift in nats per response, and in nats per token over all tokens, as a step logs it.

    Args:
        chosen, reference: (B,) summed log-probs of the chosen responses under the generator, and of the base on the
            plain prompt.
        tokens: (B,) their lengths.
    """
    moved = (chosen.detach() - reference).sum()
    return {
        "chosen_drift": float(moved) / len(chosen),
        "chosen_drift_per_token": float(moved / tokens.sum()),
    }


def base_logps(base: Any, trees: TreeBatch) -> Tensor:
    """(B,) summed log-probs of the chosen responses of B pairs under the base, which reads the same prompts.

    Args:
        base: the untrained model; with adapters the one that they lie over.
        trees: tree rows of the pairs.
    """
    with torch.no_grad(), using(base, None):
        return segment_logps(base, trees).reshape(-1, 2)[:, 0]


def chosen_loss(chosen: Tensor, before: Tensor, tokens: Tensor) -> float:
    """What the chosen responses have lost, in nats per token; negative where they have gained.

    Args:
        chosen, before: (B,) summed log-probs under the generator, and under the untrained base on the same prompts.
        tokens: (B,) their lengths.
    """
    return float((before - chosen.detach()).sum() / tokens.sum())


def recent_loss(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean of a log's newest measurements; None where there are none yet."""
    newest = [row[LOSS] for row in history if LOSS in row][-WINDOW:]
    return sum(newest) / len(newest) if newest else None
