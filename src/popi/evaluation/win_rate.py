"""Win rates of judged comparisons, plain and controlled for length, as pure functions of numbers.

An *outcome* is what one pair of responses, A's and B's, came to after it was judged in both orders: the mean of the
two verdicts, each 1 for A, ½ for a tie, 0 for B. A judge that always names the response shown first gives ½.

The **length-controlled win rate** is the answer to: how often would A win if both responses were of one length?
(Dubois et al. 2024, *Length-Controlled AlpacaEval*, arXiv 2404.04475, §3). Theirs is a logistic regression on three
terms: the two models, the difference in length, and the difficulty of the instruction. Difficulties are estimated
over the many models of a leaderboard; one pair of methods leaves the other two terms:

    P(A wins pair i) = σ(θ + φ·tanh(Δ_i / s)),     length-controlled win rate = σ(θ)

Δ_i is A's length less B's, s the standard deviation of Δ (n − 1 degrees of freedom), tanh lets one very long response
weigh no more than a long one. θ and φ maximise the log-likelihood Σ_i o_i·log p_i + (1 − o_i)·log(1 − p_i), outcomes of
½ included. Theirs is regularised, since its data are weighted with those of models told to be verbose or concise; here
nothing is. The interval is that of θ from the cluster-robust sandwich

    A⁻¹ (G/(G−1) · Σ_u g_u g_uᵀ) A⁻¹,     A = Σ_i p_i(1−p_i)·x_i x_iᵀ,   g_u = Σ_{i of user u} (o_i − p_i)·x_i

with x_i = (1, tanh(Δ_i/s)) and G users (Liang & Zeger 1986; Cameron & Miller 2015, §VI), a t quantile with G−1 degrees
of freedom, and σ of its ends. s counts as given.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import expit
from scipy.stats import t as student_t

from popi.evaluation.metrics import CONFIDENCE, Estimate, clustered_mean

SHARE = (0.0, 1.0)
FLAT = 1e-6
"""Length terms that lie so close together are one: θ and φ could not be told apart."""
STEPS = 100
"""Most Newton steps of the fit; where there is a maximum, a handful is enough."""


def win_rate(outcomes: Sequence[float], users: Sequence[Hashable]) -> Estimate:
    """Mean outcome, a tie counting ½, with an interval clustered by user.

    Args:
        outcomes: (N,) in [0, 1], one a pair of responses.
        users: (N,) whose pair it is.

    Raises:
        ValueError: an outcome is not in [0, 1], or lengths differ.
    """
    return clustered_mean(_checked(outcomes), users, bounds=SHARE)


def length_controlled_win_rate(
    outcomes: Sequence[float], length_differences: Sequence[float], users: Sequence[Hashable]
) -> Estimate:
    """Win rate at equal lengths (see the module's formula), with an interval clustered by user.

    Equal to `win_rate` where lengths never differ by more or less than elsewhere (s = 0, or so far from 0 that tanh
    tells them apart no longer), and where one side wins every pair. `value` is None where length alone tells wins from
    losses: then no θ is more likely than any other.

    Args:
        outcomes: (N,) in [0, 1].
        length_differences: (N,) length of A's response less that of B's, in any one unit.
        users: (N,).

    Raises:
        ValueError: an outcome is not in [0, 1], or lengths differ.
    """
    wins, differences = _checked(outcomes), np.asarray(length_differences, dtype=float)
    if not len(wins) == len(differences) == len(users):
        raise ValueError(
            "one difference and one user an outcome: "
            f"got {len(wins)} outcomes, {len(differences)} differences, {len(users)} users"
        )
    term = _length_term(differences)
    lost, won = wins < 1, wins > 0  # an outcome between the two is part win, part loss
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
    reach = float(student_t.ppf((1 + CONFIDENCE) / 2, groups - 1)) * float(np.sqrt(max(0.0, variance[0, 0])))
    return Estimate(value, float(expit(theta[0] - reach)), float(expit(theta[0] + reach)))


def _length_term(differences: np.ndarray) -> np.ndarray:
    """tanh(Δ/s): (N,); zeros where s is 0."""
    if len(differences) < 2 or np.ptp(differences) == 0:  # asked of the values: the deviation of equal ones isn't 0
        return np.zeros(len(differences))
    return np.tanh(differences / differences.std(ddof=1))  # type: ignore[no-any-return]


def _checked(outcomes: Sequence[float]) -> np.ndarray:
    values = np.asarray(outcomes, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        bad = next(value for value in outcomes if not 0 <= value <= 1)
        raise ValueError(f"an outcome is a number from 0 (loss) to 1 (win); got {bad}")
    return values


def _fit(x: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """The maximum of the log-likelihood by Newton steps, halved until they improve it. (N, 2), (N,) → (2,)."""
    theta = np.zeros(x.shape[1])
    best = _log_likelihood(theta, x, outcomes)
    for _ in range(STEPS):
        p = expit(x @ theta)
        step = np.linalg.solve(_information(x, p), x.T @ (outcomes - p))
        size = 1.0
        while (found := _log_likelihood(theta + size * step, x, outcomes)) < best and size > 1e-10:
            size /= 2
        theta, best = theta + size * step, max(best, found)
        if np.abs(step).max() < 1e-10:
            break
    return theta


def _log_likelihood(theta: np.ndarray, x: np.ndarray, outcomes: np.ndarray) -> float:
    logits = x @ theta
    return float(np.sum(outcomes * logits - np.logaddexp(0, logits)))


def _information(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    information: np.ndarray = (x * (p * (1 - p))[:, None]).T @ x
    return information
