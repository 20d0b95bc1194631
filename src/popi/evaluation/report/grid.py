"""A grid's contribution to a report: its cells, other generators' figures, and win rates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from popi.errors import RunError
from popi.evaluation.grid.settings import OWN
from popi.evaluation.judge.question import CHECKED, SEEN
from popi.evaluation.report.files import read_json

GRID = "grid.json"
RATES = ("win_rate", "length_controlled_win_rate")


def read_grid(grid_dir: Path) -> Mapping[str, Any]:
    """Read a grid's grid.json.

    Raises:
        RunError: the file does not exist, can't be read, or was not written by `popi evaluate GRID.toml`.
    """
    grid = read_json(grid_dir / GRID)
    if not isinstance(grid, dict) or not isinstance(grid.get("rows"), list):
        raise RunError(f"{grid_dir / GRID}: not written by popi evaluate; evaluate the grid again")
    return grid


def own_cells(grid_dir: Path) -> list[Path]:
    """The scored cells of runs with their own generator, in the grid's order."""
    names = dict.fromkeys(row["benchmark"] for row in read_grid(grid_dir)["rows"] if row["generator"] == OWN)
    cells = (grid_dir / "cells" / name / OWN for name in names)
    return [cell for cell in cells if (cell / "metrics.json").is_file()]


def grid_of(path: Path) -> Mapping[str, Any] | None:
    """The grid.json of the grid that a folder is a cell of; None if it is not a cell."""
    path = path.resolve()
    if len(path.parents) < 3 or path.parents[1].name != "cells":
        return None
    grid_dir = path.parents[2]
    return read_grid(grid_dir) if (grid_dir / GRID).is_file() else None


def transfers(cell: Path, grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Metrics of the same benchmark with other generators, each with its retained shares of the gain."""
    metrics = []
    for path in sorted(cell.resolve().parent.glob("*/metrics.json")):
        name = path.parent.name
        if name == OWN:
            continue
        rows = [row for row in grid["rows"] if (row["benchmark"], row["generator"]) == (path.parents[1].name, name)]
        gains = {row["method"]: row["gain_kept"] for row in rows if row.get("gain_kept") is not None}
        metrics.append({**read_json(path), "generator": name, "gain_kept": gains})
    return metrics


def win_rates(grid: Mapping[str, Any], benchmark: str) -> dict[str, Any] | None:
    """Win rates as a table in the form that `tables.generic` shows; None if nothing was judged."""
    rows = []
    for row in grid["rows"]:
        for one in row["judged"] if row["benchmark"] == benchmark else ():
            entry = {"method": row["method"], "generator": row["generator"]}
            entry |= {"judge": one["judge"], "against": one["against"]}
            shown = {name: one[name] for name in (*RATES, *CHECKED) if name in one}
            if SEEN in one:
                shown[SEEN] = one[SEEN]["win_rate"]
            for name, estimate in shown.items():
                entry |= {name: estimate["value"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
            rows.append(entry | {"missing": sum(one["missing_verdicts"].values())})
    if not rows:
        return None
    names = [name for name in (*RATES, SEEN, *CHECKED) if any(name in row for row in rows)]
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    notes = ["Both orders are judged, a tie counts half; 95 % intervals clustered by user (docs/judging.md)."]
    if SEEN in names:
        notes.append(
            "In the nano world a win needs a valid response on topic; held-out users' own prompts are on topics unseen "
            "in training, and the win rate on training topics is shown next to theirs."
        )
    return {
        "title": "Win rates",
        "columns": ["method", "generator", "judge", "against", *ends, "missing"],
        "labels": {"length_controlled_win_rate": "length-controlled", SEEN: "win rate, training topics"},
        "percent": names,
        "rows": rows,
        "notes": notes,
    }
