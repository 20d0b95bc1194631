"""abstention.json: users without evidence, checked summaries, and nothing else changed."""

import json
import math

import pytest

from popi.studies.evidence import abstention as module
from popi.studies.evidence.abstention import abstention
from popi.studies.study import Study


def test_abstention_json(run, tiny) -> None:
    study = Study.open(run, models=tiny(run), methods=["untrained_summary", "popi_alternating"], summaries_only=True)
    result = abstention(study, no_evidence=2)
    assert json.loads((run.path / "evaluation" / "abstention.json").read_text()) == result
    kinds = [(r["kind"], r["check"], r["users"]) for r in result["rows"] if r["method"] == "untrained_summary"]
    assert kinds == [
        ("without signals", "none", 3),
        ("without evidence", "none", 2),
        ("without evidence", "own pairs", 2),
        ("held out", "none", 3),
        ("held out", "own pairs", 3),
    ]
    first = result["rows"][0]
    assert (first["abstained"], first["value"], first["gain"], first["gain_low"], first["reward"]) == (1, 0.5, 0, 0, 0)
    for r in result["rows"]:
        assert r["gain"] == pytest.approx(r["value"] - 0.5)


def test_the_check_decides_by_the_users_own_pairs(run, tiny) -> None:
    study = Study.open(run, models=tiny(run), methods=["untrained_summary"], summaries_only=True)
    whole = {r["kind"]: r for r in abstention(study, no_evidence=2)["rows"] if r["check"] == "none"}
    none = {r["kind"]: r for r in abstention(study, no_evidence=2, threshold=math.inf)["rows"] if r["check"] != "none"}
    every = {
        r["kind"]: r for r in abstention(study, no_evidence=2, threshold=-math.inf)["rows"] if r["check"] != "none"
    }
    for kind in ("without evidence", "held out"):
        assert (none[kind]["abstained"], none[kind]["value"], none[kind]["reward"]) == (1.0, 0.5, 0.0)
        assert every[kind] == whole[kind] | {"check": "own pairs"}


def test_a_trained_generator_is_compared_with_its_own_plain_prompt(run, tiny, monkeypatch) -> None:
    """Its margins against the base are not what a summary adds."""
    study = Study.open(run, models=tiny(run), methods=["popi_alternating"], summaries_only=True)
    monkeypatch.setattr(study, "rows", lambda name, people, what: [row(w, 7.0) for w in range(len(people))])
    monkeypatch.setattr(study, "plain_rows", lambda name, people: [row(w, 6.0) for w in range(len(people))])
    seen = []
    monkeypatch.setattr(module, "log_ratio", lambda margins, beta: seen.append(margins) or 1.0)
    assert module._passed(study, "popi_alternating", "held out", study.people, 0.0) == [True] * 3
    assert {h for margins in seen for h in margins} == {1.0} and len(seen) == 3


def row(window: int, margin: float) -> dict:
    return {"window": window, "target": 0, "margin": margin}


def test_without_the_check_nothing_is_left_out(run, tiny) -> None:
    study = Study.open(run, models=tiny(run), methods=["untrained_summary"], test_users=1, summaries_only=True)
    assert {r["check"] for r in abstention(study, check=False)["rows"]} == {"none"}
