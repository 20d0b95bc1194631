"""Summarise a population: stage its users in shards, find repeats, write the summaries, check them.

Resumable: staging is repeated unless it was complete, and then only shards without a receipt are written, or those with
users whom the model failed. Nothing is held per user, and a few bytes per shard.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import popi
from popi.data.jsonl import write_rows
from popi.errors import DataError, RunError, UpstreamError
from popi.inference_model import InferenceModel
from popi.population.layout import (
    VERSION,
    Folder,
    inputs_of,
    open_folder,
    read_json,
    read_rows,
    settings_of,
    write_json,
)
from popi.population.repeats import mark_repeats
from popi.population.shard import Row, ShardWriter, check_shard
from popi.population.staging import shard_name, stage

SHARD_USERS = 1000
"""Default number of users per shard: what the death of a worker costs."""
OUTAGE = 3
"""After this many shards in a row whose users all failed at the model API, the run stops."""
Progress = Callable[[str, int, int | None], None]
"""Called with a description, the number of users done, and their total if it is known."""


class Engine(Protocol):
    """Distributes work over processes, in any order, and repeats what dead processes had begun."""

    def each(self, work: Callable[[Any], Iterable[Row]], items: Sequence[Any]) -> Iterator[Row]:
        """All results of `work`, called for each item, which must be repeatable."""
        ...

    def each_with_writer(self, make: Callable[[], Callable[[str], Row]], items: Sequence[str]) -> Iterator[Row]:
        """The same, where each worker makes its own function once, with the model."""
        ...


@dataclass
class Totals:
    """The result of a run.

    Attributes:
        lines: lines read; each is a user, or was to be one.
        written: users with a summary.
        rejected: lines without one.
        retryable: how many of those failed at the model, so that `--resume` tries them again.
        restarted: shards that were started again after a worker died.
        requests, input_tokens, output_tokens: what this start sent to the model, as far as workers lived to say so.
        seconds: time that this start spent on summaries.
        new: users of the shards that this start completed.
    """

    lines: int = 0
    written: int = 0
    rejected: int = 0
    retryable: int = 0
    restarted: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    new: int = 0

    @property
    def per_second(self) -> float:
        """Users per second of this start."""
        return self.new / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Order:
    """What to summarise.

    Attributes:
        users: a file, a folder of files, or a hub id.
        out: the output folder.
        form: format of the summaries.
        settings: whatever the summaries depend on, apart from the users.
        make: loads the model, in a worker.
        shard_users: lines per shard.
        resume: continue a run.
        force: overwrite the output folder.
    """

    users: Path
    out: Path
    settings: dict[str, Any]
    make: Callable[[], InferenceModel]
    form: Any = "jsonl"
    shard_users: int = SHARD_USERS
    resume: bool = False
    force: bool = False


def rejects_of(out: Path) -> Path:
    """The side file of users without a summary, beside the output folder."""
    return out.with_name(f"{out.name}.rejects.jsonl")


def summarize_population(order: Order, engine: Callable[[], Engine], progress: Progress = lambda *_: None) -> Totals:
    """Write one summary per user. `engine` is only called if something is to be done.

    Raises:
        DataError: the output folder can't be used, or an input can't be read as users.
        RunError: the run to be resumed had other settings; a worker fails for any user; the final check failed.
        UpstreamError: the model API fails for everyone.
    """
    inputs = inputs_of(order.users)
    out = order.out.resolve()
    if any(out == file.resolve().parent for file in inputs):
        raise DataError(f"{out}: is the folder of the input; choose another one with --out")
    settings = settings_of(inputs, **order.settings, format=order.form, shard_users=order.shard_users)
    folder = Folder.of(order.out, order.form)
    plan = open_folder(folder, settings, resume=order.resume, force=order.force)
    if plan is not None and "complete" in plan:
        return Totals(**plan["complete"])
    folder.begin()
    workers = engine()
    if plan is None:
        lines = _stage(folder, inputs, order.shard_users, workers, progress)
        plan = {"format": VERSION, "popi": popi.__version__, "settings": settings, "lines": lines}
        write_json(folder.plan, plan)
    names = [shard_name(int(name), n) for name, count in plan["lines"].items() for n in range(count[1])]
    total = sum(count[0] for count in plan["lines"].values())
    totals = _write(
        folder, names, total, ShardWriterOf(folder, [str(file) for file in inputs], order.make), workers, progress
    )
    _check(folder, names, total, totals, workers, progress)
    _finish(folder, names, totals, plan)
    return totals


@dataclass(frozen=True)
class ShardWriterOf:
    """Makes a `ShardWriter` in a worker, in the driver's working directory, since names of models may be relative."""

    folder: Folder
    sources: list[str]
    make: Callable[[], InferenceModel]
    directory: str = field(default_factory=os.getcwd)
    version: str = popi.__version__

    def __call__(self) -> ShardWriter:
        if os.path.isdir(self.directory):
            os.chdir(self.directory)
        return ShardWriter(self.folder, self.sources, self.make, self.version)


