import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from popi.evaluation.metrics import Estimate
from popi.evaluation.win_rate import length_controlled_win_rate, win_rate


def both_lengths(longer: float, shorter: float, n: int = 10) -> tuple[list[float], list[float]]:
    """n pairs in which A is longer and wins that share, and n in which it is shorter."""
    outcomes = [float(i < round(share * n)) for share in (longer, shorter) for i in range(n)]
    return outcomes, [30.0] * n + [-30.0] * n


def test_a_tie_is_half() -> None:
    # Mean (1 + ½ + 0 + 1)/4 = 0.625; deviations 0.375, -0.125, -0.625, 0.375; variance 4/3 · 0.6875/16.
    estimate = win_rate([1, 0.5, 0, 1], list("abcd"))
    assert estimate.value == pytest.approx(0.625)
    assert estimate.low == pytest.approx(max(0, 0.625 - 3.18245 * math.sqrt(4 / 3 * 0.6875 / 16)), abs=1e-4)


def test_what_is_no_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 1\.5"):
        win_rate([0.5, 1.5], ["a", "b"])
    with pytest.raises(ValueError, match="2 outcomes, 1 differences, 2 users"):
        length_controlled_win_rate([1, 0], [3], ["a", "b"])


def test_two_lengths_worked_by_hand() -> None:
    # The fit meets both shares: θ + φt = logit 0.8 = ln 4, θ - φt = logit 0.5 = 0. So θ = ln 2 and σ(θ) = 2/3.
    outcomes, differences = both_lengths(0.8, 0.5)
    estimate = length_controlled_win_rate(outcomes, differences, range(20))
    assert estimate.value == pytest.approx(2 / 3)
    # Var θ = ¼ (1/(10·0.8·0.2) + 1/(10·0.5·0.5)) · 20/19 = 0.269737; t(19) = 2.093024.
    reach = 2.093024 * math.sqrt(0.269737)
    assert estimate.low == pytest.approx(expit(math.log(2) - reach), abs=1e-5)
    assert estimate.high == pytest.approx(expit(math.log(2) + reach), abs=1e-5)


def test_winning_by_length_alone_is_a_draw_at_equal_length() -> None:
    outcomes, differences = both_lengths(0.9, 0.1)
    longer_more_often = outcomes[:10] * 3 + outcomes[10:], differences[:10] * 3 + differences[10:]
    users = range(40)
    assert win_rate(longer_more_often[0], users).value == pytest.approx(0.7)
    assert length_controlled_win_rate(*longer_more_often, users).value == pytest.approx(0.5)


def test_the_fit_is_that_of_a_general_optimiser() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(40, 100, 60)
    outcomes = rng.choice([0, 0.25, 0.5, 0.75, 1], 60, p=[0.2, 0.1, 0.2, 0.1, 0.4])
    term = np.tanh(differences / differences.std(ddof=1))

    def loss(w: np.ndarray) -> float:
        p = expit(w[0] + w[1] * term)
        return float(-np.sum(outcomes * np.log(p) + (1 - outcomes) * np.log(1 - p)))

    theta = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    estimate = length_controlled_win_rate(outcomes.tolist(), differences.tolist(), range(60))
    assert estimate.value == pytest.approx(expit(theta[0]), abs=1e-6)


def test_equal_lengths_and_one_sided_wins_leave_the_plain_win_rate() -> None:
    users = list("aabbcc")
    outcomes = [1, 0, 1, 0.5, 1, 0]
    assert length_controlled_win_rate(outcomes, [5] * 6, users) == win_rate(outcomes, users)
    assert length_controlled_win_rate([1.0] * 6, range(6), users) == win_rate([1.0] * 6, users)
    assert length_controlled_win_rate([], [], []) == Estimate(None)
    assert length_controlled_win_rate([0.5] * 6, range(6), users).value == pytest.approx(0.5)


def test_where_length_tells_all_wins_from_all_losses_nothing_is_estimated() -> None:
    assert length_controlled_win_rate([1, 1, 0, 0], [9, 5, -1, -5], list("abcd")) == Estimate(None)
    assert length_controlled_win_rate([0, 0.5, 1, 1], [9, 5, 5, -5], list("abcd")) == Estimate(None)
    assert length_controlled_win_rate([0, 1, 0, 1], [9, 5, 5, -5], list("abcd")) == Estimate(None)


def test_one_user_has_no_interval() -> None:
    outcomes, differences = both_lengths(0.8, 0.5)
    estimate = length_controlled_win_rate(outcomes, differences, ["a"] * 20)
    assert (estimate.value, estimate.low) == (pytest.approx(2 / 3), None)


def test_simulated_verbosity_is_controlled_for_and_the_interval_covers_the_truth() -> None:
    # A wins 60 % at equal length, is longer in most pairs, and the judge likes that. A user's rows stand there thrice:
    # intervals that took rows as independent would be too narrow.
    rng = np.random.default_rng(0)
    covered, plain, trials = 0, [], 300
    for _ in range(trials):
        differences = rng.normal(80, 100, 120)
        term = np.tanh(differences / differences.std(ddof=1))
        outcomes = (rng.random(120) < expit(math.log(1.5) + 1.2 * term)).astype(float)
        rows = np.tile(outcomes, 3).tolist(), np.tile(differences, 3).tolist(), list(range(120)) * 3
        estimate = length_controlled_win_rate(*rows)
        covered += estimate.low <= 0.6 <= estimate.high
        plain.append(win_rate(rows[0], rows[2]).value)
    assert np.mean(plain) > 0.69
    assert 0.92 <= covered / trials <= 0.98


pairs = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(-500, 500), st.integers(0, 6)),
    min_size=2,
    max_size=40,
)


@given(pairs)
def test_naming_the_other_side_first_turns_the_rate_around(rows: list[tuple[float, int, int]]) -> None:
    outcomes, differences, users = (list(column) for column in zip(*rows, strict=True))
    swapped = [1 - o for o in outcomes], [-d for d in differences]
    there, back = length_controlled_win_rate(outcomes, differences, users), length_controlled_win_rate(*swapped, users)
    assert (there.value is None) == (back.value is None)
    if there.value is not None:
        assert there.value == pytest.approx(1 - back.value, abs=1e-6)
        if there.low is not None:
            assert 0 <= there.low <= there.value + 1e-9 and there.value <= there.high + 1e-9 <= 1 + 1e-9
            assert there.low == pytest.approx(1 - back.high, abs=1e-6)


def test_one_length_in_another_unit_is_still_one_length() -> None:
    differences = [3.9273579327647496 * 23] * 3  # their standard deviation is 1e-14
    assert length_controlled_win_rate([0.0, 0.0, 0.25], differences, [0, 0, 0]).value == pytest.approx(0.25 / 3)


def test_lengths_that_tanh_takes_for_one_are_one_length() -> None:
    for far in (16.0, 24.0, 1000.0):  # standard deviations from 0: tanh is 1 but for the last digits
        differences = [far, far + 1, far + 2]
        assert length_controlled_win_rate([0.0, 1.0, 0.25], differences, [0, 1, 2]).value == pytest.approx(1.25 / 3)


@given(pairs, st.floats(0.1, 50))
def test_the_unit_of_length_does_not_matter(rows: list[tuple[float, int, int]], unit: float) -> None:
    outcomes, differences, users = (list(column) for column in zip(*rows, strict=True))
    one = length_controlled_win_rate(outcomes, differences, users).value
    other = length_controlled_win_rate(outcomes, [unit * d for d in differences], users).value
    assert one == pytest.approx(other, abs=1e-5) if one is not None and other is not None else one == other
