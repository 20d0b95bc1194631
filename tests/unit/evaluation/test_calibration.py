import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from popi.evaluation.calibration import brier_score, expected_calibration_error, log_loss, reliability_table
from popi.evaluation.metrics import Estimate

LOGIT = {p: math.log(p / (1 - p)) for p in (0.6, 0.8)}


def test_table_and_error_worked_by_hand() -> None:
    # Five bins over [½, 1]. 0.6 falls into [0.6, 0.7): one right, one wrong. 0.8 (in [0.8, 0.9)): three right of four.
    margins = [LOGIT[0.6], -LOGIT[0.6], LOGIT[0.8], LOGIT[0.8], LOGIT[0.8], -LOGIT[0.8]]
    margins = [m + math.copysign(1e-9, m) for m in margins]  # off the edge
    table = reliability_table(margins, list("aabbcc"), beta=1.0, bins=5)
    assert [(b.pairs, b.accuracy.value) for b in table] == [(0, None), (2, 0.5), (0, None), (4, 0.75), (0, None)]
    assert [b.low for b in table] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert table[3].confidence == pytest.approx(0.8) and table[0].confidence is None
    # 2/6 · |0.5 - 0.6| + 4/6 · |0.75 - 0.8|
    error = expected_calibration_error(margins, list("aabbcc"), beta=1.0, bins=5)
    assert error.value == pytest.approx(0.4 / 6)
    # Without a: |3 - 3.2|/4 = 0.05. Without b: (|1 - 1.2| + |1 - 1.6|)/4 = 0.2. Without c: (0.2 + |2 - 1.6|)/4 = 0.15.
    spread = sum((e - 0.4 / 3) ** 2 for e in (0.05, 0.2, 0.15))
    assert error.high == pytest.approx(0.4 / 6 + 4.30265 * math.sqrt(2 / 3 * spread), abs=1e-4)
    assert error.low == 0.0


def test_beta_scales_margins() -> None:
    margins, users = [3.0, -1.0, 0.5], list("abc")
    assert log_loss(margins, users, 0.1) == log_loss([0.3, -0.1, 0.05], users, 1.0)
    table = reliability_table([math.log(93 / 7) / 0.01], ["a"], beta=0.01, bins=10)  # 0.93: into [0.90, 0.95)
    assert [b.pairs for b in table] == [0] * 8 + [1, 0]
    with pytest.raises(ValueError, match="beta must be positive; got 0"):
        brier_score(margins, users, 0.0)
    with pytest.raises(ValueError, match="bins must be at least 1"):
        reliability_table(margins, users, 1.0, bins=0)
    with pytest.raises(ValueError, match="3 margins and 1 users"):
        expected_calibration_error(margins, ["a"], 1.0)


def test_brier_and_log_loss_worked_by_hand() -> None:
    margins = [LOGIT[0.8], -LOGIT[0.8]]  # p = 0.8 and 0.2
    assert brier_score(margins, ["a", "b"], 1.0).value == pytest.approx((0.2**2 + 0.8**2) / 2)
    assert log_loss(margins, ["a", "b"], 1.0).value == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2)
    # One row a user: t(1) = 12.7062 standard errors of the mean.
    reach = 12.7062 * np.std([0.04, 0.64], ddof=1) / math.sqrt(2)
    assert brier_score(margins, ["a", "b"], 1.0).high == pytest.approx(0.34 + reach, abs=1e-4)


def test_guessing_scores_a_quarter_and_log_2() -> None:
    assert brier_score([0.0] * 4, list("abcd"), 1.0) == Estimate(0.25, 0.25, 0.25)
    assert log_loss([0.0] * 4, list("abcd"), 1.0).value == pytest.approx(math.log(2))
    assert expected_calibration_error([0.0] * 4, list("abcd"), 1.0).value == 0.0  # half right at confidence ½
    assert expected_calibration_error([], [], 1.0) == Estimate(None)


def test_margins_without_bound_are_no_overflow() -> None:
    assert log_loss([-5000.0, 5000.0], ["a", "b"], 1.0).value == pytest.approx(2500)
    assert expected_calibration_error([5000.0, 5000.0], ["a", "b"], 1.0).value == 0.0


def test_simulated_choices_at_the_stated_probabilities_are_calibrated_and_overconfidence_shows() -> None:
    rng = np.random.default_rng(0)
    h = rng.normal(0, 2, 40_000)
    margins = np.where(rng.random(40_000) < expit(h), h, -h).tolist()
    users = [i // 4 for i in range(40_000)]
    assert expected_calibration_error(margins, users, 1.0).value < 0.01
    assert expected_calibration_error(margins, users, 4.0).value > 0.1
    assert log_loss(margins, users, 1.0).value < log_loss(margins, users, 2.0).value
    assert log_loss(margins, users, 1.0).value < log_loss(margins, users, 0.5).value


rows = st.lists(st.tuples(st.floats(-20, 20), st.integers(0, 5)), min_size=1, max_size=40)


@given(rows, st.integers(1, 15), st.floats(0.05, 3))
def test_the_table_holds_every_pair_once_and_gives_the_error(
    drawn: list[tuple[float, int]], bins: int, beta: float
) -> None:
    margins, users = (list(column) for column in zip(*drawn, strict=True))
    table = [b for b in reliability_table(margins, users, beta, bins) if b.pairs]
    assert sum(b.pairs for b in table) == len(margins)
    assert all(b.low - 1e-9 <= b.confidence <= b.high + 1e-9 for b in table)
    error = expected_calibration_error(margins, users, beta, bins)
    by_hand = sum(b.pairs * abs(b.accuracy.value - b.confidence) for b in table) / len(margins)
    assert error.value == pytest.approx(by_hand, abs=1e-9)
    assert 0 <= brier_score(margins, users, beta).value <= 1
    json_form = table[0].as_dict()
    assert set(json_form) == {"low", "high", "pairs", "confidence", "accuracy"}
