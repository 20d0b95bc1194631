"""What is done for users of whom nothing is known, and what it costs the others: evaluation/abstention.json.

Three kinds of users: without signals; with signals that say nothing of what they prefer (the nano world has them,
`popi.nano.no_evidence`); and the held-out ones. Each under every method with summaries, with and without the check of
`own_evidence`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from popi.data.users import Person
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
        check: also with the check of each user's own pairs.
        no_evidence: in the nano world, how many users without evidence are made; None: as many as held-out ones.
        threshold: of the check.
    """
    kinds: dict[str, Sequence[Person]] = {"without signals": [with_signals(person, []) for person in study.people]}
    if study.is_nano:
        kinds["without evidence"] = _users_without_evidence(study, no_evidence)
    kinds["held out"] = study.people
    rows = []
    for name in study.names:
        for kind, people in kinds.items():
            found = study.rows(name, people, kind)
            rows.append(_row(study, name, kind, "none", found))
            if check and any(leave_out(person.user.signals) for person in people):
                kept = _kept(study, name, kind, people, threshold)
                plain = {(r["window"], r["target"]): r | {"abstained": True} for r in study.plain_rows(name, people)}
                checked = [r if kept[r["window"]] else plain[r["window"], r["target"]] for r in found]
                rows.append(_row(study, name, kind, "own pairs", checked))
    beta = study.config.training.inference.beta
    notes = [
        "gain: reward accuracy less that without personalisation (½ by definition), points, 95 % interval "
        "clustered by user",
        f"reward: log σ(βh)/β less that without personalisation, nats, β = {beta:g}: below 0 a summary "
        "misleads more than it helps",
        "abstained: target pairs answered as without a summary, %; check: none, or of each user's own pairs",
    ]
    if study.is_nano:
        notes.append(
            "without evidence: what a summary claims at random helps as often as it harms, so accuracy shows little; "
            "reward and abstained tell more"
        )
    columns = ["label", "kind", "check", "abstained", "value", "low", "high", "gain", "gain_low", "gain_high"]
    columns += ["reward", "reward_low", "reward_high", "users"]
    return study.write(
        FILE,
        {
            "title": "Users of whom nothing is known",
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


def _kept(study: Study, name: str, kind: str, people: Sequence[Person], threshold: float) -> list[bool]:
    """Whether each user's summary holds for the user's own pairs, against the same generator's plain prompt."""
    cases = [(window, case) for window, person in enumerate(people) for case in leave_out(person.user.signals)]
    seen = [
        Person(User(user_id=people[window].user.user_id, signals=list(case.signals), targets=[case.pair]))
        for window, case in cases
    ]
    margins: list[list[float]] = [[] for _ in people]
    plain = {row["window"]: row["margin"] for row in study.plain_rows(name, seen)}
    for row in study.rows(name, seen, f"{kind} own pairs"):
        margins[cases[row["window"]][0]].append(row["margin"] - plain[row["window"]])
    beta = study.config.training.inference.beta
    return [not hs or log_ratio(hs, beta) > threshold for hs in margins]


def _users_without_evidence(study: Study, n: int | None) -> list[Person]:
    from popi.nano.no_evidence import make_users_without_evidence
    from popi.nano.world import oracle_summary

    data = study.config.data
    many = len(study.people) if n is None else n
    made = make_users_without_evidence(many, study.config.seed, "test", data.targets_per_user)
    return [Person(one.user, frozenset(one.preferences.items()), oracle_summary(one)) for one in made]
