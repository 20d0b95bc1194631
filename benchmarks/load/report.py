"""The rows of gateway.json, also printed as a table."""

import argparse
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from load.client import Timings


def percentile(values: list[float], share: float) -> float:
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def report(measured: dict[tuple[str, bool, str], Timings], options: argparse.Namespace) -> list[dict[str, Any]]:
    names = "load, answers, way, per second, p50 ms, p99 ms, added p50, added p99, CPU ms, × LiteLLM, errors"
    table = Table(*names.split(", "))
    rows = []
    for (way, stream, load), timings in measured.items():
        direct = measured[("direct", stream, load)]
        litellm = measured.get(("LiteLLM", stream, load))
        p50, p99 = percentile(timings.whole, 0.5), percentile(timings.whole, 0.99)
        rps = len(timings.whole) / timings.seconds
        row = {
            "way": way,
            "load": load,
            "stream": stream,
            "rate": (options.litellm_rate if way == "LiteLLM" else options.rate) if load == "open loop" else None,
            "connections": options.connections if load == "flat out" else None,
            "requests": len(timings.whole),
            "errors": timings.errors,
            "personalised": timings.personalised,
            "requests_per_s": rps,
            "p50_ms": p50,
            "p99_ms": p99,
            "max_ms": max(timings.whole, default=float("nan")),
            "first_byte_p50_ms": percentile(timings.first, 0.5),
            "first_byte_p99_ms": percentile(timings.first, 0.99),
            "added_p50_ms": p50 - percentile(direct.whole, 0.5),
            "added_p99_ms": p99 - percentile(direct.whole, 0.99),
            "times_litellm": rps / (len(litellm.whole) / litellm.seconds) if litellm and litellm.whole else None,
            "cpu_ms_per_request": timings.cpu_seconds * 1000 / max(1, len(timings.whole) + timings.errors),
            "cores": len(os.sched_getaffinity(0)),
            "load_before": os.getloadavg()[0],
        }
        rows.append(row)
        times = f"{row['times_litellm']:.1f}" if row["times_litellm"] and load == "flat out" else ""
        added = (f"{row['added_p50_ms']:+.2f}", f"{row['added_p99_ms']:+.2f}") if load == "open loop" else ("", "")
        cells = (load, "stream" if stream else "whole", way, f"{rps:,.0f}", f"{p50:.2f}", f"{p99:.2f}", *added)
        table.add_row(*cells, f"{row['cpu_ms_per_request']:.2f}", times, str(timings.errors))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return rows
