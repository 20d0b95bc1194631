"""One config under several seeds: one run per seed, and its figures over the seeds.

A method's figure is the mean over seeds, with Student's interval of seeds − 1 degrees of freedom. It covers the
variation between seeds, but not between users, except as far as the users depend on the seed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from popi.config import RunConfig
from popi.errors import ConfigError, RunError
from popi.evaluation.methods import METHODS
from popi.evaluation.metrics import clustered_mean
from popi.evaluation.runner import evaluate
from popi.evaluation.tables import with_reach
from popi.runs.files import write_text
from popi.runs.run_directory import RunDirectory
from popi.training.processes import refuse_several
from popi.training.train import train

FIGURES = {"reward_accuracy": (100, 1), "margin": (1, 2), "context_overhead_tokens": (1, 1)}
"""Figure of a method → factor and number of digits for the table."""


def seeds_of(text: str) -> list[int]:
    """`0-2,5` → [0, 1, 2, 5].

    Raises:
        ConfigError: the text is not such a list, or names fewer than two seeds.
    """
    parts = [re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip()) for part in text.split(",")]
    seeds = [seed for part in parts if part for seed in range(int(part[1]), int(part[2] or part[1]) + 1)]
    if not all(parts) or len(set(seeds)) < 2 or len(set(seeds)) != len(seeds):
        raise ConfigError(f"--seeds {text!r}: must name at least two different seeds, as in 0-2 or 0,1,7")
    return seeds


def of_seed(config: RunConfig, seed: int) -> RunConfig:
    """The config of one seed's run, with its own directory."""
    return config.model_copy(update={"seed": seed, "name": f"{config.name}-seed{seed}"})


def train_seeds(config: RunConfig, seeds: Sequence[int], resume: bool, console: Console) -> dict[str, Any]:
    """Train and evaluate a run per seed; write `{root}/{name}-seeds.json` and return its contents.

    Raises:
        RunError: a seed's run exists and `resume` is not set; nothing is trained.
        PopiError: as in `train` and `evaluate`.
    """
    refuse_several("popi train --seeds")  # evaluation runs in one process
    configs = [of_seed(config, seed) for seed in seeds]
    existing = [str(one.directory) for one in configs if one.directory.exists()]
    if existing and not resume:
        raise RunError(f"{', '.join(existing)}: exists already; resume with --resume, or choose another name=…")
    results = [evaluate(RunDirectory.open(train(one, resume, console)), console=console) for one in configs]
    summary = {
        "name": config.name,
        "seeds": list(seeds),
        "runs": [str(one.directory) for one in configs],
        "methods": over_seeds([result["methods"] for result in results]),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_text(Path(config.root) / f"{config.name}-seeds.json", text)
    return summary


def over_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Method → figure → mean over seeds with its interval, and each seed's value; from the seeds' metrics.json."""
    result: dict[str, Any] = {}
    for method in results[0]:
        result[method] = {}
        for figure in FIGURES:
            entries = [metrics[method][figure] for metrics in results]
            values = [entry["value"] if isinstance(entry, dict) else entry for entry in entries]
            estimate = clustered_mean(values, range(len(values))).as_dict()
            result[method][figure] = estimate | {"of_seeds": values}
    return result


def seeds_table(summary: Mapping[str, Any]) -> Table:
    """Means over seeds ± half the width of their 95 % interval."""
    n = len(summary["seeds"])
    caption = f"means over {n} seeds ({', '.join(map(str, summary['seeds']))}), ± half the 95 % interval over seeds"
    table = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for head in ("accuracy", "margin", "tokens"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, figures in summary["methods"].items():
        cells = [with_reach(figures[key], scale, digits) for key, (scale, digits) in FIGURES.items()]
        table.add_row(METHODS[name].label.split(" (")[0], *cells)
    return table
