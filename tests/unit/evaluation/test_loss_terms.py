import math

import numpy as np
import pytest
from scipy.special import expit

from popi.evaluation.loss_terms import fitted_predictions, split_loss

LOGIT = {p: math.log(p / (1 - p)) for p in (0.6, 0.8, 0.9)}


def test_terms_worked_by_hand() -> None:
    # The generator gives the choices 0.6 and 0.8; the best predictor 0.9 and, wrongly sure, 0.5.
    found = split_loss([LOGIT[0.6] / 0.1, LOGIT[0.8] / 0.1], 0.1, [0.9, 0.5], ["a", "b"])
    loss = -(math.log(0.6) + math.log(0.8)) / 2
    unsaid = -(math.log(0.9) + math.log(0.5)) / 2
    assert found.loss.value == pytest.approx(loss)
    assert found.left_unsaid.value == pytest.approx(unsaid)
    assert found.generator_error.value == pytest.approx(loss - unsaid)
    # One pair a user: t(1) = 12.7062 standard errors.
    spread = np.std([-math.log(0.9), -math.log(0.5)], ddof=1) / math.sqrt(2)
    assert found.left_unsaid.high == pytest.approx(unsaid + 12.7062 * spread, abs=1e-4)
    assert found.as_dict()["left_unsaid"]["value"] == found.left_unsaid.value


def test_the_generator_error_is_a_divergence() -> None:
    """Choices drawn with probability P, a generator that says p: the mean error is KL(P ‖ p), the rest the entropy."""
    p, said = 0.9, 0.6
    chosen = [1] * 9 + [0] * 1  # of ten pairs nine come as P says they mostly do
    margins = [LOGIT[said] if c else -LOGIT[said] for c in chosen]
    found = split_loss(margins, 1.0, [p if c else 1 - p for c in chosen], list(range(10)))
    divergence = p * math.log(p / said) + (1 - p) * math.log((1 - p) / (1 - said))
    assert found.generator_error.value == pytest.approx(divergence)
    assert found.left_unsaid.value == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))


def test_who_knows_the_choice_leaves_nothing_unsaid() -> None:
    found = split_loss([0.0, 0.0], 1.0, [1.0, 1.0], ["a", "b"])
    assert found.left_unsaid.value == 0.0 and math.copysign(1, found.left_unsaid.value) == 1
    assert found.generator_error.value == pytest.approx(math.log(2))


def test_what_is_no_probability_is_refused() -> None:
    for wrong in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
            split_loss([1.0], 1.0, [wrong], ["a"])
    with pytest.raises(ValueError, match="beta must be positive; got 0"):
        split_loss([1.0], 0, [0.5], ["a"])
    with pytest.raises(ValueError, match="got 2 margins, 1 probabilities, 2 users"):
        split_loss([1.0, 1.0], 1.0, [0.5], ["a", "b"])


def test_fitted_weight_worked_by_hand() -> None:
    # Two users, so two folds: of each the other's evidence is all there is. Scaled to a root mean square of 1 it is
    # ±1 (b: three right, one wrong), and w solves 3·σ(−w) − σ(w) = w/2.
    evidence = [[2.0]] * 3 + [[-2.0]] + [[5.0], [5.0], [5.0], [-5.0]]
    users = ["a"] * 4 + ["b"] * 4
    low, high = 0.0, 3.0
    for _ in range(60):
        w = (low + high) / 2
        low, high = (w, high) if 3 * expit(-w) - expit(w) > w / 2 else (low, w)
    found = fitted_predictions(evidence, users)
    assert found == pytest.approx(
        [expit(2 / 5 * w), *[expit(2 / 5 * w)] * 2, expit(-2 / 5 * w), *[expit(5 / 2 * w)] * 3, expit(-5 / 2 * w)]
    )


def test_a_fit_never_sees_its_own_users() -> None:
    rng = np.random.default_rng(0)
    evidence = rng.normal(size=(60, 2))
    users = [f"u{i // 2}" for i in range(60)]
    first = fitted_predictions(evidence, users)
    changed = evidence.copy()
    changed[0] *= -30  # a pair of the first user
    again = fitted_predictions(changed, users)
    mine = [i for i, user in enumerate(users) if int(user[1:]) % 5 == 0]
    kept = [i for i in mine if i != 0]
    assert again[kept] == pytest.approx(first[kept])  # its fold is predicted from the others
    assert not np.allclose(np.delete(again, mine), np.delete(first, mine))  # and it counts in theirs


def test_fitted_predictions_approach_the_truth_from_above() -> None:
    rng = np.random.default_rng(1)
    h = rng.normal(size=4000) * 3
    right = rng.random(4000) < expit(np.abs(h))
    signed = np.where(right, np.abs(h), -np.abs(h))  # the margin of the response that was chosen
    users = [i // 4 for i in range(4000)]
    best = expit(signed)
    fitted = fitted_predictions(np.stack([10 * signed, rng.normal(size=4000)], 1), users)  # ten times too sure
    truth, found = -np.log(best).mean(), -np.log(fitted).mean()
    assert truth - 0.005 < found < truth + 0.02
    generator = split_loss(10 * signed, 1.0, fitted, users)
    assert generator.generator_error.low is not None and generator.generator_error.low > 0.5


def test_too_little_to_fit_is_a_guess() -> None:
    assert fitted_predictions([[3.0], [4.0]], ["a", "a"]).tolist() == [0.5, 0.5]
    assert fitted_predictions([[0.0], [0.0]], ["a", "b"]).tolist() == [0.5, 0.5]
    assert len(fitted_predictions(np.zeros((0, 2)), [])) == 0
    with pytest.raises(ValueError, match="one row of evidence per pair"):
        fitted_predictions([1.0, 2.0], ["a", "b"])
