"""The report of a grid's cell: its run's curves, other generators, win rates."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from popi.errors import RunError
from popi.evaluation.report import write_report, write_reports

ESTIMATE = {"value": 0.75, "low": 0.5, "high": 1.0}


def judged(**changes: Any) -> dict[str, Any]:
    row = {"judge": "truth", "against": "no_personalization", "win_rate": ESTIMATE, "missing_verdicts": {"error": 2}}
    return row | {"length_controlled_win_rate": ESTIMATE} | changes


@pytest.fixture
def grid(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grid of one benchmark with its own generator and another, on the run that lies beside it."""
    root = finished_run.parent
    monkeypatch.chdir(root)
    folder = root / "grid"
    for generator in ("own", "second"):
        cell = folder / "cells" / "nano" / generator
        shutil.copytree(finished_run / "evaluation", cell, ignore=shutil.ignore_patterns("with-*", "*.json"))
        metrics = json.loads((finished_run / "metrics.json").read_text())
        metrics["config"] |= {"root": ".", "name": finished_run.name}
        (cell / "metrics.json").write_text(json.dumps(metrics | {"generator": generator}))
    world = {"valid": ESTIMATE | {"value": 0.9}, "on_topic": ESTIMATE | {"value": 0.8}}
    world["seen_topics"] = {"win_rate": ESTIMATE | {"value": 0.6}}
    by = [judged(**world), judged(judge="llm")]
    rows = [
        {"benchmark": "nano", "generator": "own", "method": "raw_signals", "judged": by},
        {"benchmark": "nano", "generator": "second", "method": "popi_plug_and_play", "judged": [], "gain_kept": 0.5},
    ]
    (folder / "grid.json").write_text(json.dumps({"rows": rows}))
    return folder


def test_a_grid_has_a_report_for_each_benchmark(grid: Path, finished_run: Path) -> None:
    [written] = write_reports(grid)
    assert written == grid / "cells" / "nano" / "own" / "report.html"
    text = written.with_name("report.md").read_text()
    assert "## Win rates" in text and "| Raw signals in context | own | truth | No personalisation | 75.0 " in text
    table = text.split("## Win rates")[1].split("##")[0]
    heads, truth, llm = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
        if line.startswith("| ") and "---" not in line
    )
    at = [heads.index(head) for head in ("win rate, training topics, %", "valid, %", "on topic, %")]
    assert [truth[i].split()[0] for i in at] == ["60.0", "90.0", "80.0"] and [llm[i] for i in at] == ["–"] * 3
    assert "## Read by other generators" in text and "50 % kept" in text
    alone = write_report(finished_run).with_name("report.md").read_text()
    results = alone.split("## Every method")[1].split("##")[0]
    assert results in text, "the same figures as in the run's own report"
    html = written.read_text()
    assert html.count("<svg") == finished_run.joinpath("report.html").read_text().count("<svg"), "its run's curves, too"


def test_a_cell_stands_beside_a_run(grid: Path, finished_run: Path) -> None:
    text = write_reports(grid, [finished_run])[0].with_name("report.md").read_text()
    assert "grid/nano: accuracy" in text and f"{finished_run.name}: accuracy" in text


def test_what_is_refused(grid: Path, finished_run: Path) -> None:
    with pytest.raises(RunError, match=r"is a grid; name one of its cells for a report: .*cells/nano/own"):
        write_report(grid)
    shutil.copytree(grid / "cells" / "nano", grid / "cells" / "elix")
    rows = json.loads((grid / "grid.json").read_text())["rows"]
    (grid / "grid.json").write_text(json.dumps({"rows": [*rows, rows[0] | {"benchmark": "elix"}]}))
    assert [path.parents[1].name for path in write_reports(grid)] == ["nano", "elix"]
    with pytest.raises(RunError, match=r"several benchmarks; name one of its cells: .*nano/own, .*elix/own"):
        write_reports(grid, [finished_run])
    shutil.rmtree(grid / "cells")
    with pytest.raises(RunError, match="nothing of this grid was scored with a run's own generator"):
        write_reports(grid)


@pytest.mark.parametrize("content", ["{}", "[]", '{"rows": 1}', "{"])
def test_a_grid_json_that_is_none(grid: Path, content: str) -> None:
    (grid / "grid.json").write_text(content)
    for path in (grid, grid / "cells" / "nano" / "own"):
        with pytest.raises(RunError, match=r"grid\.json: .*; evaluate the"):
            write_reports(path)
