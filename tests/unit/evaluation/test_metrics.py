import math

import numpy as np
import pytest

from popi.evaluation.metrics import (
    Estimate,
    attribute_scores,
    clustered_mean,
    clustered_ratio,
    gain_kept,
    outcomes,
    paired_difference,
    prompt_cost,
    response_length,
    reward_accuracy,
)


def test_mean_and_interval_worked_by_hand() -> None:
    # a: 1 1, b: 0 0 1, c: 1. Mean 4/6. User residuals: 2 - 2·2/3 = 2/3, 1 - 3·2/3 = -1, 1 - 2/3 = 1/3.
    # Variance: 3/2 · (4/9 + 1 + 1/9) / 36 = 7/108; t(2) = 4.30265.
    estimate = clustered_mean([1, 1, 0, 0, 1, 1], ["a", "a", "b", "b", "b", "c"])
    reach = 4.30265 * math.sqrt(7 / 108)
    assert estimate.value == pytest.approx(2 / 3)
    assert estimate.low == pytest.approx(2 / 3 - reach, abs=1e-4)
    assert estimate.high == pytest.approx(2 / 3 + reach, abs=1e-4)


def test_rows_of_a_user_need_not_stand_together() -> None:
    assert clustered_mean([1, 0, 1, 0], ["a", "b", "a", "b"]) == clustered_mean([1, 1, 0, 0], ["a", "a", "b", "b"])


def test_one_row_a_user_is_the_textbook_interval_of_a_mean() -> None:
    values = [0.3, -1.2, 2.0, 0.7, 0.1]
    estimate = clustered_mean(values, list("abcde"))
    reach = 2.776445 * np.std(values, ddof=1) / math.sqrt(5)
    assert estimate.high - estimate.value == pytest.approx(reach)


