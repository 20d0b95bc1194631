"""grid.json: a grid's figures, one row per benchmark, generator and method, from the cells' files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from popi.evaluation.grid.cells import Cell
from popi.evaluation.grid.judged import applies, folder_of, missing, pairs_of, read_judged
from popi.evaluation.grid.settings import OWN, GridConfig
from popi.evaluation.judge.question import CHECKED, SEEN
from popi.evaluation.methods import METHODS
from popi.evaluation.metrics import gain_kept
from popi.runs.provenance import commit, versions

Row = dict[str, Any]
FIGURES = ("win_rate", "length_controlled_win_rate", "agreement", "judged", "comparisons", "missing_verdicts")
"""What a row copies from judge.json."""


def grid_result(grid: GridConfig, cells: Sequence[Cell], failed: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The contents of grid.json, from the cells' files so far.

    Args:
        grid: the grid's settings.
        cells: the grid's cells; one without files has rows without figures.
        failed: cells that failed, with the reason.
    """
    rows = [row for cell in cells for row in _rows(cell, grid)]
    _add_gain(rows)
    return {
        "name": grid.name,
        "commit": commit(),
        "versions": versions(),
        "config": grid.model_dump(mode="json"),
        "rows": rows,
        "skipped_methods": [
            {"benchmark": cell.benchmark.name, "generator": cell.name} | cell.skipped_methods for cell in cells
        ],
        "failed": list(failed),
        "missing": sum(row["missing"] + row["missing_verdicts"] for row in rows),
    }


def _rows(cell: Cell, grid: GridConfig) -> list[Row]:
    measured: dict[str, Any] = {}
    path = cell.folder / "metrics.json"
    if cell.scored and path.is_file():
        measured = json.loads(path.read_text(encoding="utf-8"))["methods"]
    rows = []
    for name in cell.methods:
        keys = cell.job.expected(name)
        row: Row = {
            "benchmark": cell.benchmark.name,
            "generator": cell.name,
            "model": cell.models.untrained,
            "method": name,
            "label": METHODS[name].label,
            "scored": cell.scored,
            "n_users": len({cell.benchmark.people[window].user.user_id for window, _ in keys}),
            "n_pairs": len(keys),
            "missing": 0,
            "reward_accuracy": None,
            "margin": None,
            "context_overhead_tokens": None,
        }
        row |= measured.get(name, {})
        row["judged"] = _judged(cell, grid, name)
        row["missing_verdicts"] = sum(map(missing, row["judged"]))
        rows.append(row)
    return rows


def _judged(cell: Cell, grid: GridConfig, method: str) -> list[Row]:
    """The method's win rates by judge and by the other method."""
    comparisons = []
    for judge in (judge for judge in grid.judges if applies(judge, cell)):
        for pair in pairs_of(judge, cell.answering):
            result = read_judged(folder_of(cell.folder, pair, judge.name) / "judge.json") if pair[0] == method else None
            if result is not None:
                entry = {"judge": judge.name, "against": pair[1]} | {name: result[name] for name in FIGURES}
                entry |= {name: result[name] for name in CHECKED if name in result}
                if SEEN in result:
                    entry[SEEN] = {name: result[SEEN][name] for name in (*FIGURES, *CHECKED) if name in result[SEEN]}
                comparisons.append(entry)
    return comparisons


def _add_gain(rows: Sequence[Row]) -> None:
    """Add to other generators' rows the share of the own generator's gain over no personalisation that they retain."""
    own_accuracy = {(row["benchmark"], row["method"]): _accuracy(row) for row in rows if row["generator"] == OWN}
    for row in rows:
        accuracy, own = _accuracy(row), own_accuracy.get((row["benchmark"], row["method"]))
        if row["generator"] != OWN and METHODS[row["method"]].has_summary:
            row["gain_kept"] = None if accuracy is None or own is None else gain_kept(accuracy, own)


def _accuracy(row: Row) -> float | None:
    estimate = row["reward_accuracy"]
    value: float | None = None if estimate is None else estimate["value"]
    return value


def first_judged(row: Mapping[str, Any]) -> Row | None:
    """The comparison that a table shows for a row: the first judge's, preferably against no personalisation."""
    judged = sorted(row["judged"], key=lambda one: one["against"] != "no_personalization")
    return judged[0] if judged else None
