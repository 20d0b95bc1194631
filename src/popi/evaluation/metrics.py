"""Metrics, as pure functions of numbers: no models, no files.

Rows of one user share that user's signals and summary, so they are not independent. Every interval here is
clustered by user: a mean over rows is the ratio Σ_u a_u / Σ_u b_u of per-user sums (b_u: the user's row count), with
variance

    G/(G−1) · Σ_u (a_u − r·b_u)² / (Σ_u b_u)²,     r = Σ a_u / Σ b_u,  G users

and a t quantile with G−1 degrees of freedom. This is the linearised ratio estimator of cluster sampling (Cochran,
*Sampling Techniques*, 3rd ed., §6.3 and §9A), which for a mean is the cluster-robust "sandwich" (Liang & Zeger
1986) with the G/(G−1) correction and t(G−1) of Cameron & Miller 2015, §VI. Miller 2024 (arXiv 2411.00640) argues
for it in evaluations of language models.
"""

import math
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, clustered by user.

    `low` and `high` are None if there is no interval: a single user has no spread between users. `value` is None if
    nothing was counted (such as precision when no summary names anything).
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """The form of metrics.json."""
        return {"value": self.value, "low": self.low, "high": self.high}


def clustered_ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Σ numerators / Σ denominators with its interval; one entry per user (formula in the module docstring).

    Args:
        numerators: (G,) per-user sums a_u.
        denominators: (G,) per-user sums b_u ≥ 0. A user with b_u = 0 and a_u = 0 adds nothing but still counts
            towards the number of users.
        bounds: the interval is clipped to these; pass (0, 1) for shares.

    A share of exactly 0 or 1 has no spread to estimate from. Its open end is then the exact binomial bound with one
    trial per user, 0.025^(1/G), which is wide because a user's rows may not be independent.
    """
    a, b = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"numerators and denominators must have the same length, got shapes {a.shape} and {b.shape}")
    total = b.sum()
    if total == 0:
        return Estimate(None)
    ratio = float(a.sum() / total)
    users = len(a)
    if users < 2:
        return Estimate(ratio)
    if bounds == (0.0, 1.0) and ratio in bounds:
        counted = int((b > 0).sum())
        slack = 1 - ((1 - CONFIDENCE) / 2) ** (1 / counted)
        return Estimate(ratio, max(0.0, ratio - slack), min(1.0, ratio + slack))
    variance = users / (users - 1) * float(np.sum((a - ratio * b) ** 2)) / total**2
    reach = float(student_t.ppf((1 + CONFIDENCE) / 2, users - 1)) * math.sqrt(variance)
    return Estimate(ratio, max(bounds[0], ratio - reach), min(bounds[1], ratio + reach))


def clustered_mean(
    values: Sequence[float] | np.ndarray,
    users: Sequence[Hashable],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Mean over rows (every row weighs the same) with an interval clustered by user.

    Args:
        values: (N,) one number per row.
        users: (N,) the user of each row.
        bounds: see `clustered_ratio`.
    """
    if len(values) != len(users):
        raise ValueError(f"need one user per value: got {len(values)} values and {len(users)} users")
    index = {user: i for i, user in enumerate(dict.fromkeys(users))}
    rows = np.array([index[user] for user in users], dtype=int)
    sums = np.bincount(rows, weights=np.asarray(values, dtype=float), minlength=len(index))
    return clustered_ratio(sums, np.bincount(rows, minlength=len(index)), bounds)


def reward_accuracy(margins: Sequence[float], users: Sequence[Hashable]) -> Estimate:
    """Share of target pairs with a positive margin; a margin of exactly 0 counts half.

    An untrained generator without a summary has a margin of exactly 0: it favours neither response.
    """
    return clustered_mean(outcomes(margins), users, bounds=(0.0, 1.0))


def outcomes(margins: Sequence[float]) -> list[float]:
    """What each margin adds to reward accuracy: 1 where positive, ½ where exactly 0, else 0."""
    return [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]


def paired_difference(
    values: Sequence[float],
    others: Sequence[float],
    users: Sequence[Hashable],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Mean of value − other over the same rows, with an interval clustered by user.

    Two methods find the same pairs easy or hard, so the interval of their paired difference is narrower than their
    separate intervals suggest. For reward accuracy pass `outcomes` of both methods' margins and bounds (-1, 1).

    Args:
        values: (N,) of one method.
        others: (N,) of the other method, row by row on the same pairs.
        users: (N,) the user of each row.
        bounds: the interval is clipped to these.
    """
    if len(values) != len(others):
        raise ValueError(f"both methods must have values on the same pairs: got {len(values)} and {len(others)}")
    return clustered_mean(np.asarray(values, dtype=float) - np.asarray(others, dtype=float), users, bounds)


def response_length(responses: Sequence[str], users: Sequence[Hashable]) -> Estimate:
    """Mean length in characters, as alpaca_eval counts it, with an interval clustered by user."""
    return clustered_mean([len(response) for response in responses], users, (0.0, math.inf))


def prompt_cost(tokens: Sequence[float], price: float, users: Sequence[Hashable]) -> Estimate:
    """Mean cost of one prompt, with an interval clustered by user, in the currency of the price.

    Args:
        tokens: (N,) tokens of each prompt. Pass only the context overhead to get the cost of personalisation.
        price: per million input tokens.
        users: (N,) the user of each prompt.

    Raises:
        ValueError: the price is negative or not finite.
    """
    if not 0 <= price < math.inf:
        raise ValueError(f"the price per million tokens must be finite and at least 0; got {price}")
    return clustered_mean(np.asarray(tokens, dtype=float) * price / 1e6, users, (0.0, math.inf))


def attribute_scores(
    named: Sequence[AbstractSet[Hashable]], preferred: Sequence[AbstractSet[Hashable]]
) -> tuple[Estimate, Estimate]:
    """Precision and recall of the attributes that summaries name, against the attributes the users care about.

    Micro-averaged: every named (or preferred) attribute has the same weight, regardless of the user. A summary that
    names nothing (such as an empty one) makes no claim: it does not count for precision, and for recall all of that
    user's attributes count as missed. If no summary names anything, precision is undefined and its value is None.

    Args:
        named: (G,) the (attribute, value) pairs named by each user's summary.
        preferred: (G,) the pairs that each user cares about.
    """
    if len(named) != len(preferred):
        raise ValueError(f"need one set per user: got {len(named)} named and {len(preferred)} preferred")
    hits = [len(claimed & true) for claimed, true in zip(named, preferred, strict=True)]
    share = (0.0, 1.0)
    precision = clustered_ratio(hits, [len(claimed) for claimed in named], share)
    return precision, clustered_ratio(hits, [len(true) for true in preferred], share)


def gain_kept(other: float, own: float, floor: float = 0.5) -> float | None:
    """Share of the gain over no personalisation that another generator retains: (other − floor) / (own − floor).

    `floor` is the reward accuracy of an untrained generator without a summary, one half by definition. None if there
    was no gain.
    """
    return (other - floor) / (own - floor) if own > floor else None
