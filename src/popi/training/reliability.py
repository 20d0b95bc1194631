"""Is there anything to reinforce? How reliable the rewards are by which the summaries of a group are compared.

The G summaries of a user are scored on the same T targets, a crossed design without replication. With X_st the reward
of summary s on target t, an analysis of variance within each group has

    MS_s   = T · Σ_s (X_s. − X..)² / (G−1)                                expectation  σ²_res + T·σ²_s
    MS_res = Σ_st (X_st − X_s. − X_.t + X..)² / ((G−1)·(T−1))             expectation  σ²_res

σ²_s is the true spread of the summaries, σ²_res the noise that one target adds to a comparison of two (how hard a
target is for all of them is no noise: it cancels). The reliability of a mean over T targets is the share of the truth
in the differences that the advantages are made of,

    ρ(T) = σ²_s / (σ²_s + σ²_res / T)                                     at the T of the design: 1 − MS_res / MS_s

(C. Hoyt, "Test reliability estimated by analysis of variance", Psychometrika 6, 1941; ρ of other T is the formula of
Spearman and Brown, 1910; L. Cronbach et al., "The dependability of behavioral measurements", 1972, calls it the
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
"""Below this reliability more than two thirds of what is reinforced is noise: a run is warned."""
CONFIDENCE = 0.95
CERTAIN = 50.0
"""The largest log ratio of truth to noise: a reliability of 1."""


@dataclass(frozen=True)
class Squares:
    """Sums of squares of groups, and what they are divided by. Groups add up.

    Attributes:
        samples, residual: SS_s and SS_res.
        df_samples, df_residual: Σ (G−1), Σ (G−1)(T−1).
        weight: Σ (G−1)·T, by which σ²_s stands in E[SS_s].
    """

    samples: float = 0.0
    residual: float = 0.0
    df_samples: int = 0
    df_residual: int = 0
    weight: int = 0

    @classmethod
    def of(cls, rewards: Tensor) -> "Squares":
        """Of one group, (G, T); nothing of one with a single summary or a single target."""
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
        """σ²_s, which may come out below 0, and σ²_res."""
        noise = self.residual / self.df_residual
        return (self.samples - self.df_samples * noise) / self.weight, noise


def _values(squares: Squares) -> tuple[Any, ...]:
    return tuple(getattr(squares, name) for name in Squares.__dataclass_fields__)


@dataclass(frozen=True)
class Reliability:
    """The reliability of the rewards of a group's summaries, each a mean over `targets`.

    Attributes:
        value: ρ; 0 where the noise alone would spread them more.
        low, high: 95 % interval: jackknife over users on log(1 + T·σ²_s/σ²_res), Student's t. None of a single user.
        spread, noise: σ_s and σ_res, in nats of the reward.
        users, group, targets: of the design, means where they differ; `targets` is that of a reward in training.
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
        """From what each user's summaries scored.

        Args:
            users: for each user one or several groups of rewards, (G, T) each; several are pooled as one user's.
            targets: how many targets a reward is averaged over in training.

        Returns:
            None where nothing can be compared: no group has two summaries and two targets.
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
            left_out = torch.tensor([_log_ratio(whole - squares, targets) for squares in each], dtype=torch.float64)
            error = math.sqrt((n - 1) / n * float((left_out - left_out.mean()).square().sum()))
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
        """How much better, in truth, the best of a group by its reward is than the mean, in nats: σ_s·√ρ times the
        expected largest of so many normal variables (G. Blom, 1958)."""
        return self.spread * math.sqrt(self.value) * NormalDist().inv_cdf((group - 0.375) / (group + 0.25))

    def facts(self) -> dict[str, Any]:
        """For reliability.json."""
        return asdict(self) | {"with_twice_the_targets": self.at(2), "with_four_times_the_targets": self.at(4)}

    def line(self, what: str) -> str:
        """In one line of a terminal."""
        between = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        t = self.targets
        return (
            f"reliability of {what} {self.value:.2f}{between} ({self.users} users x {self.group:.0f} samples, {t:g} "
            f"targets each); with {2 * t:g} targets {self.at(2):.2f}, with {4 * t:g} {self.at(4):.2f}"
        )


def _log_ratio(squares: Squares, targets: float) -> float:
    """log(1 + T·σ²_s/σ²_res): log of the F ratio at the T of the design, −log(1 − ρ) at any."""
    between, noise = squares.variances
    if noise <= 0:  # every target says the same
        return CERTAIN if between > 0 else 0.0
    return min(math.log(max(1 + targets * between / noise, 1e-9)), CERTAIN)


def _share(ratio: float) -> float:
    return min(max(1 - math.exp(-ratio), 0.0), 1.0) if ratio > -CERTAIN else 0.0


def advice(reliability: Reliability, group: int) -> list[str]:
    """What a larger group would do, and a warning where there is little to reinforce."""
    larger = 2 * group
    best, best_of_larger = reliability.best_of(group), reliability.best_of(larger)
    lines = [
        f"a larger group would not change that; {larger} samples take 29 % off the gradient's noise, and the best of "
        f"them beats their mean by {best_of_larger:.2g} nats, of {group} by {best:.2g}"
    ]
    if reliability.value < LOW:
        lines.append(
            f"warning: below {LOW} most of what would be reinforced is the noise of single targets. Raise "
            "training.inference.targets_per_summary (users need as many targets), raise summary.temperature so that "
            "samples differ more, or start from a base whose summaries the generator makes more of"
        )
    return lines