def test_repeating_every_row_does_not_narrow_the_interval() -> None:
    values, users = [1.0, 0.0, 1.0, 1.0], list("abcd")
    once, thrice = clustered_mean(values, users), clustered_mean(values * 3, users * 3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_margin_zero_counts_half_and_is_certain() -> None:
    assert reward_accuracy([0.0] * 6, list("aabbcc")) == Estimate(0.5, 0.5, 0.5)
    assert reward_accuracy([2.0, -1.0, 0.0, -0.0], list("abcd")).value == pytest.approx(0.5)
    assert reward_accuracy([1e-9, 5.0, -1e-9, 0.0], list("abcd")).value == pytest.approx(2.5 / 4)


def test_all_right_still_has_a_lower_bound() -> None:
    # Exact binomial, one trial a user: 0.025^(1/4) = 0.3976.
    estimate = reward_accuracy([1.0] * 40, [i % 4 for i in range(40)])
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(0.025**0.25)
    nothing = reward_accuracy([-1.0] * 4, list("abcd"))
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert nothing.high == pytest.approx(1 - 0.025**0.25)


def test_shares_stay_between_0_and_1() -> None:
    estimate = reward_accuracy([1, 1, 1, 1, 1, -1], list("aabbcc"))
    assert estimate.high == 1.0 and estimate.low >= 0.0


def test_one_user_has_no_interval() -> None:
    assert reward_accuracy([1.0, -1.0], ["a", "a"]) == Estimate(0.5, None, None)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values and 1 users"):
        clustered_mean([1, 2], ["a"])
    with pytest.raises(ValueError, match="same length"):
        clustered_ratio([1, 2], [1])


def test_attributes_are_counted_over_all_users_alike() -> None:
    named = [{("tone", "formal"), ("mood", "playful")}, {("length", "short")}, set()]
    true = [{("tone", "formal"), ("level", "simple")}, {("length", "short")}, {("mood", "serious")}]
    precision, recall = attribute_scores(named, true)
    assert precision.value == pytest.approx(2 / 3)
    assert recall.value == pytest.approx(2 / 4)  # the empty summary misses its user's attribute
    # By hand: residuals of precision 1 - 2·2/3, 1 - 2/3, 0; variance 3/2 · (1/9 + 1/9) / 9 = 1/27.
    assert precision.low == pytest.approx(max(0, 2 / 3 - 4.30265 / math.sqrt(27)), abs=1e-4)


def test_the_opposite_value_of_an_attribute_is_wrong() -> None:
    precision, recall = attribute_scores([{("tone", "formal")}] * 2, [{("tone", "casual")}] * 2)
    assert (precision.value, recall.value) == (0.0, 0.0)


def test_precision_is_undefined_when_nothing_is_named() -> None:
    precision, recall = attribute_scores([set(), set()], [{("a", "b")}, {("c", "d")}])
    assert precision == Estimate(None)
    assert recall.value == 0.0


def test_gain_kept() -> None:
    assert gain_kept(0.86, 0.90) == pytest.approx(0.9)
    assert gain_kept(0.6, 0.5) is None


def test_intervals_cover_the_truth_and_would_not_if_rows_counted_as_independent() -> None:
    # 60 users of 2 to 10 rows; a user's rows share a chance of being right, drawn anew for each user (mean 0.7).
    rng = np.random.default_rng(0)
    clustered = naive = 0
    trials = 500
    for _ in range(trials):
        sizes = rng.integers(2, 11, 60)
        outcomes = rng.random(sizes.sum()) < np.repeat(rng.beta(1.4, 0.6, 60), sizes)
        margins = np.where(outcomes, 1.0, -1.0).tolist()
        by_user = reward_accuracy(margins, np.repeat(np.arange(60), sizes).tolist())
        by_row = reward_accuracy(margins, list(range(len(margins))))
        clustered += by_user.low <= 0.7 <= by_user.high
        naive += by_row.low <= 0.7 <= by_row.high
    assert 0.925 <= clustered / trials <= 0.975
    assert naive / trials < 0.85


def test_paired_difference_worked_by_hand() -> None:
    # Differences a: 1, 0; b: 1; c: -1. Mean ¼; residuals of users ½, ¾, -5/4; variance 3/2 · (4+9+25)/16 / 16.
    estimate = paired_difference([1, 0, 1, 0], [0, 0, 0, 1], list("aabc"))
    assert estimate.value == pytest.approx(0.25)
    assert estimate.high == pytest.approx(0.25 + 4.30265 * math.sqrt(1.5 * 38 / 256), abs=1e-4)
    assert paired_difference([1, 0, 1, 0], [0, 0, 0, 1], list("aabc"), (-1, 1)).high == 1
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([1, 2], [1], ["a", "b"])


def test_a_difference_shared_by_all_pairs_is_certain_though_each_method_is_not() -> None:
    easy_and_hard = [0.1, 3.0, -2.0, 0.7]
    better = [value + 0.5 for value in easy_and_hard]
    estimate = paired_difference(better, easy_and_hard, list("abcd"))
    assert (estimate.low, estimate.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert clustered_mean(better, list("abcd")).low < 0


def test_outcomes_are_what_reward_accuracy_averages() -> None:
    margins = [2.0, -1.0, 0.0, -0.0]
    assert outcomes(margins) == [1.0, 0.0, 0.5, 0.5]
    assert reward_accuracy(margins, list("abcd")) == clustered_mean(outcomes(margins), list("abcd"), (0.0, 1.0))


def test_length_is_in_characters() -> None:
    assert response_length(["tea", "grün"], ["a", "b"]).value == 3.5


def test_cost_is_tokens_times_price_of_a_million() -> None:
    # 30 and 50 tokens at 2.50 a million.
    estimate = prompt_cost([30, 50], 2.5, ["a", "b"])
    assert estimate.value == pytest.approx(0.0001) and estimate.low == 0.0
    assert prompt_cost([30, 50], 0, ["a", "b"]).value == 0
    with pytest.raises(ValueError, match="got -1"):
        prompt_cost([30], -1, ["a"])
