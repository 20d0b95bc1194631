"""`popi infer --engine ray`: its options, and the summaries of a population (docs/population.md)."""

import re
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from popi.cli.shared import console
from popi.errors import ConfigError
from popi.runs.bars import Bars

if TYPE_CHECKING:
    from popi.inference_model import InferenceModel

PANEL = "Many workers (--engine ray)"
"""The help panel of these options."""

EngineName = Annotated[
    Literal["own", "ray"],
    typer.Option(help="own: this process. ray: workers of a Ray cluster (docs/population.md).", rich_help_panel=PANEL),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="The cluster: auto, or HOST:PORT. Default: one on this machine, for this run.",
        metavar="ADDRESS",
        rich_help_panel=PANEL,
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        help="Number of workers, or MIN-MAX for a pool that grows and shrinks. Default: as many as there is room for.",
        metavar="N",
        rich_help_panel=PANEL,
    ),
]
WorkerCpus = Annotated[
    float | None, typer.Option(min=0, help="CPUs per worker. Default: 1.", metavar="N", rich_help_panel=PANEL)
]
WorkerGpus = Annotated[
    float | None, typer.Option(min=0, help="GPUs per worker. Default: 0.", metavar="N", rich_help_panel=PANEL)
]
ShardUsers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Users per output file, the work that a dying worker loses. Default: 1000.", rich_help_panel=PANEL
    ),
]
OutFormat = Annotated[
    Literal["jsonl", "parquet"] | None,
    typer.Option(help="Format of the output files. Default: jsonl.", rich_help_panel=PANEL),
]


@dataclass(frozen=True)
class PopulationOptions:
    """The options of `--engine ray` as given; None where they are not."""

    address: str | None
    workers: str | None
    worker_cpus: float | None
    worker_gpus: float | None
    shard_users: int | None
    out_format: Literal["jsonl", "parquet"] | None

    def refuse_without_ray(self) -> None:
        """Reject these options with `--engine own`."""
        given = [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]
        if given:
            raise typer.BadParameter(f"{', '.join(given)}: only with --engine ray")

    @property
    def pool(self) -> tuple[int, int] | None:
        """Minimum and maximum number of workers."""
        if self.workers is None:
            return None
        match = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", self.workers)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise typer.BadParameter(f"--workers must be a number, or MIN-MAX such as 2-16; got {self.workers!r}")
        return int(match[1]), int(match[2] or match[1])


def infer_population(
    users: Path,
    out: Path | None,
    options: PopulationOptions,
    make: "Callable[[], InferenceModel]",
    settings: dict[str, Any],
    *,
    resume: bool,
    force: bool,
) -> None:
    """Write the summaries of all users to a folder; the exit code is 1 if some have none.

    Args:
        users: a file, a folder of files, or a hub id.
        out: the folder.
        options: of the cluster and the output.
        make: loads the model, in a worker.
        settings: what the summaries depend on, apart from the users.
        resume: continue an interrupted run.
        force: overwrite the folder.
    """
    pool = options.pool
    if out is None:
        raise typer.BadParameter("--engine ray writes a folder of files: name it with --out")
    try:
        from popi.population.ray_engine import RayEngine
        from popi.population.run import SHARD_USERS, Engine, Order, rejects_of, summarize_population
    except ImportError as error:
        raise ConfigError(f"--engine ray needs {error.name}; install it: pip install 'popi[ray]'") from None
    cpus = 1.0 if options.worker_cpus is None else options.worker_cpus
    cluster = RayEngine(options.address, pool, cpus, options.worker_gpus or 0.0)
    order = Order(
        users,
        out,
        settings,
        make,
        options.out_format or "jsonl",
        options.shard_users or SHARD_USERS,
        resume=resume,
        force=force,
    )
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as stack, Bars(*columns, console=console, transient=True) as bars:

        def engine() -> Engine:
            task = bars.add_task("connecting to Ray" if options.address else "starting Ray", total=None)
            stack.enter_context(cluster)
            bars.remove_task(task)
            return cluster

        totals = summarize_population(order, engine, _shown(bars))
    again = f"; {totals.restarted} attempts of dead workers repeated" if totals.restarted else ""
    rate = f"; {totals.per_second:.1f} users per second" if totals.new else "; nothing was left to do"
    console.print(
        f"{totals.lines} users read, {totals.written} summaries, {totals.rejected} rejected: {out}{rate}{again}; "
        f"{time.monotonic() - started:.0f} s in all",
        highlight=False,
    )
    if totals.requests:
        console.print(
            f"{totals.requests} requests, {totals.input_tokens} tokens in, {totals.output_tokens} tokens out",
            highlight=False,
        )
    if totals.rejected:
        print(f"{totals.rejected} users without a summary are listed in {rejects_of(out)}", file=sys.stderr)
        if totals.retryable:
            print(f"run the same command with --resume to retry {totals.retryable} of them", file=sys.stderr)
        raise typer.Exit(1)


def _shown(bars: Bars) -> Callable[[str, int, int | None], None]:
    """A progress function with a bar per step; a step's description may change in its parentheses."""
    tasks: dict[str, TaskID] = {}

    def progress(description: str, done: int, total: int | None) -> None:
        step = description.split(" (")[0]
        if step not in tasks:
            tasks[step] = bars.add_task(description, total=total)
        bars.update(tasks[step], description=description, completed=done, total=total)

    return progress
