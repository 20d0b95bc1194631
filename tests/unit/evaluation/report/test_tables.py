import pytest

from popi.evaluation.report import tables
from popi.evaluation.report.table import Cell, Row, Table, estimated, number


def test_numbers_have_a_real_minus_and_no_negative_zero() -> None:
    assert [number(x, 1) for x in (-1.25, -0.04, 1234.5, None)] == ["−1.2", "0.0", "1,234.5", "–"]
    assert [number(x, 1, sign=True) for x in (0.5, -0.5, 0.04)] == ["+0.5", "−0.5", "0.0"]


def test_an_estimate_in_a_cell() -> None:
    assert estimated({"value": 0.956, "low": 0.938, "high": 0.974}, 100).whole == "95.6 [93.8 to 97.4]"
    assert estimated({"value": 0.5, "low": None, "high": None}, 100) == Cell("50.0")
    assert estimated({"value": None, "low": None, "high": None}) == estimated(None) == Cell("–")


def test_markdown_of_a_table() -> None:
    table = Table(["A|B", "n"], [Row("x*y", [Cell("1", "0 to 2\nkept")], True), Row("a\nb", [Cell("_")])])
    assert table.markdown().splitlines() == [
        "| A|B | n |",
        "| --- | ---: |",
        "| **x\\*y** | 1 \\[0 to 2; kept\\] |",
        "| a b | \\_ |",
    ]


def test_prompt_cost_is_told_for_a_thousand_prompts() -> None:
    entry = {
        "reward_accuracy": {"value": 0.9, "low": 0.8, "high": 1.0},
        "margin": {"value": 1.0, "low": 0.5, "high": 1.5},
        "intervals": {"context_overhead_tokens": {"value": 28.0, "low": 27.0, "high": 29.0}},
        "attribute_recall": None,
        "prompt_cost": {"value": 28 * 0.5e-6, "low": 27 * 0.5e-6, "high": 29 * 0.5e-6},
    }
    found = tables.results({"raw_signals": entry})
    assert found.heads[-1] == "Cost per thousand prompts"
    assert found.rows[0].cells[-1].whole == "0.0140 [0.0135 to 0.0145]"
    assert "Cost" not in " ".join(tables.results({"raw_signals": entry | {"prompt_cost": None}}).heads)


def test_any_result_file_is_a_table() -> None:
    content = {
        "title": "t",
        "columns": ["label", "signals", "value", "low", "high", "gain", "gain_low", "gain_high", "abstained", "users"],
        "labels": {"gain": "gain over 0"},
        "percent": ["value", "gain"],
        "notes": "one note",
        "rows": [
            {"method": "oracle", "label": "Oracle", "signals": 4, "value": 0.9, "low": 0.8, "high": 1.0}
            | {"gain": -0.05, "gain_low": -0.1, "gain_high": 0.0, "abstained": True, "users": 1200}
        ],
    }
    assert tables.is_generic(content) and not tables.is_generic({"users": []}) and not tables.is_generic([])
    found = tables.generic(content)
    assert found.heads == ["label", "signals", "value, %", "gain over 0, %", "abstained", "users"]
    assert [cell.whole for cell in found.rows[0].cells] == [
        "4",
        "90.0 [80.0 to 100.0]",
        "−5.0 [−10.0 to 0.0]",
        "True",
        "1,200",
    ]
    assert found.notes == ["one note"] and found.text_columns == 1
    bare = tables.generic({"columns": ["effect"], "rows": [{"effect": "x", "value": -0.002}]})
    assert bare.heads == ["effect", "value"] and bare.rows[0].cells == [Cell("−0.002")]


@pytest.mark.parametrize("way", ["world", "fitted"])
def test_where_the_loss_comes_from(way: str) -> None:
    def value(x: float) -> dict:
        return {"value": x, "low": None, "high": None}

    terms = {"beta": 0.1, way: {"loss": value(0.3), "generator_error": value(0.2), "left_unsaid": value(0.1)}}
    metrics = {"methods": {"oracle": {"loss_terms": terms}}, "loss_of_the_best": {"signals": value(0.01)}}
    found = tables.loss_terms(metrics)
    assert found is not None and [cell.text for cell in found.rows[0].cells] == ["0.300", "0.200", "0.100"]
    assert any("0.010 given signals" in note for note in found.notes) == (way == "world")
    assert tables.loss_terms({"methods": {"oracle": {}}}) is None
