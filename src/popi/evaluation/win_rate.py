"""Win rates of judged comparisons, plain and controlled for length, as pure functions of numbers.

The *outcome* of a pair of responses, A's and B's, judged in both orders, is the mean of the two verdicts, each 1 for
A, ½ for a tie, 0 for B. A judge that always prefers the response shown first yields ½.

The **length-controlled win rate** answers: how often would A win if both responses had the same length? (Dubois et al.
2024, *Length-Controlled AlpacaEval*, arXiv 2404.04475, §3). They use a logistic regression on three terms: the two
models, the difference in length, and the difficulty of the instruction. Estimating difficulties takes the many models
of a leaderboard; with one pair of methods the other two terms remain:

    P(A wins pair i) = σ(θ + φ·tanh(Δ_i / s)),     length-controlled win rate = σ(θ)

Δ_i is A's length minus B's, s the standard deviation of Δ (n − 1 degrees of freedom); tanh limits the weight of very
long responses. θ and φ maximise the log-likelihood Σ_i o_i·log p_i + (1 − o_i)·log(1 − p_i), outcomes of ½ included.
Dubois et al. regularise their fit, since their data include models prompted to be verbose or concise; this fit is not
regularised. The interval is that of θ from the cluster-robust sandwich

    A⁻¹ (G/(G−1) · Σ_u g_u g_uᵀ) A⁻¹,     A = Σ_i p_i(1−p_i)·x_i x_iᵀ,   g_u = Σ_{i of user u} (o_i − p_i)·x_i

with x_i = (1, tanh(Δ_i/s)) and G users (Liang & Zeger 1986; Cameron & Miller 2015, §VI), with a t quantile of G−1
degrees of freedom; σ maps its ends to win rates. s is treated as fixed.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import expit
from scipy.stats import t as student_t

from popi.evaluation.metrics import CONFIDENCE, Estimate, clustered_mean

SHARE = (0.0, 1.0)
FLAT = 1e-6
"""If the length terms span less than this, θ and φ can't be identified separately."""
STEPS = 100
"""Maximum Newton steps of the fit; if the likelihood has a maximum, a handful is enough."""


def win_rate(outcomes: Sequence[float], users: Sequence[Hashable]) -> Estimate:
    """Mean outcome, a tie counting ½, with an interval clustered by user.

    Args:
        outcomes: (N,) in [0, 1], one per pair of responses.
        users: (N,) the user of each pair.

    Raises:
        ValueError: an outcome is not in [0, 1], or lengths differ.
    """
    return clustered_mean(_checked(outcomes), users, bounds=SHARE)


def length_controlled_win_rate(
    outcomes: Sequence[float], length_differences: Sequence[float], users: Sequence[Hashable]
) -> Estimate:
    """Win rate at equal lengths (formula in the module docstring), with an interval clustered by user.

    Equals `win_rate` if all differences in length are the same (s = 0, or so large that tanh saturates), or if one side
    wins every pair. `value` is None if length alone separates wins from losses: the likelihood then has no maximum.

    Args:
        outcomes: (N,) in [0, 1].
        length_differences: (N,) length of A's response minus that of B's, in any unit.
        users: (N,) the user of each pair.

    Raises:
        ValueError: an outcome is not in [0, 1], or lengths differ.
    """
    wins, differences = _checked(outcomes), np.asarray(length_differences, dtype=float)
    if not len(wins) == len(differences) == len(users):
        raise ValueError(
            "need one difference and one user per outcome: "
            f"got {len(wins)} outcomes, {len(differences)} differences, {len(users)} users"
        )
    term = _length_term(differences)
    lost, won = wins < 1, wins > 0  # an outcome in between is both
    if not len(term) or np.ptp(term) < FLAT or not lost.any() or not won.any():
        return win_rate(outcomes, users)
    if term[lost].max() <= term[won].min() or term[won].max() <= term[lost].min():
        return Estimate(None)  # separated: the likelihood has no maximum (Albert & Anderson 1984)
    x = np.stack([np.ones_like(term), term], axis=1)  # (N, 2)
    theta = _fit(x, wins)
    p = expit(x @ theta)
    value = float(expit(theta[0]))
    index = {user: i for i, user in enumerate(dict.fromkeys(users))}
    groups = len(index)
    if groups < 2:
        return Estimate(value)
    scores = np.zeros((groups, 2))  # g_u
    np.add.at(scores, [index[user] for user in users], (wins - p)[:, None] * x)
    bread = np.linalg.inv(_information(x, p))
    variance = bread @ (groups / (groups - 1) * scores.T @ scores) @ bread
    half_width = float(student_t.ppf((1 + CONFIDENCE) / 2, groups - 1)) * float(np.sqrt(max(0.0, variance[0, 0])))
    return Estimate(value, float(expit(theta[0] - half_width)), float(expit(theta[0] + half_width)))


def _length_term(differences: np.ndarray) -> np.ndarray:
    """tanh(Δ/s): (N,); zeros where s is 0."""
    # Not std() == 0: rounding can make the standard deviation of equal values nonzero.
    if len(differences) < 2 or np.ptp(differences) == 0:
        return np.zeros(len(differences))
    return np.tanh(differences / differences.std(ddof=1))  # type: ignore[no-any-return]


def _checked(outcomes: Sequence[float]) -> np.ndarray:
    values = np.asarray(outcomes, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        bad = next(value for value in outcomes if not 0 <= value <= 1)
        raise ValueError(f"an outcome must be a number from 0 (loss) to 1 (win); got {bad}")
    return values


def _fit(x: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """Maximise the log-likelihood by Newton steps, halved until they improve it. (N, 2), (N,) → (2,)."""
    theta = np.zeros(x.shape[1])
    best = _log_likelihood(theta, x, outcomes)
    for _ in range(STEPS):
        p = expit(x @ theta)
        step = np.linalg.solve(_information(x, p), x.T @ (outcomes - p))
        size = 1.0
        while (likelihood := _log_likelihood(theta + size * step, x, outcomes)) < best and size > 1e-10:
            size /= 2
        theta, best = theta + size * step, max(best, likelihood)
        if np.abs(step).max() < 1e-10:
            break
    return theta


def _log_likelihood(theta: np.ndarray, x: np.ndarray, outcomes: np.ndarray) -> float:
    logits = x @ theta
    return float(np.sum(outcomes * logits - np.logaddexp(0, logits)))


def _information(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    information: np.ndarray = (x * (p * (1 - p))[:, None]).T @ x
    return information
