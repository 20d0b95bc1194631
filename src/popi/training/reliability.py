"""Reliability of the rewards by which the summaries of a group are compared: is there anything to reinforce?

The G summaries of a user are scored on the same T targets, a crossed design without replication. With X_st the reward
of summary s on target t, the analysis of variance within each group has

    MS_s   = T · Σ_s (X_s. − X..)² / (G−1)                                expectation  σ²_res + T·σ²_s
    MS_res = Σ_st (X_st − X_s. − X_.t + X..)² / ((G−1)·(T−1))             expectation  σ²_res

σ²_s is the true variance between summaries, σ²_res the noise that one target adds to a comparison of two (a target's
difficulty for all of them is not noise, since it cancels). The reliability of a mean over T targets is the share of
true differences in the variance that the advantages consist of,

    ρ(T) = σ²_s / (σ²_s + σ²_res / T)                                     at the T of the design: 1 − MS_res / MS_s

(C. Hoyt, "Test reliability estimated by analysis of variance", Psychometrika 6, 1941; ρ for other T is the formula of
Spearman and Brown, 1910; L. Cronbach et al., "The dependability of behavioral measurements", 1972, call it the
generalizability coefficient.) Groups are pooled: sums of squares over degrees of freedom, whatever their G and T.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import torch
from scipy.stats import t as student_t
from torch import Tensor

LOW = 0.3
"""Below this reliability more than two thirds of what is reinforced is noise, and a run prints a warning."""
CONFIDENCE = 0.95
CERTAIN = 50.0
"""The maximum log ratio of true variance to noise, which is a reliability of 1."""


@dataclass(frozen=True)
class Squares:
    """Sums of squares of groups with their degrees of freedom. Additive over groups.

    Attributes:
        samples, residual: SS_s and SS_res.
        df_samples, df_residual: Σ (G−1), Σ (G−1)(T−1).
        weight: Σ (G−1)·T, the coefficient of σ²_s in E[SS_s].
    """

    samples: float = 0.0
    residual: float = 0.0
    df_samples: int = 0
    df_residual: int = 0
    weight: int = 0

    @classmethod
    def of(cls, rewards: Tensor) -> "Squares":
        """From one group, (G, T); all zeros if it has a single summary or a single target."""
        group, targets = rewards.shape
        if group < 2 or targets < 2:
            return cls()
        x = rewards.double()
        means, own = x.mean(1, keepdim=True), x.mean(0, keepdim=True)
        residual = (x - means - own + x.mean()).square().sum()
        between = targets * (means - x.mean()).square().sum()
        return cls(float(between), float(residual), group - 1, (group - 1) * (targets - 1), (group - 1) * targets)

    def __add__(self, other: "Squares") -> "Squares":
        return Squares(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))

    def __sub__(self, other: "Squares") -> "Squares":
        return Squares(*(a - b for a, b in zip(_values(self), _values(other), strict=True)))

    @property
    def variances(self) -> tuple[float, float]:
        """Estimates of σ²_s, which may be negative, and of σ²_res."""
        noise = self.residual / self.df_residual
        return (self.samples - self.df_samples * noise) / self.weight, noise


def _values(squares: Squares) -> tuple[Any, ...]:
    return tuple(getattr(squares, name) for name in Squares.__dataclass_fields__)


@dataclass(frozen=True)
class Reliability:
    """The reliability of the rewards of a group's summaries, each a mean over `targets`.

    Attributes:
        value: ρ; 0 if noise alone would spread the rewards more.
        low, high: 95 % interval: jackknife over users on log(1 + T·σ²_s/σ²_res), Student's t. None for a single user.
        spread, noise: σ_s and σ_res, in nats of the reward.
        users, group, targets: size of the design, means if it varies; `targets` is the number per reward in training.
    """

    value: float
    low: float | None
    high: float | None
    spread: float
    noise: float
    users: int
    group: float
    targets: float

    @classmethod
    def of(cls, users: Sequence[Sequence[Tensor]], targets: float) -> "Reliability | None":
        """From the rewards of each user's summaries.

        Args:
            users: one or several groups of rewards, (G, T) each, per user; a user's groups are pooled.
            targets: number of targets that a reward is averaged over in training.

        Returns:
            None if no group has two summaries and two targets, so that nothing can be compared.
        """
        each = [sum(map(Squares.of, groups), Squares()) for groups in users]
        each = [squares for squares in each if squares.df_residual]
        if not each:
            return None
        whole = sum(each, Squares())
        between, noise = whole.variances
        ratio = _log_ratio(whole, targets)
        low = high = None
        if len(each) > 1:
            n = len(each)
            jackknife = torch.tensor([_log_ratio(whole - squares, targets) for squares in each], dtype=torch.float64)
            error = math.sqrt((n - 1) / n * float((jackknife - jackknife.mean()).square().sum()))
            reach = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
            low, high = _share(ratio - reach), _share(ratio + reach)
        rows = [rewards for groups in users for rewards in groups if Squares.of(rewards).df_residual]
        group = sum(len(rewards) for rewards in rows) / len(rows)
        return cls(
            _share(ratio), low, high, math.sqrt(max(between, 0.0)), math.sqrt(noise), len(each), group, float(targets)
        )

    def at(self, times: float) -> float:
        """The reliability with `times` as many targets (Spearman-Brown)."""
        return times * self.value / (1 + (times - 1) * self.value)

    def best_of(self, group: float) -> float:
        """True advantage over the mean, in nats, of the summary with the highest reward in a group: σ_s·√ρ times the
        expected maximum of that many normal variables (G. Blom, 1958)."""
        return self.spread * math.sqrt(self.value) * NormalDist().inv_cdf((group - 0.375) / (group + 0.25))

    def facts(self) -> dict[str, Any]:
        """The values for reliability.json."""
        return asdict(self) | {"with_twice_the_targets": self.at(2), "with_four_times_the_targets": self.at(4)}

    def line(self, subject: str) -> str:
        """One line for the terminal."""
        between = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        t = self.targets
        return (
            f"reliability of {subject} {self.value:.2f}{between} ({self.users} users x {self.group:.0f} samples, {t:g} "
            f"targets each); with {2 * t:g} targets {self.at(2):.2f}, with {4 * t:g} {self.at(4):.2f}"
        )


def _log_ratio(squares: Squares, targets: float) -> float:
    """log(1 + T·σ²_s/σ²_res): the log of the F ratio at the design's T, and −log(1 − ρ) at any T."""
    between, noise = squares.variances
    if noise <= 0:  # all targets agree
        return CERTAIN if between > 0 else 0.0
    return min(math.log(max(1 + targets * between / noise, 1e-9)), CERTAIN)


def _share(ratio: float) -> float:
    return min(max(1 - math.exp(-ratio), 0.0), 1.0) if ratio > -CERTAIN else 0.0


def advice(reliability: Reliability, group: int) -> list[str]:
    """The effect of a larger group, and a warning if there is little to reinforce."""
    larger = 2 * group
    best, best_of_larger = reliability.best_of(group), reliability.best_of(larger)
    lines = [
        f"a larger group would not change that; {larger} samples reduce the gradient's noise by 29 %, and the best of "
        f"them beats their mean by {best_of_larger:.2g} nats (with {group}: {best:.2g})"
    ]
    if reliability.value < LOW:
        lines.append(
            f"warning: below {LOW}, training would mostly reinforce the noise of single targets. Raise "
            "training.inference.targets_per_summary (users need as many targets), raise summary.temperature so that "
            "samples differ more, or start from a base whose summaries are more useful to the generator"
        )
    return lines
