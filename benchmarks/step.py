"""Cost of a training step: popi against the released code's pattern and stock TRL, with the same model and tokens.

    python benchmarks/step.py [--quick] [--only PART …] [--model NAME …] [--signals N …] [--groups G …]
    python benchmarks/step.py --table        # write the table of docs/performance.md from runs/bench/bench.json

Each way runs in a separate process, and they take turns, on the same machine with the same seed. A process frees its
memory between turns, so each turn starts with an untimed run; then up to three runs that fit into 30 seconds are timed,
and their median counts. A row of bench.json has the medians of the turns, the ratios to popi's (above 1: popi is
faster), popi's ratio to the floor (the distinct tokens once through the model), peaks of memory, and the largest
difference between the ways' results. A way that ran out of memory or time has null, and the row says why; but if a
group does not fit with the released pattern, it is retried with half as many sequences at once (`released_at_once`).
Earlier rows are kept.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.cases import DTYPES, PARTS, Case, cases, default_models, threads
from bench.report import Row, commit, load_average, machine, merged, plot, table
from bench.worker import WAYS, Failure, Worker
from rich.console import Console

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


def difference(ours: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference of rewards and log-probs; for the gradient, relative to its norm."""
    largest = {}
    for name in ours.keys() & other.keys():
        delta = ours[name] - other[name]
        if name == "gradient":
            largest[name] = float(np.linalg.norm(delta) / max(np.linalg.norm(other[name]), 1e-30))
        else:
            largest[name] = float(np.abs(delta).max())
    return largest


def measure(case: Case, options: argparse.Namespace, context: Any) -> Row:
    """One row."""
    failed: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks: dict[str, int] = {}
    results: dict[str, dict[str, np.ndarray]] = {}
    at_once = case.group

    def start(way: str) -> None:
        whole = way != "released" or at_once == case.group
        worker_case = case if whole else replace(case, at_once=at_once)
        workers[way] = Worker(context, way, worker_case, options.memory_limit, options.time_limit)
        try:
            workers[way].answer()
        except Failure as failure:
            failed[way] = str(failure)

    def halved() -> bool:
        """Make the released pattern train on half as many sequences at once, as its users would; False if
        impossible."""
        nonlocal at_once
        if case.what not in ("policy_update", "whole_step") or at_once == 1:
            return False
        workers["released"].end()
        at_once //= 2
        return True

    for way in WAYS:  # one after another, since loading is not measured
        start(way)
    for _ in range(options.repeats):
        for way in WAYS:
            while way not in failed:
                try:
                    took, peaks[way], results[way] = workers[way].ask("run")
                    break
                except Failure as failure:
                    seconds[way].clear()
                    if way == "released" and str(failure).startswith("out of memory") and halved():
                        start(way)
                    else:
                        failed[way] = str(failure)
            if way not in failed:
                seconds[way].append(took)
    differences: dict[str, float] = {}
    if "ours" not in failed:
        for way in ("released", "trl"):
            if way not in failed:
                by_name = difference(results["ours"], results[way])
                differences |= {f"{name} against {way}": value for name, value in by_name.items()}
        try:
            differences |= {name: float(value) for name, value in workers["ours"].ask("check").items()}
        except Failure as failure:
            failed["check"] = str(failure)
    for worker in workers.values():
        worker.end()
    return row_of(replace(case, at_once=at_once), seconds, peaks, differences, failed)


def row_of(
    case: Case,
    seconds: dict[str, list[float]],
    peaks: dict[str, int],
    differences: dict[str, float],
    failed: dict[str, str],
) -> Row:
    medians = {way: statistics.median(times) if times else None for way, times in seconds.items()}

    def over(way: str, under: str) -> float | None:
        a, b = medians[way], medians[under]
        return None if a is None or b is None else round(a / b, 3)

    def peak(way: str) -> int | None:
        return None if way in failed else peaks.get(way)

    ours = medians["ours"]
    return {
        "what": case.what,
        "model": case.model,
        "dtype": case.dtype,
        "device": case.device,
        "signals_tokens": case.signals,
        "group_size": case.group,
        "released_at_once": case.at_once,
        **{f"seconds_{way}": medians[way] for way in WAYS},
        **{f"peak_bytes_{way}": peak(way) for way in ("ours", "released", "trl")},
        "ratio_released": over("released", "ours"),
        "ratio_trl": over("trl", "ours"),
        "floor_ratio": over("ours", "floor"),
        "tokens_per_second": None if ours is None else round(case.distinct_tokens / ours, 1),
        "differences": differences,
        "largest_difference": max(differences.values(), default=None),
        "tolerance": case.tolerance,
        "equal": bool(differences) and all(d <= case.tolerance for d in differences.values()),
        "failed": failed,
        "repeats": max(map(len, seconds.values())),
        "machine": machine(case.device, threads()),
        "load": load_average(),
        "commit": commit(),
    }


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts of a step")
    parser.add_argument(
        "--model", nargs="+", help="nano, llama-100m, llama-100m-128k, smollm2, llama-1b, llama-3b, or a folder"
    )
    parser.add_argument("--signals", nargs="+", type=int, default=[250, 1000, 2000, 4000], help="tokens")
    parser.add_argument("--groups", nargs="+", type=int, default=[4, 8, 16], help="summaries of one user's signals")
    parser.add_argument("--quick", action="store_true", help="two lengths, one group size, one repeat")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype", choices=DTYPES, help="default: bfloat16 for shapes and smollm2, float32 for other models"
    )
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--time-limit", type=float, default=300.0, help="maximum seconds per run of a way")
    parser.add_argument(
        "--memory-limit", type=int, help="maximum bytes per way on a CPU; default: 80 %% of free memory"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--table", action="store_true", help="only write the table into docs/performance.md")
    options = parser.parse_args(arguments)
    if options.quick:
        options.signals, options.groups, options.repeats = [250, 1000], [8], 1
    options.model = options.model or ([] if options.table else default_models(options.device))
    if options.memory_limit is None:
        free = (
            [line for line in open("/proc/meminfo") if line.startswith("MemAvailable")]
            if sys.platform == "linux"
            else []
        )
        options.memory_limit = int(free[0].split()[1]) * 1024 * 8 // 10 if free else 0
    return options


def write_table(rows: list[Row]) -> None:
    """Write the table between its markers in the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table(rows) + END + after, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    options = options_of(arguments)
    file = options.out / "bench.json"
    if options.table:
        write_table(json.loads(file.read_text()))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")  # a fork of torch and the tokenizers may hang
    console = Console(width=160, highlight=False)
    grid = (options.device, options.only, options.signals, options.groups, options.seed)
    for case in cases(options.model, *grid, dtype=options.dtype):
        row = measure(case, options, context)
        rows = merged(file, [row])
        file.write_text(json.dumps(rows, indent=1) + "\n")
        plot(rows, options.out / "bench.svg")
        times = ", ".join(f"{way} {row[f'seconds_{way}']:.3g}" for way in WAYS if row[f"seconds_{way}"] is not None)
        line = f"{case.what} {case.model} {case.dtype}, signals {case.signals}, G {case.group}: {times} s; "
        line += f"× released {row['ratio_released']}, × TRL {row['ratio_trl']}, × floor {row['floor_ratio']}; "
        line += f"{'equal' if row['equal'] else 'NOT EQUAL'} (largest difference {row['largest_difference']})"
        console.print(line + (f"; failed: {row['failed']}" if row["failed"] else ""))


if __name__ == "__main__":
    main()
