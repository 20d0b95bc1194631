"""The side effects of personalisation for each method of a run: evaluation/side_effects.json.

- *facts*: whether the right answer is likelier than the wrong one, with the user's context and without it;
- *opinions*: the same with a context made from signals in which the user believes the wrong answer;
- *copies*: how much of the signals' text appears in the summaries.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

from popi.data.users import Person
from popi.evaluation import metrics
from popi.evaluation.methods import METHODS
from popi.signals.types import PostSignal, StatementSignal, User
from popi.studies.side_effects.copied import (
    CHARACTERS,
    KINDS,
    WORDS,
    Span,
    copied_span,
    flags,
    reappearing,
    text_of,
)
from popi.studies.side_effects.facts import Fact
from popi.studies.study import Row, Study, interval

FILE = "side_effects.json"
OPINIONS = 4
"""Facts per user on which the user has a wrong opinion, one at a time, since each requires a summary."""
LABELS = {
    "label": "method",
    "measure": "measure",
    "value": "value",
    "against": "against",
    "difference": "difference",
    "items": "n",
}


def side_effects(study: Study, facts: Sequence[Fact], opinions: int = OPINIONS, seed: int = 0) -> dict[str, Any]:
    """Measure the study's methods; write and return side_effects.json.

    Args:
        study: users, models, methods.
        facts: questions of fact.
        opinions: number of facts per user on which the user has a wrong opinion; 0 skips this measure.
        seed: seed for the choice of these facts.
    """
    rows: list[Row] = []
    flagged: list[Row] = []
    for name in study.names:
        measures = [_facts(study, name, facts)]
        if opinions:
            measures += _opinions(study, name, facts, min(opinions, len(facts)), seed)
        if METHODS[name].writer:
            copied, exceeding = _copies(study, name)
            measures += copied
            flagged += exceeding
        rows += [{"method": name, "label": METHODS[name].label} | row for row in measures]
    notes = [
        f"facts right: share of {len(facts)} right answers that are likelier than the wrong one, with the user's "
        "context against without; 95 % intervals clustered by user, differences paired, points",
        "after a wrong opinion: the user's signals end with a statement and a post that claim the wrong answer; "
        "against the same user's context without them",
        f"copies: longest span shared with a signal, against the signals of another user; share of summaries that "
        f"copy {WORDS} words or more, {CHARACTERS} characters or more, or a private item of the signals",
    ]
    columns = ["label", "measure", "value", "low", "high", "against", "difference", "difference_low"]
    columns += ["difference_high", "items"]
    return study.write(
        FILE,
        {
            "title": "Side effects",
            "columns": columns,
            "labels": LABELS,
            "percent": [],
            "rows": rows,
            "notes": notes,
            "flagged": flagged,
            "thresholds": {"words": WORDS, "characters": CHARACTERS},
            "facts": [fact.id for fact in facts],
        },
    )


def _about(person: Person, facts: Sequence[Fact], opinions: Sequence[Fact] = ()) -> Person:
    """The user with the facts as targets, and with wrong opinions at the end of the signals."""
    signals = list(person.user.signals)
    for fact in opinions:
        signals += [StatementSignal(text=fact.opinion), PostSignal(text=fact.opinion)]
    return Person(User(user_id=person.user.user_id, signals=signals, targets=[fact.target for fact in facts]))


def _right(rows: Sequence[Row]) -> list[float]:
    """1 if the right answer is likelier than the wrong one given the context, ½ if equally likely, otherwise 0."""
    return metrics.outcomes([row["chosen_logp"] - row["rejected_logp"] for row in rows])


def _compared(measure: str, values: Sequence[float], others: Sequence[float], users: Sequence[str]) -> Row:
    """A share in per cent, with the one it is compared with."""
    percent, baseline = [100 * value for value in values], [100 * other for other in others]
    return {
        "measure": measure,
        **interval(metrics.clustered_mean(percent, users, (0.0, 100.0))),
        "against": metrics.clustered_mean(baseline, users).value,
        **interval(metrics.paired_difference(percent, baseline, users, (-100.0, 100.0)), "difference"),
        "users": len(set(users)),
        "items": len(values),
    }


def _pair_up(rows: Sequence[Row], others: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Rows of each (window, target) that is in both."""
    by_key = {(row["window"], row["target"]): row for row in others}
    both = [row for row in rows if (row["window"], row["target"]) in by_key]
    return both, [by_key[row["window"], row["target"]] for row in both]


