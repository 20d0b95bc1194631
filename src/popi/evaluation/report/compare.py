"""Runs side by side: their tables, the settings that differ, and accuracy against tokens over all of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi.evaluation.curves import Point
from popi.evaluation.figures import difference
from popi.evaluation.methods import METHODS
from popi.evaluation.report.files import read_json, read_lines, read_metrics
from popi.evaluation.report.grid import grid_of, transfers, win_rates
from popi.evaluation.report.table import Cell, Row, Table, estimated, number

UNTOLD = ("name", "root")
"""Settings in which runs differ anyway."""


@dataclass(frozen=True)
class Compared:
    """An evaluated run; or a cell of a grid, which stands for the run that it evaluated.

    Attributes:
        path: where its report lies.
        metrics: metrics.json.
        run: the run directory, with what was logged in training.
        results: the folder of rows (METHOD.jsonl), and of other result files.
        transfers: the metrics under other generators.
        tables: further results of the form that `tables.generic` shows.
    """

    path: Path
    metrics: Mapping[str, Any]
    run: Path
    results: Path
    transfers: Sequence[Mapping[str, Any]] = ()
    tables: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, path: Path) -> "Compared":
        """Raises RunError where there is no metrics.json of an evaluation."""
        metrics, grid = read_metrics(path), grid_of(path)
        if grid is not None:
            config, name = metrics["config"], path.resolve().parent.name
            run = Path(config["root"]) / config["name"]
            judged = win_rates(grid, name)
            return cls(path, metrics, run, path, transfers(path, grid), [judged] if judged else [])
        found = map(read_json, sorted(path.glob("evaluation/with-*/metrics.json")))
        return cls(path, metrics, path, path / "evaluation", [one for one in found if "generator" in one])

    @property
    def name(self) -> str:
        path = self.path.resolve()
        return path.name if self.run == self.path else f"{path.parents[2].name}/{path.parent.name}"

    def rows(self, method: str) -> list[dict[str, Any]]:
        rows = read_lines(self.results / f"{method}.jsonl")
        return [row for row in rows if row.get("missing") is None]


def names(runs: Sequence[Compared]) -> list[str]:
    """What the runs are called: folders of one name by more of their path."""
    short = [run.name for run in runs]
    if len(set(short)) == len(short):
        return short
    return [str(run.path) for run in runs]


def side_by_side(runs: Sequence[Compared]) -> Table:
    """Every method of every run, and its paired difference to the first run where the pairs are the same.

    Runs were tested on the same pairs where their settings of `data` are the same (in the nano world: and their seed),
    and so are the rows' users and targets.
    """
    called = names(runs)
    paired = [i > 0 and _same_users(runs[0], run) for i, run in enumerate(runs)]
    heads = ["Method"]
    for title, same in zip(called, paired, strict=True):
        heads += [f"{title}: accuracy, %", f"{title}: tokens"] + ([f"{title} less {called[0]}, points"] if same else [])
    methods = [name for name in METHODS if any(name in run.metrics["methods"] for run in runs)]
    rows = []
    for name in methods:
        cells: list[Cell] = []
        for run, same in zip(runs, paired, strict=True):
            entry = run.metrics["methods"].get(name)
            cells.append(estimated(entry and entry["reward_accuracy"], 100))
            cells.append(Cell(number(entry and entry["context_overhead_tokens"], 1)))
            if same:
                cells.append(_difference(runs[0], run, name))
        rows.append(Row(METHODS[name].label, cells, name.startswith("popi_")))
    notes = []
    if any(paired):
        notes.append(f"Differences are paired: accuracy on the same target pairs, less that of {called[0]}.")
    if not all(paired[1:]):
        told = ", ".join(title for title, same in zip(called[1:], paired[1:], strict=True) if not same)
        notes.append(f"Tested on other users than {called[0]}, so that nothing is paired: {told}.")
    return Table(heads, rows, "Runs side by side", notes)


def _difference(first: Compared, run: Compared, method: str) -> Cell:
    mine, theirs = run.rows(method), first.rows(method)
    if not mine or not theirs:
        return Cell("–")
    return estimated(difference(mine, theirs)["reward_accuracy"], 100, sign=True)


def _same_users(first: Compared, run: Compared) -> bool:
    def source(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        data = {key: value for key, value in metrics["config"]["data"].items() if key != "train_users"}
        return data, metrics["seed"] if data["source"] == "nano" else None  # the seed makes nano users alone

    if source(first.metrics) != source(run.metrics):
        return False
    keys = [[(r["user_id"], r["window"], r["target"]) for r in one.rows("no_personalization")] for one in (first, run)]
    return keys[0] == keys[1]


def settings(runs: Sequence[Compared]) -> Table | None:
    """The settings in which the runs differ; None where in none."""
    trees = [flat(run.metrics["config"]) for run in runs]
    keys = [key for key in dict.fromkeys(k for tree in trees for k in tree) if key not in UNTOLD]
    differ = [key for key in keys if len({_written(tree, key) for tree in trees}) > 1]
    if not differ:
        return None
    rows = [Row(key, [Cell(_written(tree, key)) for tree in trees]) for key in differ]
    return Table(["Setting", *names(runs)], rows, "Settings that differ", text_columns=1 + len(runs))


def _written(tree: Mapping[str, Any], key: str) -> str:
    return json.dumps(tree[key], ensure_ascii=False) if key in tree and tree[key] is not None else "unset"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def points(runs: Sequence[Compared]) -> list[Point]:
    """What the frontier shows: the first run's untrained methods, and each run's POPI methods, joined across the runs.

    A point of a run is called after its `length_target` where the runs differ in it, else after the run.
    """
    first = runs[0].metrics["methods"]
    found = [
        Point(METHODS[name].label.split(" (")[0], name, entry["context_overhead_tokens"], entry["reward_accuracy"])
        for name, entry in first.items()
        if not METHODS[name].order
    ]
    targets = [run.metrics["config"]["training"]["inference"].get("length_target") for run in runs]
    told = [f"target {target}" if target else "no target" for target in targets]
    called = told if len(set(targets)) == len(runs) > 1 else names(runs)
    kinds = [name for name in METHODS if name.startswith("popi_") and any(name in r.metrics["methods"] for r in runs)]
    for name in kinds:
        of = METHODS[name].label.removeprefix("POPI ")
        for run, label in zip(runs, called, strict=True):
            entry = run.metrics["methods"].get(name)
            if entry is not None:
                parts = ([of] if len(kinds) > 1 else []) + ([label] if len(runs) > 1 else [])
                text = " · ".join(parts) or METHODS[name].label
                found.append(Point(text, name, entry["context_overhead_tokens"], entry["reward_accuracy"], name))
    return found
