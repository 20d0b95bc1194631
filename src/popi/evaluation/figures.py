"""Every method's figures, computed from its rows: the entries of `methods` in metrics.json.

The formulas are in metrics.py, calibration.py and loss_terms.py; docs/method.md explains what the figures mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from popi.config import RunConfig
from popi.data.users import Person
from popi.evaluation import calibration, metrics
from popi.evaluation.best_predictions import BestPredictions
from popi.evaluation.loss_terms import fitted_predictions, split_loss

Row = Mapping[str, Any]
COMPARED_WITH = ("no_personalization", "untrained_summary", "raw_signals", "population_dpo", "popi_plug_and_play")
"""Methods that every other method is compared with, pair by pair."""


def measure(
    rows_of: Mapping[str, Sequence[Row]],
    config: RunConfig,
    people: Sequence[Person],
    examples: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """`methods` of metrics.json (method → figures) and, for the nano world, `loss_of_the_best`.

    Args:
        rows_of: method → its rows. Rows with a reason under `missing` have no figures and are skipped.
        config: determines β for all methods (`common_beta`) and the price of tokens.
        people: the users, in the order of the rows' windows.
        examples: `users` of examples.json, for the length of answers.
    """
    n_rows = {name: len(rows) for name, rows in rows_of.items()}
    rows_of = {name: [row for row in rows if row.get("missing") is None] for name, rows in rows_of.items()}
    best = BestPredictions(people, config.data.world) if BestPredictions.known(config, people) else None
    measured: dict[str, Any] = {}
    beta = common_beta(config)
    for name, rows in rows_of.items():
        entry = method_metrics(rows) | {
            "n_users": len(set(_users(rows))),
            "n_pairs": len(rows),
            "missing": n_rows[name] - len(rows),
            "calibration": calibrated(rows, beta),
            "differences": differences(name, rows_of),
            "loss_terms": terms(name, rows, beta, best),
        }
        if best is not None and config.data.world == "hard":
            entry["held_out"] = on_held_out(rows, people)
        if config.evaluation.token_price is not None:
            tokens, users = [row["overhead_tokens"] for row in rows], _users(rows)
            entry["prompt_cost"] = metrics.prompt_cost(tokens, config.evaluation.token_price, users).as_dict()
        length = answer_length(name, examples)
        if length is not None:
            entry["response_length"] = length.as_dict()
        measured[name] = entry
    result: dict[str, Any] = {"methods": measured}
    if best is not None and rows_of:
        rows = next(iter(rows_of.values()))
        known = {"nothing": best.given_nothing(rows), "signals": best.given_signals(rows)}
        result["loss_of_the_best"] = {
            given: split_loss([0.0] * len(rows), 1.0, probabilities, _users(rows)).left_unsaid.as_dict()
            for given, probabilities in known.items()
        }
    return result


def common_beta(config: RunConfig) -> float:
    """β in σ(β·h), the same for every method: `evaluation.beta`, or else the β of the summary reward.

    β is the scale on which margins become probabilities; using each method's own could change their order. And not
    every β is such a scale: for an IPO loss it sets the target margin.
    """
    return config.training.inference.beta if config.evaluation.beta is None else config.evaluation.beta


def method_metrics(rows: Sequence[Row]) -> dict[str, Any]:
    """Reward accuracy, margin, drift of the chosen responses, tokens and attributes, from a method's rows.

    `chosen_drift`: mean of log π(y⁺|x,c) − log π_ref(y⁺|x), in nats per response; c is the context.
    `context_overhead_tokens`, `attribute_precision` and `attribute_recall` are plain numbers (null without a summary
    or known preferences); their intervals are under `intervals`.
    """
    users = _users(rows)
    overhead = metrics.clustered_mean([row["overhead_tokens"] for row in rows], users)
    result: dict[str, Any] = {
        "reward_accuracy": metrics.reward_accuracy(_margins(rows), users).as_dict(),
        "margin": metrics.clustered_mean(_margins(rows), users).as_dict(),
        "chosen_drift": metrics.clustered_mean(_drifts(rows), users).as_dict(),
        "context_overhead_tokens": overhead.value,
        "attribute_precision": None,
        "attribute_recall": None,
        "intervals": {"context_overhead_tokens": overhead.as_dict()},
    }
    first = {row["window"]: row for row in reversed(rows) if "named" in row}
    if first:
        named = [{tuple(pair) for pair in row["named"]} for row in first.values()]
        preferred = [{tuple(pair) for pair in row["preferred"]} for row in first.values()]
        for key, estimate in zip(("precision", "recall"), metrics.attribute_scores(named, preferred), strict=True):
            result[f"attribute_{key}"] = estimate.value
            result["intervals"][f"attribute_{key}"] = estimate.as_dict()
    return result


def on_held_out(rows: Sequence[Row], people: Sequence[Person]) -> dict[str, Any]:
    """Reward accuracy on the target pairs that the harder nano world's held-out attribute or value decides."""
    from popi.nano.hard import decided_by_held_out

    def decided(row: Row) -> bool:
        person = people[row["window"]]
        return decided_by_held_out(person.preferences or (), person.user.targets[row["target"]])

    pairs = [row for row in rows if decided(row)]
    accuracy = metrics.reward_accuracy(_margins(pairs), _users(pairs))
    return {"reward_accuracy": accuracy.as_dict(), "pairs": len(pairs)}


