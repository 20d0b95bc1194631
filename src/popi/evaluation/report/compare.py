"""Runs side by side: their tables, the settings that differ, and accuracy against tokens."""

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

UNSHOWN = ("name", "root")
"""Settings that always differ between runs."""


@dataclass(frozen=True)
class Compared:
    """An evaluated run, or a cell of a grid, which stands for the run that it evaluated.

    Attributes:
        path: the folder of its report.
        metrics: the contents of metrics.json.
        run: the run directory, with the training log.
        results: the folder of rows (METHOD.jsonl) and other result files.
        transfers: metrics with other generators.
        tables: further results in the form that `tables.generic` shows.
    """

    path: Path
    metrics: Mapping[str, Any]
    run: Path
    results: Path
    transfers: Sequence[Mapping[str, Any]] = ()
    tables: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def read(cls, path: Path) -> "Compared":
        """Read a run or cell. Raises RunError if it has no metrics.json of an evaluation."""
        metrics, grid = read_metrics(path), grid_of(path)
        if grid is not None:
            config, name = metrics["config"], path.resolve().parent.name
            run = Path(config["root"]) / config["name"]
            judged = win_rates(grid, name)
            return cls(path, metrics, run, path, transfers(path, grid), [judged] if judged else [])
        others = map(read_json, sorted(path.glob("evaluation/with-*/metrics.json")))
        return cls(path, metrics, path, path / "evaluation", [other for other in others if "generator" in other])

    @property
    def name(self) -> str:
        path = self.path.resolve()
        return path.name if self.run == self.path else f"{path.parents[2].name}/{path.parent.name}"

    def rows(self, method: str) -> list[dict[str, Any]]:
        rows = read_lines(self.results / f"{method}.jsonl")
        return [row for row in rows if row.get("missing") is None]


def names(runs: Sequence[Compared]) -> list[str]:
    """The runs' names; full paths if folder names are not unique."""
    short = [run.name for run in runs]
    if len(set(short)) == len(short):
        return short
    return [str(run.path) for run in runs]


def side_by_side(runs: Sequence[Compared]) -> Table:
    """Every method of every run, with its paired difference from the first run if the pairs are the same.

    The pairs are the same if the runs' `data` settings (and, for the nano world, seeds) and the rows' users and
    targets are.
    """
    titles = names(runs)
    paired = [i > 0 and _same_users(runs[0], run) for i, run in enumerate(runs)]
    heads = ["Method"]
    for title, same in zip(titles, paired, strict=True):
        heads += [f"{title}: accuracy, %", f"{title}: tokens"]
        heads += [f"{title} minus {titles[0]}, points"] if same else []
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
        notes.append(f"Differences are paired: accuracy on the same target pairs, minus that of {titles[0]}.")
    if not all(paired[1:]):
        unpaired = ", ".join(title for title, same in zip(titles[1:], paired[1:], strict=True) if not same)
        notes.append(f"Evaluated on different users than {titles[0]}, so differences are not paired: {unpaired}.")
    return Table(heads, rows, "Runs side by side", notes)


def _difference(first: Compared, run: Compared, method: str) -> Cell:
    rows, others = run.rows(method), first.rows(method)
    if not rows or not others:
        return Cell("–")
    return estimated(difference(rows, others)["reward_accuracy"], 100, sign=True)


def _same_users(first: Compared, run: Compared) -> bool:
    def source(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        data = {key: value for key, value in metrics["config"]["data"].items() if key != "train_users"}
        return data, metrics["seed"] if data["source"] == "nano" else None  # only nano users depend on the seed

    if source(first.metrics) != source(run.metrics):
        return False
    keys = [[(r["user_id"], r["window"], r["target"]) for r in one.rows("no_personalization")] for one in (first, run)]
    return keys[0] == keys[1]


def settings(runs: Sequence[Compared]) -> Table | None:
    """The settings in which the runs differ; None if there are none."""
    trees = [flat(run.metrics["config"]) for run in runs]
    keys = [key for key in dict.fromkeys(k for tree in trees for k in tree) if key not in UNSHOWN]
    differ = [key for key in keys if len({_written(tree, key) for tree in trees}) > 1]
    if not differ:
        return None
    rows = [Row(key, [Cell(_written(tree, key)) for tree in trees]) for key in differ]
    return Table(["Setting", *names(runs)], rows, "Settings that differ", text_columns=1 + len(runs))


def _written(tree: Mapping[str, Any], key: str) -> str:
    return json.dumps(tree[key], ensure_ascii=False) if key in tree and tree[key] is not None else "unset"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def points(runs: Sequence[Compared]) -> list[Point]:
    """The frontier's points: the first run's untrained methods, and each run's POPI methods, joined across the runs.

    Points are labelled with their run's `length_target` if all runs differ in it, else with the run's name.
    """
    first = runs[0].metrics["methods"]
    shown = [
        Point(METHODS[name].label.split(" (")[0], name, entry["context_overhead_tokens"], entry["reward_accuracy"])
        for name, entry in first.items()
        if not METHODS[name].order
    ]
    targets = [run.metrics["config"]["training"]["inference"].get("length_target") for run in runs]
    by_target = [f"target {target}" if target else "no target" for target in targets]
    labels = by_target if len(set(targets)) == len(runs) > 1 else names(runs)
    kinds = [name for name in METHODS if name.startswith("popi_") and any(name in r.metrics["methods"] for r in runs)]
    for name in kinds:
        of = METHODS[name].label.removeprefix("POPI ")
        for run, label in zip(runs, labels, strict=True):
            entry = run.metrics["methods"].get(name)
            if entry is not None:
                parts = ([of] if len(kinds) > 1 else []) + ([label] if len(runs) > 1 else [])
                text = " · ".join(parts) or METHODS[name].label
                shown.append(Point(text, name, entry["context_overhead_tokens"], entry["reward_accuracy"], name))
    return shown
