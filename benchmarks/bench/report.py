"""The rows of runs/bench/bench.json, the table for docs/performance.md, and the plot."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
KEY = ("what", "model", "dtype", "device", "signals_tokens", "group_size")
Row = dict[str, Any]


def machine(device: str, threads: int) -> str:
    """Description of the machine."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    try:
        names = {
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        }
    except OSError:
        names = set()
    has = torch.cpu.get_capabilities()
    units = [unit for unit in ("amx_bf16", "avx512_bf16", "avx2") if has.get(unit)][:1]
    name = ", ".join(sorted(names)) or platform.machine()
    return f"{name} ({', '.join(units)}), {threads} threads, torch {torch.__version__}"


def load_average() -> float:
    """The load average: measurements on a busy machine should be repeated."""
    return round(os.getloadavg()[0], 1)


def commit() -> str:
    """The measured commit, with a plus if the working tree differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--", "src", "benchmarks") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def merged(path: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows of a file and new ones, which replace earlier measurements of the same case."""
    earlier = json.loads(path.read_text()) if path.is_file() else []
    by_case = {tuple(row[k] for k in KEY): row for row in [*earlier, *rows]}
    return list(by_case.values())


def _number(value: float | None, form: str, failure: str | None = None) -> str:
    return failure or "–" if value is None else form.format(value)


def _at_once(row: Row) -> str:
    """How many sequences the released pattern trained on at once, if its group did not fit."""
    n = row.get("released_at_once") or row["group_size"]
    return "" if n == row["group_size"] or row["ratio_released"] is None else f" ({n} at once)"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = (
        "| part | model | signals | G | popi, s | tokens/s | × released | × TRL | × floor | memory | of released "
        "| largest difference |"
    )
    lines = [head, "|" + " --- |" * 12]
    for row in rows:
        failed = row["failed"]
        ours, released = row["peak_bytes_ours"], row["peak_bytes_released"]
        lines.append(
            "| "
            + " | ".join(
                [
                    row["what"].replace("_", " "),
                    f"{row['model']} {row['dtype']}",
                    str(row["signals_tokens"] or "–"),
                    str(row["group_size"] or "–"),
                    _number(row["seconds_ours"], "{:.3g}", failed.get("ours")),
                    _number(row["tokens_per_second"], "{:,.0f}"),
                    _number(row["ratio_released"], "{:.1f}", failed.get("released")) + _at_once(row),
                    _number(row["ratio_trl"], "{:.1f}", failed.get("trl")),
                    _number(row["floor_ratio"], "{:.2f}", failed.get("floor")),
                    _number(ours, "{:,.0f} MB") if ours is None else f"{ours / 1e6:,.0f} MB",
                    "–" if not ours or not released else f"{ours / released:.2f}",
                    "–" if row["largest_difference"] is None else f"{row['largest_difference']:.1e}",
                ]
            )
            + " |"
        )
    loads: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        loads.setdefault((row["machine"], row["commit"]), []).append(row["load"])
    taken = [
        f"{machine}, commit {commit}, {len(values)} rows, load {min(values)} to {max(values)}"
        for (machine, commit), values in loads.items()
    ]
    return "\n".join([*(f"Taken on {line}." for line in taken), "", *lines]) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Plot the speedup over each other way by the length of the signals, one panel per way."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for panel, (key, title) in zip(
        panels, (("ratio_released", "the released pattern"), ("ratio_trl", "stock TRL")), strict=True
    ):
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            if row[key] is not None and row["signals_tokens"] and row["group_size"] == 8:
                name = f"{row['what'].replace('_', ' ')}, {row['model']}"
                lines.setdefault(name, []).append((row["signals_tokens"], row[key]))
        for name, points in lines.items():
            panel.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(title=f"times faster than {title}", xlabel="tokens of signals (G = 8)")
        if lines:
            panel.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