def calibrated(rows: Sequence[Row], beta: float) -> dict[str, Any]:
    """How well σ(β·h) predicts the choices."""
    margins, users = _margins(rows), _users(rows)
    return {
        "beta": beta,
        "expected_calibration_error": calibration.expected_calibration_error(margins, users, beta).as_dict(),
        "brier_score": calibration.brier_score(margins, users, beta).as_dict(),
        "log_loss": calibration.log_loss(margins, users, beta).as_dict(),
        "reliability": [part.as_dict() for part in calibration.reliability_table(margins, users, beta)],
    }


def differences(name: str, rows_of: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Other method → paired differences: this method minus the other."""
    others = [other for other in COMPARED_WITH if other != name and other in rows_of]
    return {other: difference(rows_of[name], rows_of[other]) for other in others}


def difference(rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Any]:
    """Paired differences (first minus second) in reward accuracy, margin and drift on the pairs that both have."""
    by_key = {(row["window"], row["target"]): row for row in others}
    shared = [row for row in rows if (row["window"], row["target"]) in by_key]
    matching = [by_key[row["window"], row["target"]] for row in shared]
    users, margins, other_margins = _users(shared), _margins(shared), _margins(matching)
    outcomes, other_outcomes = metrics.outcomes(margins), metrics.outcomes(other_margins)
    accuracy = metrics.paired_difference(outcomes, other_outcomes, users, (-1.0, 1.0))
    return {
        "reward_accuracy": accuracy.as_dict(),
        "margin": metrics.paired_difference(margins, other_margins, users).as_dict(),
        "chosen_drift": metrics.paired_difference(_drifts(shared), _drifts(matching), users).as_dict(),
        "pairs": len(shared),
    }


def terms(name: str, rows: Sequence[Row], beta: float, best: BestPredictions | None) -> dict[str, Any]:
    """The loss's two terms: estimated (`fitted`), and exact if the true preferences are known (`world`)."""
    margins, users = _margins(rows), _users(rows)
    reference = [row["reference_chosen_logp"] - row["reference_rejected_logp"] for row in rows]
    evidence = np.stack([np.asarray(margins, dtype=float), np.asarray(reference, dtype=float)], axis=1)
    fitted = split_loss(margins, beta, fitted_predictions(evidence, users), users)
    result = {"beta": beta, "fitted": fitted.as_dict()}
    if best is not None:
        result["world"] = split_loss(margins, beta, best.given(name, rows), users).as_dict()
    return result


def answer_length(name: str, examples: Sequence[Mapping[str, Any]]) -> metrics.Estimate | None:
    """Characters of the answers in examples.json; None if a method has none there."""
    by_user = [
        (user["user_id"], asked["answers"][name])
        for user in examples
        for asked in user["prompts"]
        if name in asked["answers"]
    ]
    if not by_user:
        return None
    users, answers = zip(*by_user, strict=True)
    return metrics.response_length(answers, users)


def _margins(rows: Sequence[Row]) -> list[float]:
    return [row["margin"] for row in rows]


def _drifts(rows: Sequence[Row]) -> list[float]:
    return [row["chosen_logp"] - row["reference_chosen_logp"] for row in rows]


def _users(rows: Sequence[Row]) -> list[str]:
    return [row["user_id"] for row in rows]
