"""Reward accuracy against the number of signals: evaluation/evidence.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from popi.evaluation import metrics
from popi.evaluation.methods import METHODS
from popi.studies.evidence.cut import OrderOfSignals, doubling, first_signals
from popi.studies.study import Row, Study, interval

FILE = "evidence.json"
LABELS = {
    "label": "method",
    "signals": "signals",
    "value": "accuracy",
    "gain": "gain",
    "summary_tokens": "summary",
    "overhead_tokens": "added",
    "abstained": "abstained",
}


def evidence(
    study: Study, sizes: Sequence[int] | None = None, order: OrderOfSignals = "given", seed: int = 0
) -> dict[str, Any]:
    """Score the study's methods with the first k of each user's signals; write and return evidence.json.

    Args:
        study: users, models, methods.
        sizes: numbers of signals, including 0; None: 0, 1, 2, 4, … and the maximum that a user has.
        order, seed: how signals are ordered before cutting (`popi.studies.evidence.cut.ordered`).
    """
    maximum = max((len(person.user.signals) for person in study.people), default=0)
    rows: list[Row] = []
    for name in study.names:
        none: list[Row] = []
        for k in sizes or doubling(maximum):
            people = first_signals(study.people, k, order, seed)
            scored = study.rows(name, people, f"{k} signals")
            none = none or scored
            read = float(np.mean([len(person.user.signals) for person in people])) if people else 0.0
            rows.append({"method": name, "label": METHODS[name].label, "signals": k, "signals_mean": read})
            rows[-1] |= figures(scored, none)
    notes = [
        f"accuracy: reward accuracy, %, of {len(study.people)} held-out users, the same target pairs for every number "
        "of signals; 95 % intervals clustered by user",
        f"a user's first k signals in {order} order"
        + (f" (seed {seed})" if order == "shuffled" else "")
        + "; longer cuts include shorter ones, and users with fewer signals keep all of them",
        "gain: paired difference to the same method without signals, points; summary, added: mean tokens of the "
        "summary, and those added to the prompt; abstained: answered as without a summary, %",
    ]
    columns = ["label", "signals", "value", "low", "high", "gain", "gain_low", "gain_high", "summary_tokens"]
    columns += ["overhead_tokens", "abstained"]
    return study.write(
        FILE,
        {
            "title": "Accuracy against the number of signals",
            "columns": columns,
            "labels": LABELS,
            "percent": ["value", "gain", "abstained"],
            "rows": rows,
            "notes": notes,
            "order": order,
            "order_seed": seed,
        },
    )


def figures(rows: Sequence[Row], none: Sequence[Row]) -> Row:
    """Accuracy of a method's rows, and its paired difference to rows of the same pairs without signals.

    The difference only includes pairs present in both (a server may have returned no log-probs).
    """
    users = [row["user_id"] for row in rows]
    outcome = dict(zip(map(_key, rows), metrics.outcomes([row["margin"] for row in rows]), strict=True))
    before = dict(zip(map(_key, none), metrics.outcomes([row["margin"] for row in none]), strict=True))
    both = [key for key in outcome if key in before]
    owner = dict(zip(map(_key, rows), users, strict=True))
    gain = metrics.paired_difference(
        [outcome[key] for key in both], [before[key] for key in both], [owner[key] for key in both], (-1.0, 1.0)
    )
    tokens = [row["summary_tokens"] for row in rows if row["summary_tokens"] is not None]
    return {
        **interval(metrics.reward_accuracy([row["margin"] for row in rows], users)),
        **interval(gain, "gain"),
        "margin": float(np.mean([row["margin"] for row in rows])) if rows else None,
        "summary_tokens": float(np.mean(tokens)) if tokens else None,
        "overhead_tokens": float(np.mean([row["overhead_tokens"] for row in rows])) if rows else None,
        "abstained": float(np.mean([row["abstained"] for row in rows])) if tokens else None,
        "users": len(set(users)),
        "pairs": len(rows),
    }


def _key(row: Row) -> tuple[int, int]:
    return row["window"], row["target"]
