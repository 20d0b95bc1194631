"""Do the probabilities that a generator gives to users' choices come true? Pure functions of margins.

Under the objective's model a user prefers y⁺ to y⁻ with probability p = σ(β·h), h the margin (docs/method.md). Which
response of a pair is written first is arbitrary, and so nothing here depends on it: a prediction is the more probable
response with *confidence* c = max(p, 1 − p) = σ(β·|h|), right where h > 0, half right where h = 0.

    expected calibration error = Σ_b n_b/N · |accuracy_b − confidence_b|       (Guo et al. 2017, arXiv 1706.04599)
    Brier score = mean (1 − p)²,     log loss = mean −log p

The bins b are equally wide over [½, 1]; a confidence on an edge falls into the upper one. Guessing (p = ½ everywhere)
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
        low, high: the confidences that fall into it: [low, high), the last one [low, high].
        pairs: how many did.
        confidence: their mean; None without pairs.
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
    """Confidence against accuracy, bin by bin, from ½ up; empty bins included.

    Args:
        margins: (N,) h of each target pair, in nats.
        users: (N,) whose pair it is.
        beta: β.
        bins: how many, equally wide.

    Raises:
        ValueError: lengths differ, β is not positive, or there is no bin.
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
    """Expected calibration error (see the module's formula), with a jackknife interval that leaves out users.

    Its variance is (G−1)/G · Σ_u (e_u − ē)², e_u the error without user u (Efron & Stein 1981), with a t quantile of
    G−1 degrees of freedom. An absolute value is never below 0, so chance alone lifts the error of few pairs: compare
    methods on the same pairs and bins only.

    Args:
        margins, users, beta, bins: as `reliability_table` takes them.

    Raises:
        ValueError: lengths differ, β is not positive, or there is no bin.
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
        margins, users, beta: as `reliability_table` takes them.
    """
    return clustered_mean(expit(-_scaled(margins, beta)) ** 2, users, (0.0, math.inf))


def log_loss(margins: Sequence[float], users: Sequence[Hashable], beta: float) -> Estimate:
    """Mean of −log σ(β·h) in nats, with an interval clustered by user; 0 is best. It is −β times the summary reward.

    Args:
        margins, users, beta: as `reliability_table` takes them.
    """
    return clustered_mean(np.logaddexp(0, -_scaled(margins, beta)), users, (0.0, math.inf))


def _scaled(margins: Sequence[float], beta: float) -> np.ndarray:
    if not beta > 0:
        raise ValueError(f"beta must be positive; got {beta}")
    return beta * np.asarray(margins, dtype=float)


def _binned(
    margins: Sequence[float], users: Sequence[Hashable], beta: float, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N,) confidences, whether right, indices of bins, indices of users."""
    if len(margins) != len(users):
        raise ValueError(f"one user a margin: got {len(margins)} margins and {len(users)} users")
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    confidence = expit(np.abs(_scaled(margins, beta)))
    place = np.minimum((confidence - 0.5) * 2 * bins, bins - 1).astype(int)
    index = {user: i for i, user in enumerate(dict.fromkeys(users))}
    return confidence, np.array(outcomes(margins)), place, np.array([index[user] for user in users], dtype=int)
