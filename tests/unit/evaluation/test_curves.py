import re

from popi.evaluation import curves
from popi.evaluation.curves import Point


def known(value: float) -> dict[str, float | None]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def test_frontier_names_every_point_and_joins_those_of_a_line() -> None:
    points = [
        Point("Raw signals", "raw_signals", 390.0, known(0.91)),
        Point("No personalisation", "no_personalization", 0.0, known(0.5)),
        *(Point(f"target {t}", "popi_plug_and_play", t, known(0.8 + t / 200), "popi") for t in (16.0, 8.0, 12.0)),
    ]
    svg = curves.frontier(points)
    for text in ("Raw signals", "target 8.0", "target 12.0", "target 16.0", "↓ No personalisation: 50.0 %, no tokens"):
        assert f">{text}<" in svg
    assert ">100<" in svg and ">10<" in svg  # a logarithmic axis
    assert curves.frontier([Point("plain", "no_personalization", 0.0, known(0.5))]) == ""
    near = [*points[:1], Point("plain", "no_personalization", 0.0, known(0.85))]
    assert "↓" not in curves.frontier(near) and ">plain<" in curves.frontier(near)


def test_reliability_leaves_out_bins_of_few_pairs() -> None:
    def method(pairs: int) -> dict:
        bins = [{"pairs": n, "confidence": c, "accuracy": known(c)} for n, c in ((50, 0.6), (pairs, 0.7), (50, 0.8))]
        return {"raw_signals": {"calibration": {"reliability": bins}}}

    marks = [len(re.findall("<use ", curves.reliability(method(pairs)))) for pairs in (10, 9)]
    assert marks[0] == marks[1] + 1
    bare = {"pairs": 0, "confidence": None, "accuracy": {"value": None}}
    assert curves.reliability({"raw_signals": {"calibration": {"reliability": [bare]}}}) == ""


def test_terms_are_told_in_numbers_and_by_hatching() -> None:
    found = {"loss": known(0.3), "generator_error": known(0.25), "left_unsaid": known(0.05)}
    methods = {"oracle": {"loss_terms": {"world": found}}, "raw_signals": {}}
    svg = curves.loss_terms(methods, "world")
    assert ">0.05 + 0.25<" in svg and "url(#terms-" in svg and "Raw signals" not in svg
    assert curves.loss_terms(methods, "fitted") == ""


def test_evidence_has_a_curve_for_each_method() -> None:
    rows = [{"method": m, "signals": k, **known(0.5 + k / 20)} for m in ("oracle", "raw_signals") for k in (0, 1, 8)]
    rows += [{"method": "untrained_summary", "signals": 0, "value": None}]
    svg = curves.evidence(rows, "signals", "method")
    assert all(f">{k}<" in svg for k in (0, 1, 8)) and ">signals of a user<" in svg
    assert "Oracle (true preferences)" in svg and "Untrained" not in svg
    assert curves.evidence([], "signals") == ""
