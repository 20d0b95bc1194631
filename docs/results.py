"""A Markdown table of runs' metrics.json files, one row per method, with the mean over runs and each run; or a plot.

python docs/results.py runs/nano-0 runs/nano-1 runs/nano-2
python docs/results.py --grid runs/nano_grid
python docs/results.py --personal runs/smollm2_persona     # after benchmarks/own_or_another.py
python docs/results.py runs/nano_grid/cells/nano/own --picture docs/images/results.svg
"""

import argparse
import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

from popi.evaluation import plots
from popi.evaluation.grid.result import first_judged
from popi.evaluation.grid.settings import OWN
from popi.evaluation.grid.show import with_reach
from popi.evaluation.methods import METHODS

STYLE = Path(plots.__file__).with_name("report") / "page.css"


def cell(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    each = f" ({' '.join(f'{value:.{digits}f}' for value in known)})" if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{each}"


def picture(run: dict[str, Any]) -> str:
    """Reward accuracy against tokens as a standalone SVG: the report's plot in the report's colours."""
    light, dark = re.findall(r":root\s*\{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)[:2]
    style = f"<style>:root{{{light}}} @media (prefers-color-scheme: dark){{:root{{{dark}}}}}</style>"
    svg = plots.accuracy_by_overhead(run["methods"]).replace(' aria-hidden="true" focusable="false"', "", 1)
    return re.sub(r"(<svg[^>]*>)", rf'\1{style}<rect width="100%" height="100%" fill="var(--card)"/>', svg, count=1)


def grid_table(folder: Path) -> list[str]:
    """The rows of a grid whose generator is the cell's own, as Markdown."""
    result = json.loads((folder / "grid.json").read_text())
    lines = ["| Method | Reward accuracy | Tokens added | Win rate against no personalisation | Pairs |"]
    lines.append("|---|---|---|---|---|")
    for row in (row for row in result["rows"] if row["generator"] == OWN):
        accuracy, tokens, judged = row["reward_accuracy"], row["context_overhead_tokens"], first_judged(row)
        reach = "–" if accuracy is None else f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
        win = "–" if judged is None else with_reach(judged["win_rate"], 1, 3)
        shown = "–" if tokens is None else f"{tokens:.1f}"
        lines.append(
            f"| {METHODS[row['method']].label} | {reach} | {shown} | {win} | {row['n_pairs'] - row['missing']} |"
        )
    return [*lines, "", f"commit {result['commit']}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--grid", type=Path, help="print the table of a grid instead")
    parser.add_argument(
        "--personal", type=Path, help="print a run's table of own against another user's summaries instead"
    )
    parser.add_argument(
        "--picture", type=Path, help="write the first run's plot of accuracy against tokens to this file"
    )
    options = parser.parse_args()
    if options.grid:
        print("\n".join(grid_table(options.grid)))
        return
    if options.personal:
        print("\n".join(personal_table(options.personal)))
        return
    if options.picture:
        options.picture.parent.mkdir(exist_ok=True)
        options.picture.write_text(
            picture(json.loads((options.runs[0] / "metrics.json").read_text())), encoding="utf-8"
        )
        return
    print("\n".join(runs_table(options.runs)))


def runs_table(folders: list[Path]) -> list[str]:
    """One row per method, with the mean over runs and each run, as Markdown; a separate column for the accuracy on
    held-out preferences, if a run reports it.
    """
    runs: list[dict[str, Any]] = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    held_out = any("held_out" in entry for run in runs for entry in run["methods"].values())
    columns = ["Reward accuracy", *(["On held-out preferences"] if held_out else []), "Tokens added"]
    columns += ["Attribute precision", "Attribute recall"]
    lines = [f"| Method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, method in METHODS.items():
        rows = [run["methods"][name] for run in runs if name in run["methods"]]
        if not rows:
            continue
        cells = [accuracy(rows)]
        if held_out:
            cells.append(accuracy([row["held_out"] for row in rows]))
        cells.append(cell([row["context_overhead_tokens"] for row in rows], 1))
        cells += [cell([row[f"attribute_{k}"] for row in rows], 2) for k in ("precision", "recall")]
        lines.append(f"| {method.label} | {' | '.join(cells)} |")
    return lines


def personal_table(run: Path) -> list[str]:
    """Reward accuracy under the user's own context, another user's, and the difference, as Markdown."""
    figures = json.loads((run / "evaluation" / "own_or_another.json").read_text())
    methods = json.loads((run / "metrics.json").read_text())["methods"]
    lines = ["| Method | Tokens added | Own | Another's | Difference, points |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        if name not in methods:
            continue
        row = figures.get(name, {"own": methods[name]["reward_accuracy"]})
        cells = [f"{methods[name]['context_overhead_tokens']:.1f}"]
        for column, scale, digits in (("own", 1, 3), ("another", 1, 3), ("difference", 100, 1)):
            figure = row.get(column)
            text = "–"
            if figure is not None:
                value, low, high = (scale * (figure[key] or 0) for key in ("value", "low", "high"))
                text = f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            cells.append(text)
        lines.append(f"| {method.label} | {' | '.join(cells)} |")
    return lines


def accuracy(rows: list[dict[str, Any]]) -> str:
    """The mean reward accuracy and each run's; for a single run, its interval."""
    shown = cell([row["reward_accuracy"]["value"] for row in rows], 3)
    low, high = rows[0]["reward_accuracy"]["low"], rows[0]["reward_accuracy"]["high"]
    return shown if len(rows) > 1 or low is None else f"{shown} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