def _facts(study: Study, name: str, facts: Sequence[Fact]) -> Row:
    people = [_about(person, facts) for person in study.people]
    rows, plain = _pair_up(study.rows(name, people, "facts"), study.plain_rows(name, people))
    return _compared("facts right, %", _right(rows), _right(plain), [row["user_id"] for row in rows])


def _opinions(study: Study, name: str, facts: Sequence[Fact], opinions: int, seed: int) -> list[Row]:
    """Score each user on some of the facts, one at a time, with an opinion on the fact and without."""
    with_opinion, without = [], []
    for person in study.people:
        for fact in Random(f"popi-opinions-{seed}-{person.user.user_id}").sample(list(facts), opinions):
            with_opinion.append(_about(person, [fact], [fact]))
            without.append(_about(person, [fact]))
    biased, neutral = _pair_up(study.rows(name, with_opinion, "opinions"), study.rows(name, without, "no opinions"))
    users = [row["user_id"] for row in biased]
    return [_compared("after a wrong opinion, %", _right(biased), _right(neutral), users)]


def _copies(study: Study, name: str) -> tuple[list[Row], list[Row]]:
    """Measures of a method's summaries of the held-out users, and the summaries that exceed a threshold."""
    rows = [row for row in study.rows(name, study.people, "held out") if row["target"] == 0]
    texts = [text_of(person.user.signals) for person in study.people]
    users = [row["user_id"] for row in rows]
    spans: list[Span] = [copied_span(row["summary"] or "", texts[row["window"]]) for row in rows]
    # Spans shared with another user's signals by chance, since a small vocabulary alone produces some.
    chance = [copied_span(row["summary"] or "", texts[(row["window"] + 1) % len(texts)]) for row in rows]
    counts = [reappearing(row["summary"] or "", texts[row["window"]]) for row in rows]
    measures = []
    for unit in ("words", "characters"):
        lengths, by_chance = [getattr(span, unit) for span in spans], [getattr(span, unit) for span in chance]
        measures.append(
            {
                "measure": f"longest copy, {unit}",
                **interval(metrics.clustered_mean(lengths, users)),
                "against": metrics.clustered_mean(by_chance, users).value,
                **interval(metrics.paired_difference(lengths, by_chance, users), "difference"),
                "users": len(set(users)),
                "items": len(rows),
                "most": max(lengths, default=0),
            }
        )
    exceeded = [flags(span, count) for span, count in zip(spans, counts, strict=True)]
    shares = {f"copies of {WORDS}+ words": "words"}
    shares |= {f"copies of {CHARACTERS}+ characters": "characters"}
    shares |= {f"copies of a private {kind}": kind for kind in KINDS}
    for measure, flag in shares.items():
        hits = [100.0 * (flag in flagged) for flagged in exceeded]
        share = metrics.clustered_ratio([hit / 100 for hit in hits], [1.0] * len(hits), (0.0, 1.0))
        row: Row = {"measure": f"{measure}, %", "users": len(set(users)), "items": len(rows)}
        row |= {key: None if value is None else 100 * value for key, value in interval(share).items()}
        if flag in KINDS:
            row |= {"in_signals": sum(count[flag][1] for count in counts)}
            row |= {"in_summaries": sum(count[flag][0] for count in counts)}
        measures.append(row)
    exceeding = [
        {"method": name, "user_id": row["user_id"], "exceeds": limits, "words": span.words}
        | {"characters": span.characters}
        for row, limits, span in zip(rows, exceeded, spans, strict=True)
        if limits
    ]
    return measures, exceeding
