"""How training a generator affects the likelihood of the responses that users prefer.

A loss on margins allows both responses to become less likely, as long as the rejected one does so faster (arXiv
2404.04626, 2402.13228). The generator then ranks pairs as users do, but writes something else. Two figures show this,
for a step's chosen responses y⁺ under their summaries z:

    drift = log π_θ(y⁺|x,z) − log π_ref(y⁺|x)      π_ref: the base on the plain prompt. Free, and logged every step, but
                                                   it includes the summary's effect on a response
    loss  = log π_ref(y⁺|x,z) − log π_θ(y⁺|x,z)    per token: the base reads the same summary, so only training counts

The loss costs a forward of the base and is measured in every `EVERY`-th step of the generator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from popi.engine.tree import TreeBatch, segment_logps
from popi.models.local.adapters import using
from popi.training.sharding import whole

EVERY = 5
"""Generator steps between measurements of the loss."""
WINDOW = 4
"""Measurements to average before judging them, since a single batch is too noisy."""
LOSS = "chosen_loss"


def chosen_tokens(trees: TreeBatch) -> Tensor:
    """(B,) number of tokens of each pair's chosen response, including the end-of-turn token."""
    return torch.bincount(trees.segment, minlength=trees.n_segments).reshape(-1, 2)[:, 0]


def drift(chosen: Tensor, reference: Tensor, tokens: Tensor) -> dict[str, float]:
    """Mean drift in nats per response, and in nats per token over all tokens, for a step's log.

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
        base: the untrained model, or the model below the adapters.
        trees: tree rows of the pairs.
    """
    with whole(base), torch.no_grad(), using(base, None):
        return segment_logps(base, trees).reshape(-1, 2)[:, 0]


def chosen_loss(chosen: Tensor, before: Tensor, tokens: Tensor) -> float:
    """Loss in the chosen responses' log-likelihood, in nats per token; negative for a gain.

    Args:
        chosen, before: (B,) summed log-probs under the generator, and under the untrained base on the same prompts.
        tokens: (B,) their lengths.
    """
    return float((before - chosen.detach()).sum() / tokens.sum())


def recent_loss(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean of a log's latest measurements; None if there are none yet."""
    newest = [row[LOSS] for row in history if LOSS in row][-WINDOW:]
    return sum(newest) / len(newest) if newest else None
