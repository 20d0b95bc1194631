"""A Markdown table of runs' metrics.json files, methods down, the mean over runs and each run across.

python docs/results.py runs/nano-0 runs/nano-1 runs/nano-2
"""

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from popi.evaluation.methods import METHODS


def cell(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    each = f" ({' '.join(f'{value:.{digits}f}' for value in known)})" if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{each}"


def main() -> None:
    runs: list[dict[str, Any]] = [json.loads((Path(run) / "metrics.json").read_text()) for run in sys.argv[1:]]
    print("| Method | Reward accuracy | Tokens added | Attribute precision | Attribute recall |")
    print("|---|---|---|---|---|")
    for name, method in METHODS.items():
        rows = [run["methods"][name] for run in runs if name in run["methods"]]
        if not rows:
            continue
        accuracy = cell([row["reward_accuracy"]["value"] for row in rows], 3)
        if len(rows) == 1:
            accuracy += f" [{rows[0]['reward_accuracy']['low']:.3f}, {rows[0]['reward_accuracy']['high']:.3f}]"
        tokens = cell([row["context_overhead_tokens"] for row in rows], 1)
        precision, recall = (cell([row[f"attribute_{k}"] for row in rows], 2) for k in ("precision", "recall"))
        print(f"| {method.label} | {accuracy} | {tokens} | {precision} | {recall} |")
    facts = {
        f"seed {run['seed']}: commit {run['commit']}, {run['n_users']} users, {run['n_pairs']} pairs" for run in runs
    }
    print("\n" + "; ".join(sorted(facts)))


if __name__ == "__main__":
    main()
