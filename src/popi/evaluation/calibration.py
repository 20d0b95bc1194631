"""Calibration of the probabilities that a generator gives to users' choices. Pure functions of margins.

Under the objective's model a user prefers y⁺ to y⁻ with probability p = σ(β·h), h the margin (docs/method.md). The
order within a pair is arbitrary, so nothing here depends on it: the prediction is the more probable response, with
*confidence* c = max(p, 1 − p) = σ(β·|h|). It is right if h > 0 and half right if h = 0.

    expected calibration error = Σ_b n_b/N · |accuracy_b − confidence_b|       (Guo et al. 2017, arXiv 1706.04599)
    Brier score = mean (1 − p)²,     log loss = mean −log p

The bins b have equal width over [½, 1]; a confidence on an edge falls into the upper bin. Guessing (p = ½ everywhere)
has a Brier score of ¼ and a log loss of log 2.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import t as student_t

from popi.evaluation.metrics import CONFIDENCE, Estimate, clustered_mean, outcomes

BINS = 10


@dataclass(frozen=True)
class Bin:
    """One row of a reliability table.

    Attributes:
        low, high: the bin's range of confidences: [low, high), or [low, high] for the last bin.
        pairs: number of pairs in the bin.
        confidence: their mean confidence; None without pairs.
        accuracy: the share that was right, with an interval clustered by user.
    """

    low: float
    high: float
    pairs: int
    confidence: float | None
    accuracy: Estimate

    def as_dict(self) -> dict[str, Any]:
        """The form of metrics.json."""
        return {
            "low": self.low,
            "high": self.high,
            "pairs": self.pairs,
            "confidence": self.confidence,
            "accuracy": self.accuracy.as_dict(),
        }


def reliability_table(margins: Sequence[float], users: Sequence[Hashable], beta: float, bins: int = BINS) -> list[Bin]:
    """Confidence against accuracy per bin, from ½ up; includes empty bins.

    Args:
        margins: (N,) h of each target pair, in nats.
        users: (N,) the user of each pair.
        beta: β.
        bins: number of bins of equal width.

    Raises:
        ValueError: lengths differ, β is not positive, or `bins` is below 1.
    """
    confidence, right, place, user = _binned(margins, users, beta, bins)
    edges = np.linspace(0.5, 1.0, bins + 1)
    table = []
    for b in range(bins):
        inside = place == b
        n = int(inside.sum())
        accuracy = clustered_mean(right[inside], user[inside].tolist(), (0.0, 1.0)) if n else Estimate(None)
        mean = float(confidence[inside].mean()) if n else None
        table.append(Bin(float(edges[b]), float(edges[b + 1]), n, mean, accuracy))
    return table


def expected_calibration_error(
    margins: Sequence[float], users: Sequence[Hashable], beta: float, bins: int = BINS
) -> Estimate:
    """Expected calibration error (formula in the module docstring), with a jackknife interval over users.

    Its variance is (G−1)/G · Σ_u (e_u − ē)², e_u the error without user u (Efron & Stein 1981), with a t quantile of
    G−1 degrees of freedom. Absolute values don't cancel, so chance alone inflates the error on few pairs: compare
    methods only on the same pairs and bins.

    Args:
        margins, users, beta, bins: as in `reliability_table`.

    Raises:
        ValueError: lengths differ, β is not positive, or `bins` is below 1.
    """
    confidence, right, place, user = _binned(margins, users, beta, bins)
    if not len(right):
        return Estimate(None)
    groups = int(user.max()) + 1
    gaps, counts = np.zeros((groups, bins)), np.zeros(groups)
    np.add.at(gaps, (user, place), right - confidence)
    np.add.at(counts, user, 1)
    total = gaps.sum(0)
    value = float(np.abs(total).sum() / counts.sum())
    if groups < 2:
        return Estimate(value)
    without = np.abs(total - gaps).sum(1) / (counts.sum() - counts)  # (G,)
    variance = (groups - 1) / groups * float(np.sum((without - without.mean()) ** 2))
    reach = float(student_t.ppf((1 + CONFIDENCE) / 2, groups - 1)) * math.sqrt(variance)
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach))


def brier_score(margins: Sequence[float], users: Sequence[Hashable], beta: float) -> Estimate:
    """Mean of (1 − σ(β·h))², with an interval clustered by user; 0 is best.

    Args:
        margins, users, beta: as in `reliability_table`.
    """
    return clustered_mean(expit(-_scaled(margins, beta)) ** 2, users, (0.0, math.inf))


def log_loss(margins: Sequence[float], users: Sequence[Hashable], beta: float) -> Estimate:
    """Mean of −log σ(β·h) in nats, with an interval clustered by user; 0 is best. Equals −β times the summary reward.

    Args:
        margins, users, beta: as in `reliability_table`.
    """
    return clustered_mean(np.logaddexp(0, -_scaled(margins, beta)), users, (0.0, math.inf))


def _scaled(margins: Sequence[float], beta: float) -> np.ndarray:
    if not beta > 0:
        raise ValueError(f"beta must be positive; got {beta}")
    return beta * np.asarray(margins, dtype=float)


def _binned(
    margins: Sequence[float], users: Sequence[Hashable], beta: float, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N,) each: confidences, correctness, bin indices, user indices."""
    if len(margins) != len(users):
        raise ValueError(f"need one user per margin: got {len(margins)} margins and {len(users)} users")
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    confidence = expit(np.abs(_scaled(margins, beta)))
    place = np.minimum((confidence - 0.5) * 2 * bins, bins - 1).astype(int)
    index = {user: i for i, user in enumerate(dict.fromkeys(users))}
    return confidence, np.array(outcomes(margins)), place, np.array([index[user] for user in users], dtype=int)