# -- steps ------------------------------------------------------------------------------------------------------------


def _stage(
    folder: Folder, inputs: list[Path], size: int, workers: Engine, progress: Progress
) -> dict[str, tuple[int, int]]:
    """Stage all inputs. Returns the lines and shards of each file, by its number."""
    folder.clear_stage()
    shards: set[tuple[int, int]] = set()
    lines = {number: 0 for number in range(len(inputs))}
    items = [(number, str(file.resolve())) for number, file in enumerate(inputs)]
    for row in workers.each(partial(_stage_one, folder, size), items):
        _refuse(row)
        if (row["file"], row["shard"]) not in shards:
            shards.add((row["file"], row["shard"]))
            lines[row["file"]] += row["lines"]
            progress("reading", sum(lines.values()), None)
    if not shards:
        raise DataError(f"{', '.join(str(file) for file in inputs[:3])}: no users")
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("finding repeats", done, sum(lines.values()))

    mark_repeats(folder, sorted(shards), advance)
    counts = {number: sum(1 for file, _ in shards if file == number) for number in lines}
    return {str(number): (lines[number], counts[number]) for number in lines}


def _stage_one(folder: Folder, size: int, item: tuple[int, str]) -> Iterator[Row]:
    return stage(folder, Path(item[1]), item[0], size)


def _write(
    folder: Folder, names: list[str], total: int, make: Callable[[], ShardWriter], workers: Engine, progress: Progress
) -> Totals:
    totals, waiting, before = Totals(), [], 0
    for name in names:
        if folder.done(name).is_file() and not (receipt := read_json(folder.done(name)))["retryable"]:
            before += receipt["written"] + receipt["rejected"]
        else:
            waiting.append(name)
    started, failing = time.monotonic(), 0
    progress("users", before, total)
    for receipt in workers.each_with_writer(make, waiting) if waiting else ():
        _refuse(receipt)
        totals.new += receipt["written"] + receipt["rejected"]
        totals.restarted += receipt.get("attempt", 1) - 1
        for name in ("requests", "input_tokens", "output_tokens"):
            setattr(totals, name, getattr(totals, name) + receipt[name])
        totals.seconds = time.monotonic() - started
        progress(f"users ({totals.per_second:.1f}/s)", before + totals.new, total)
        failing = failing + 1 if receipt["down"] else 0
        if failing >= OUTAGE:
            raise UpstreamError(
                f"the model failed for all users of {OUTAGE} shards in a row: {receipt['down']}\n"
                "summaries so far are kept; continue with --resume"
            )
    return totals


def _check(folder: Folder, names: list[str], total: int, totals: Totals, workers: Engine, progress: Progress) -> None:
    """Compare what is on disk with the users that were read, and count."""
    for row in workers.each(partial(check_shard, folder), names):
        _refuse(row)
        totals.lines += row["lines"]
        totals.written += row["written"]
        totals.rejected += row["rejected"]
        progress("checking", totals.lines, total)
    if not totals.lines == total == totals.written + totals.rejected:
        raise RunError(
            f"{folder.path}: {total} users were read, but {totals.written} summaries and {totals.rejected} rejects are "
            "there; this is a bug in popi, please report it"
        )


def _finish(folder: Folder, names: list[str], totals: Totals, plan: dict[str, Any]) -> None:
    """Write the side file; if no user is worth another try, record that the run is complete."""
    totals.retryable = sum(read_json(folder.done(name))["retryable"] for name in names)
    side = rejects_of(folder.path)
    side.unlink(missing_ok=True)
    if totals.rejected:
        write_rows(side, (row for name in names for row in read_rows(folder.rejects(name))))
    if totals.retryable:
        return
    counts = {"lines": totals.lines, "written": totals.written, "rejected": totals.rejected}
    write_json(folder.complete, plan | {"complete": counts})
    shutil.rmtree(folder.state)


def _refuse(row: Row) -> None:
    if row.get("error"):
        raise RunError(row["error"])
