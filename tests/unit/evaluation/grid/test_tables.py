"""grid.json as a table, a page and a plot; and what a grid's settings may change into."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from popi.evaluation.grid.run import changes
from popi.evaluation.grid.show import grid_table, markdown
from popi.evaluation.grid.transfer import MARKS, transfer_figure, write_transfer
from popi.evaluation.methods import METHODS


def estimate(value: float | None, reach: float = 0.02) -> dict[str, float | None]:
    low, high = (None, None) if value is None else (value - reach, value + reach)
    return {"value": value, "low": low, "high": high}


def row(generator: str, method: str, accuracy: float | None, win: float | None = None, **more: Any) -> dict[str, Any]:
    judged = {"judge": "j", "against": "no_personalization", "win_rate": estimate(win)}
    return {
        "benchmark": "b|1",
        "generator": generator,
        "method": method,
        "label": METHODS[method].label,
        "reward_accuracy": None if accuracy is None else estimate(accuracy),
        "margin": None if accuracy is None else estimate(1.0),
        "context_overhead_tokens": None if accuracy is None else 12.25,
        "missing": 0,
        "missing_verdicts": 0,
        "judged": [] if win is None else [judged],
    } | more


ROWS = [
    row("own", "no_personalization", 0.5),
    row("own", "raw_signals", 0.9, 0.7),
    row("own", "popi_plug_and_play", 0.95, 0.8),
    row("other", "raw_signals", 0.8),
    row("other", "popi_plug_and_play", 0.9, gain_kept=0.89),
    row("chat", "raw_signals", None, 0.6),
    row("chat", "popi_plug_and_play", None, 0.66, missing_verdicts=3),
]
RESULT = {"name": "g", "commit": "0123456789abcdef-dirty", "rows": ROWS, "failed": []}


def test_the_table_fits_a_terminal() -> None:
    text = StringIO()
    Console(file=text, width=80).print(grid_table(RESULT))
    lines = text.getvalue().splitlines()
    assert any("POPI plug-and-play" in line and "95.0 ± 2.0" in line and "80.0 ± 2.0" in line for line in lines)
    assert [line.strip() for line in lines if "b|1," in line] == ["b|1, own", "b|1, other", "b|1, chat"]
    [last] = [line for line in lines if "66.0" in line]
    assert last.split()[-1] == "3" and "–" in last


def test_the_page_has_every_row_and_what_was_not_done() -> None:
    page = markdown(RESULT | {"failed": [{"benchmark": "b", "generator": "gone", "reason": "no such model"}]})
    assert page.count("| b\\|1 |") == len(ROWS) + 1 and "0123456789ab-dirty" in page
    assert "| b\\|1 | other | POPI plug-and-play | 90.0 ± 2.0 | 1.00 ± 0.02 | 12.2 | – |  |" in page
    assert "| 0.89 |" in page and "- b, gone: no such model" in page


def test_the_plot_tells_methods_apart_without_colour(tmp_path: Path) -> None:
    figure = transfer_figure(ROWS)
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["b|1: reward accuracy", "b|1: win rate"]
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert names == [["own", "other"], ["own", "chat"]]
    assert len({(marker, filled) for marker, _, filled in MARKS.values()}) == len(MARKS)
    marks = [line for line in figure.axes[0].lines if line.get_marker() not in ("", "None", None)]
    assert sorted(float(line.get_xdata()[0]) for line in marks) == [0.8, 0.9, 0.9, 0.95]
    written = write_transfer(ROWS, tmp_path)
    assert [path.name for path in written] == ["transfer.svg", "transfer.png"]
    assert b"POPI plug-and-play" in written[0].read_bytes() and written[1].read_bytes().startswith(b"\x89PNG")
    before = written[0].read_bytes()
    assert write_transfer(ROWS, tmp_path)[0].read_bytes() == before


def test_one_generator_makes_no_transfer_plot(tmp_path: Path) -> None:
    assert write_transfer(ROWS[:3], tmp_path) == [] and not list(tmp_path.iterdir())


def saved(**more: Any) -> dict[str, Any]:
    entry = {"name": "x", "model": "m", "key_env": "A", "concurrency": 8, "input_price": None}
    tree = {"name": "g", "benchmarks": [{"name": "b", "run": "r"}], "judges": [], "methods": ["oracle", "fspo"]}
    return tree | {"generators": [entry], "max_users": None} | more


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (saved(), []),
        (saved(name="other", methods=["fspo", "oracle"]), []),
        (saved(generators=[{"name": "x", "model": "m", "key_env": "B", "concurrency": 1, "input_price": 2.0}]), []),
        (saved(generators=[*saved()["generators"], {"name": "y", "model": "n"}], methods=["fspo", "oracle", "x"]), []),
        (saved(max_users=3), ["max_users: None -> 3"]),
        (saved(generators=[{"name": "x", "model": "n"}]), ["generators.x.model: 'm' -> 'n'"]),
        (saved(generators=[]), ["generators.x.model: 'm' -> None", "generators.x.name: 'x' -> None"]),
        (saved(methods=["oracle"]), ["methods: ['fspo', 'oracle'] -> ['oracle']"]),
        (saved(benchmarks=[{"name": "b", "run": "s"}]), ["benchmarks.b.run: 'r' -> 's'"]),
    ],
)
def test_what_is_there_may_not_change_and_more_may_come(given: dict[str, Any], told: list[str]) -> None:
    found = changes(saved(), given)
    assert [line for line in found if ".name" not in line] == [line for line in told if ".name" not in line]
