"""Faults for the serving side: kills, broken upstreams, broken stores, wrong clocks, and a soak.

python benchmarks/torture/serving.py [--quick] [--seed N] [--only GROUP ...] [--kills N] [--soak REQUESTS]

Everything runs on this machine: gateways and workers as `popi serve` and `popi worker`, a PostgreSQL server of its own
if one is installed, a model API that fails on demand, and clients that remember what was acknowledged. After each fault
every acknowledged write must be there, or gone if it was an erasure; nothing may be applied twice, no renewal may be
lost or stuck, and every error must be JSON that says what to do. The exit code is 1 if anything was lost. All cases go
to runs/torture/serving.json.
"""

import argparse
import asyncio
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from serving_faults import clocks, kills, soak, stores, upstreams
from serving_faults.cases import Report, Skipped
from serving_faults.postgres import Server
from serving_faults.processes import FORKS

GROUPS = ("kill", "upstream", "store", "clock", "soak")


async def run(report: Report, options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await _all_groups(report, options)
    finally:
        await FORKS.close()


async def _all_groups(report: Report, options: argparse.Namespace) -> None:
    with ExitStack() as closing:
        server = None
        try:
            server = Server()
            closing.callback(server.close)
        except Skipped as why:
            report.console.print(f"only SQLite: {why}")
        both: list[tuple[str, Server | None]] = [("sqlite", None)]
        both += [("postgresql", server)] if server is not None else []
        both = [one for one in both if options.store in (None, one[0])]
        if "kill" in options.only:
            each = options.kills // len(both)
            for store, at in both:
                migrations = max(2, each // 10)
                url = at.database("kills") if at is not None else ""
                await kills.under_load(report, store, url, "kills", each - migrations, options.seed)
                await kills.at_migration(report, store, at, migrations, options.seed)
        if "upstream" in options.only:
            await upstreams.all_faults(report)
            for store, at in both:
                url = at.database("upstream") if at is not None else ""
                await upstreams.renewals(report, store, url, options.seed)
        if "store" in options.only:
            if options.store != "postgresql":
                await stores.sqlite(report, options.quick, options.seed)
            if server is not None and options.store != "sqlite":
                await stores.postgresql(report, server, options.quick, options.seed)
        if "clock" in options.only:
            for store, at in both:
                await clocks.jumps(report, store, at, options.quick, options.seed)
        if "soak" in options.only and options.soak:
            for store, at in both:
                url = at.database("soak") if at is not None else ""
                await soak.soak(report, store, url, options.soak, options.seed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few of each fault, in minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--kills", type=int, help="over both stores; 200, or 8 with --quick")
    parser.add_argument("--soak", type=int, help="requests per store; 20,000, or 500 with --quick")
    parser.add_argument("--store", choices=("sqlite", "postgresql"), help="only this one")
    parser.add_argument("--out", type=Path, default=Path("runs/torture/serving.json"))
    options = parser.parse_args()
    options.kills = options.kills if options.kills is not None else 8 if options.quick else 200
    options.soak = options.soak if options.soak is not None else 500 if options.quick else 20_000
    report = Report(Console())
    try:
        asyncio.run(run(report, options))
    finally:
        report.console.print(report.table())
        report.write(options.out, " ".join(sys.argv), options.seed)
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
