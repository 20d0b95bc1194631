"""Renewing summaries against writing them from scratch, for several numbers of batches: evaluation/streaming.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from popi.errors import ConfigError
from popi.evaluation import metrics
from popi.evaluation.methods import METHODS
from popi.evaluation.users import named_attributes
from popi.signals.renewal import MIN_SIGNALS
from popi.studies.streaming.batches import Streamed, kinds_of_users
from popi.studies.streaming.figures import Stream, lost, stated_in_the_end, until_stated
from popi.studies.streaming.written import WAYS, After, Writer
from popi.studies.study import Row, Study, interval

FILE = "streaming.json"
BATCHES = (1, 2, 4, 8, 16)
LABELS = {
    "label": "method",
    "kind": "users",
    "batches": "batches",
    "way": "summary",
    "value": "accuracy",
    "gain": "difference",
    "drift": "drift",
    "until_stated": "wait",
    "tokens_read": "read",
}


def streaming(
    study: Study, counts: Sequence[int] | None = None, signals: int | None = None, min_signals: int = MIN_SIGNALS
) -> dict[str, Any]:
    """Give the study's users their signals in batches; write and return streaming.json.

    Args:
        study: users, models, methods with summaries.
        counts: numbers of batches; None: 1, 2, 4, 8, 16.
        signals: signals per nano user; None: 16.
        min_signals: signals until a summary becomes the base of renewals (popi.signals.renewal); 1: renew the previous
            one.

    Raises:
        ConfigError: if summaries are conditioned on the task prompt, or `signals` does not suit the users.
    """
    if study.config.summary.conditioned_on_prompt:
        raise ConfigError("summaries conditioned on the task prompt are not stored, so they can't be renewed")
    kinds = kinds_of_users(study, signals)
    rows: list[Row] = []
    for name in study.names:
        writer = Writer(study, name, min_signals)
        for kind, users in kinds.items():
            for n in counts or BATCHES:
                scored: dict[str, list[list[Row]]] = {}
                for way in WAYS:
                    after = writer.after_each(users, kind, n, way)
                    scored[way] = [_scored(study, name, users, after, b, kind) for b in range(n)]
                    rows.append({"method": name, "label": METHODS[name].label, "kind": kind, "batches": n, "way": way})
                    rows[-1] |= {"series": f"{kind}, {way}"} | _figures(users, after, scored[way])
                against = [_difference(*both) for both in zip(*(scored[way] for way in WAYS), strict=True)]
                rows[-2] |= interval(against[-1], "gain") | {"gain_after_each": [interval(gain) for gain in against]}
                rows[-1] |= interval(metrics.Estimate(None), "gain")
    notes = [
        f"accuracy: reward accuracy with the last summary, %, of {len(study.people)} users; 95 % intervals clustered "
        "by user; targets reflect the final preferences",
        "difference: renewed minus from scratch on the same pairs, points; read: mean prompt tokens of all summaries "
        "of a user",
        f"renewed: from the last summary followed by at least {min_signals} signals, and the signals since"
        if min_signals > 1
        else "renewed: from the previous summary and the batch",
    ]
    if study.is_nano:
        notes.append(
            "drift: share of correctly stated, unchanged preferences that the next summary no longer states, %; wait: "
            "summaries after a preference's change until one states it"
        )
    columns = ["label", "kind", "batches", "way", "value", "low", "high", "gain", "gain_low", "gain_high"]
    columns += ["drift", "drift_low", "drift_high", "until_stated", "tokens_read"]
    return study.write(
        FILE,
        {
            "title": "Signals in batches: renewed summaries, and summaries from scratch",
            "columns": columns,
            "labels": LABELS,
            "percent": ["value", "gain", "drift"],
            "rows": rows,
            "notes": notes,
        },
    )


def _scored(
    study: Study, name: str, users: Sequence[Streamed], after: Sequence[Sequence[After]], b: int, kind: str
) -> list[Row]:
    people = [user.person for user in users]
    return study.scored(name, people, [summaries[b].summary for summaries in after], f"streaming {kind}")


def _figures(users: Sequence[Streamed], after: Sequence[Sequence[After]], scored: Sequence[Sequence[Row]]) -> Row:
    """The figures for one way and number of batches."""
    last = scored[-1]
    accuracies = [metrics.reward_accuracy([row["margin"] for row in rows], _owners(rows)) for rows in scored]
    return {
        **interval(accuracies[-1]),
        "after_each": [interval(accuracy) for accuracy in accuracies],
        **_of_truth(users, after),
        "tokens_read": float(np.mean([sum(summary.read for summary in each) for each in after])),
        "summary_tokens": float(np.mean([each[-1].summary.tokens for each in after])),
        "users": len(set(_owners(last))),
        "pairs": len(last),
    }


def _of_truth(users: Sequence[Streamed], after: Sequence[Sequence[After]]) -> Row:
    """Drift and changed preferences, for users whose true preferences are known."""
    known = [(user, each) for user, each in zip(users, after, strict=True) if user.person.preferences is not None]
    streams = [_stream(user, each) for user, each in known]
    gone, total = zip(*map(lost, streams), strict=True) if streams else ((), ())
    drift = metrics.clustered_ratio(gone, total, (0.0, 1.0))
    waits = [wait for stream in streams for wait in until_stated(stream)]
    final = [stated_in_the_end(stream) for stream in streams]
    changed = sum(count for _, count in final)
    return {
        **interval(drift, "drift"),
        "until_stated": float(np.mean(waits)) if waits else None,
        "stated": sum(hits for hits, _ in final) / changed if changed else None,
    }


def _stream(user: Streamed, after: Sequence[After]) -> Stream:
    preferred = {attribute: value for attribute, value, *_ in user.person.preferences or ()}
    return Stream(
        named=[{(a, v) for a, v, *_ in named_attributes(each.summary.text)} for each in after],
        changed=[each.seen > user.change or not user.change for each in after],
        before=dict(user.before) if user.before is not None else preferred,
        preferred=preferred,
    )


def _difference(renewed: Sequence[Row], scratch: Sequence[Row]) -> metrics.Estimate:
    """Paired difference in reward accuracy, over pairs that are in both."""
    other = {(row["window"], row["target"]): row["margin"] for row in scratch}
    both = [row for row in renewed if (row["window"], row["target"]) in other]
    return metrics.paired_difference(
        metrics.outcomes([row["margin"] for row in both]),
        metrics.outcomes([other[row["window"], row["target"]] for row in both]),
        _owners(both),
        (-1.0, 1.0),
    )


def _owners(rows: Sequence[Row]) -> list[str]:
    return [row["user_id"] for row in rows]
