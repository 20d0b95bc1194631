"""evidence.json: the same pairs at every number of signals, paired with none."""

import json

import pytest

from popi.studies.evidence.curve import evidence, figures
from popi.studies.study import Study


def row(window: int, target: int, margin: float, tokens: int | None = 3) -> dict:
    return {
        "user_id": f"u{window}",
        "window": window,
        "target": target,
        "margin": margin,
        "summary_tokens": tokens,
        "overhead_tokens": 5,
        "abstained": margin == 0,
    }


def test_figures_by_hand() -> None:
    rows = [row(0, 0, 1.0), row(0, 1, 1.0), row(1, 0, 0.0), row(1, 1, -2.0)]  # 1, 1, ½, 0
    none = [row(0, 0, 0.0), row(0, 1, 0.0), row(1, 0, 0.0)]  # one pair has no log-probs without signals
    found = figures(rows, none)
    assert found["value"] == pytest.approx(2.5 / 4)
    assert found["gain"] == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert found["gain_low"] <= found["gain"] <= found["gain_high"] <= 1
    assert (found["margin"], found["abstained"], found["users"], found["pairs"]) == (0.0, 0.25, 2, 4)
    assert (found["summary_tokens"], found["overhead_tokens"]) == (3.0, 5.0)
    assert figures([row(0, 0, 1.0, None)], [row(0, 0, 1.0, None)])["abstained"] is None


def test_evidence_json(run, tiny) -> None:
    models = tiny(run)
    result = evidence(Study.open(run, models=models), [0, 2])
    assert json.loads((run.path / "evaluation" / "evidence.json").read_text()) == result
    assert [(r["method"], r["signals"], r["signals_mean"]) for r in result["rows"][2:4]] == [
        ("untrained_summary", 0, 0.0),
        ("untrained_summary", 2, 2.0),
    ]
    assert {"title", "columns", "rows", "notes"} <= set(result) and result["order"] == "given"
    for r in result["rows"]:
        assert set(result["columns"]) <= set(r) and (r["users"], r["pairs"]) == (3, 6)
        if r["signals"] == 0:
            # without signals nobody is personalised: an untrained generator stays its own reference
            assert (r["gain"], r["overhead_tokens"]) == (0, 0)
            assert r["abstained"] == (None if r["method"] == "raw_signals" else 1.0)
            if r["method"] != "popi_alternating":
                assert (r["value"], r["margin"]) == (0.5, 0.0)
    asked = len(models.asked)
    assert evidence(Study.open(run, models=models), [0, 2])["rows"] == result["rows"]
    assert len(models.asked) == asked


def test_all_signals_by_default(run, tiny) -> None:
    result = evidence(Study.open(run, models=tiny(run), methods=["raw_signals"], test_users=1))
    assert [r["signals"] for r in result["rows"]] == [0, 1, 2, 4, 8, 9]
