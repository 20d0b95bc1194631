"""How methods treat users about whom nothing is known, and what that costs other users: evaluation/abstention.json.

There are three kinds of users: without signals; with signals that reveal nothing about their preferences (only in the
nano world, `popi.nano.no_evidence`); and the held-out ones. Each is scored with every method that writes summaries,
with and without the check of `own_evidence`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from popi.data.users import Person, person
from popi.evaluation import metrics
from popi.evaluation.methods import METHODS
from popi.signals.types import User
from popi.studies.evidence.own_evidence import THRESHOLD, leave_out, log_ratio
from popi.studies.study import Row, Study, interval, with_signals

FILE = "abstention.json"
LABELS = {
    "label": "method",
    "kind": "users",
    "check": "check",
    "abstained": "abstained",
    "value": "accuracy",
    "gain": "gain",
    "reward": "reward",
    "users": "n",
}


def abstention(
    study: Study, check: bool = True, no_evidence: int | None = None, threshold: float = THRESHOLD
) -> dict[str, Any]:
    """Score the study's methods on users with and without evidence; write and return abstention.json.

    Args:
        study: users, models, methods with summaries.
        check: also score with the check on each user's own pairs.
        no_evidence: number of users without evidence to generate in the nano world; None: as many as held-out ones.
        threshold: the check's threshold.
    """
    kinds: dict[str, Sequence[Person]] = {"without signals": [with_signals(person, []) for person in study.people]}
    if study.is_nano:
        kinds["without evidence"] = _users_without_evidence(study, no_evidence)
    kinds["held out"] = study.people
    rows = []
    for name in study.names:
        for kind, people in kinds.items():
            scored = study.rows(name, people, kind)
            rows.append(_row(study, name, kind, "none", scored))
            if check and any(leave_out(person.user.signals) for person in people):
                passed = _passed(study, name, kind, people, threshold)
                plain = {(r["window"], r["target"]): r | {"abstained": True} for r in study.plain_rows(name, people)}
                checked = [r if passed[r["window"]] else plain[r["window"], r["target"]] for r in scored]
                rows.append(_row(study, name, kind, "own pairs", checked))
    beta = study.config.training.inference.beta
    notes = [
        "gain: reward accuracy minus that without personalisation (½ by definition), points, 95 % interval "
        "clustered by user",
        f"reward: log σ(βh)/β minus that without personalisation, nats, β = {beta:g}: below 0, a summary "
        "misleads more than it helps",
        "abstained: target pairs answered as without a summary, %; check: none, or on each user's own pairs",
    ]
    if study.is_nano:
        notes.append(
            "without evidence: a summary's random claims help as often as they harm, so accuracy shows little; reward "
            "and abstained show more"
        )
    columns = ["label", "kind", "check", "abstained", "value", "low", "high", "gain", "gain_low", "gain_high"]
    columns += ["reward", "reward_low", "reward_high", "users"]
    return study.write(
        FILE,
        {
            "title": "Users about whom nothing is known",
            "columns": columns,
            "labels": LABELS,
            "percent": ["abstained", "value", "gain"],
            "rows": rows,
            "notes": notes,
            "threshold": threshold,
        },
    )


def _row(study: Study, name: str, kind: str, check: str, rows: Sequence[Row]) -> Row:
    users, margins = [row["user_id"] for row in rows], [row["margin"] for row in rows]
    beta = study.config.training.inference.beta
    outcomes = metrics.outcomes(margins)
    gain = metrics.paired_difference(outcomes, [0.5] * len(rows), users, (-1.0, 1.0))
    reward = metrics.clustered_mean([log_ratio([h], beta) / beta for h in margins], users)
    return {
        "method": name,
        "label": METHODS[name].label,
        "kind": kind,
        "check": check,
        "abstained": float(np.mean([row["abstained"] for row in rows])) if rows else None,
        **interval(metrics.reward_accuracy(margins, users)),
        **interval(gain, "gain"),
        **interval(reward, "reward"),
        "users": len(set(users)),
        "pairs": len(rows),
    }


def _passed(study: Study, name: str, kind: str, people: Sequence[Person], threshold: float) -> list[bool]:
    """Whether each user's summary predicts the user's own pairs better than the same generator's plain prompt."""
    cases = [(window, case) for window, person in enumerate(people) for case in leave_out(person.user.signals)]
    users = [
        Person(User(user_id=people[window].user.user_id, signals=list(case.signals), targets=[case.pair]))
        for window, case in cases
    ]
    margins: list[list[float]] = [[] for _ in people]
    plain = {row["window"]: row["margin"] for row in study.plain_rows(name, users)}
    for row in study.rows(name, users, f"{kind} own pairs"):
        margins[cases[row["window"]][0]].append(row["margin"] - plain[row["window"]])
    beta = study.config.training.inference.beta
    return [not hs or log_ratio(hs, beta) > threshold for hs in margins]


def _users_without_evidence(study: Study, n: int | None) -> list[Person]:
    from popi.nano.no_evidence import make_users_without_evidence

    data = study.config.data
    count = len(study.people) if n is None else n
    users = make_users_without_evidence(count, study.config.seed, "test", data.targets_per_user)
    return [person(user) for user in users]
