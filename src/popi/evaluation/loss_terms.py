"""The loss's two terms: the generator's error, and what it was not told. Pure functions of numbers.

Let c be the user's choice in a target pair, p_θ = σ(β·h) the probability that a method's generator gives it
(docs/method.md), and k what the method tells its generator about the user: nothing, the signals or a summary z. With
P(c | k), the best prediction that k and the pair allow, the loss is

    E[−log p_θ(c)]  =  E[log P(c | k) − log p_θ(c)]  +  E[−log P(c | k)]
                       generator error                 left unsaid

The first term is the mean Kullback-Leibler divergence KL(P ‖ p_θ) ≥ 0, the second the conditional entropy
H(c | k, pair): for a summary, how much it leaves unsaid about the preference (arXiv 2510.17881 v3). Both are in nats
per choice: β times the method's loss.

`split_loss` accepts any P: the nano world's exact one (best_predictions.py) or `fitted_predictions`. The loss of any
stand-in for P is, on average, at least the entropy. So a worse predictor makes *left unsaid* too large and *generator
error* too small by the same amount; a negative error means that the predictor is worse than the generator itself.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from popi.evaluation.metrics import Estimate, clustered_mean

FOLDS = 5
PENALTY = 0.5
"""Weight of ½·|w|² against the *sum* of the pairs' losses: about the influence of one uncertain pair."""
_NEWTON_STEPS = 50


@dataclass(frozen=True)
class LossTerms:
    """loss = generator_error + left_unsaid, in nats per choice, each with an interval clustered by user."""

    loss: Estimate
    generator_error: Estimate
    left_unsaid: Estimate

    def as_dict(self) -> dict[str, dict[str, float | None]]:
        """The form of metrics.json."""
        return {
            "loss": self.loss.as_dict(),
            "generator_error": self.generator_error.as_dict(),
            "left_unsaid": self.left_unsaid.as_dict(),
        }


def split_loss(
    margins: Sequence[float], beta: float, best: Sequence[float] | np.ndarray, users: Sequence[Hashable]
) -> LossTerms:
    """The loss −log σ(β·h) and its two terms (formula in the module docstring).

    Args:
        margins: (N,) h of each target pair, in nats.
        beta: β.
        best: (N,) the best predictor's probability of the user's choice, above 0.
        users: (N,) the user of each pair.

    Raises:
        ValueError: lengths differ, β is not positive, or a probability is not in (0, 1].
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive; got {beta}")
    if not len(margins) == len(best) == len(users):
        counts = f"{len(margins)} margins, {len(best)} probabilities, {len(users)} users"
        raise ValueError(f"need one margin, probability and user per pair: got {counts}")
    p = np.asarray(best, dtype=float)
    if not ((p > 0) & (p <= 1)).all():
        raise ValueError(f"the best predictor's probabilities must lie in (0, 1]; got {p.min()} to {p.max()}")
    loss = np.logaddexp(0, -beta * np.asarray(margins, dtype=float))
    unsaid = -np.log(p)
    return LossTerms(
        clustered_mean(loss, users), clustered_mean(loss - unsaid, users), clustered_mean(np.abs(unsaid), users)
    )


def fitted_predictions(
    evidence: Sequence[Sequence[float]] | np.ndarray, users: Sequence[Hashable], folds: int = FOLDS
) -> np.ndarray:
    """(N,) σ(w·e): a stand-in for P(c | k) if the true preferences are unknown, w fitted on the other folds' users.

    Args:
        evidence: (N, K) numbers in favour of the chosen response that change sign when the two responses swap: the
            margin h, the reference's log-ratio, a difference in length. A constant can't be among them.
        users: (N,) the user of each pair. All of a user's pairs are in one fold; folds are assigned in order of
            appearance.
        folds: number of folds; at most one per user.

    It predicts the choice from this evidence, not from the whole summary: an upper bound on *left unsaid*, and less a
    property of the summary than of what this generator makes of it. A single user gives ½ everywhere.
    """
    e = np.asarray(evidence, dtype=float)
    if e.ndim != 2 or len(e) != len(users):
        raise ValueError(f"need one row of evidence per pair: got shape {e.shape} for {len(users)} pairs")
    index = {user: i for i, user in enumerate(dict.fromkeys(users))}
    place = np.array([index[user] for user in users], dtype=int) % max(1, min(folds, len(index)))
    result = np.full(len(e), 0.5)
    if len(index) < 2:
        return result
    for fold in np.unique(place):
        others = e[place != fold]
        scale = np.sqrt((others**2).mean(0))
        scale[scale == 0] = 1.0
        weights = _logistic(others / scale)
        result[place == fold] = expit(e[place == fold] / scale @ weights)
    return np.clip(result, 1e-12, 1.0)


def _logistic(e: np.ndarray) -> np.ndarray:
    """The w that minimises Σ −log σ(w·e) + PENALTY·½·|w|², by Newton's method with step halving."""

    def objective(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -(e @ w)).sum() + PENALTY * (w @ w) / 2)

    w = np.zeros(e.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = expit(-(e @ w))
        gradient = -(e.T @ p) + PENALTY * w
        hessian = (e.T * (p * (1 - p))) @ e + PENALTY * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        size, before = 1.0, objective(w)
        while objective(w - size * step) > before and size > 1e-6:
            size /= 2
        w = w - size * step
        if np.abs(size * step).max() < 1e-10:
            break
    return w
