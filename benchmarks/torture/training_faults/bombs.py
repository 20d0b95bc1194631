"""Dangerous places in a run, at which a process kills itself."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import popi.training.phases.trainer as phase_trainer
from popi.runs import rows, run_directory
from popi.training.phases import inference

Function = Callable[..., Any]
PLACES = ("records", "checkpoint", "seal", "phase")
"""Kinds of file operations: on the log and other rows; on a checkpoint's files; that make it complete; at a phase's
end."""


@dataclass(frozen=True)
class Bomb:
    """Where a process kills itself.

    Attributes:
        kind: `operation` (right before a file operation), `half` (a file is half written), `evaluation` (before one),
            or `step` (before one).
        n: its number among those of its kind, from 1.
        place: for `operation`, one of PLACES.
        rank: the process that it kills.
    """

    kind: str
    n: int
    place: str = ""
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.n}{' ' + self.place if self.place else ''} of process {self.rank}"


def place_of(path: str) -> str:
    """The place of a file operation."""
    if "/complete" in path:
        return "seal"
    if "/checkpoints" in path:
        return "checkpoint"
    if any(part in path for part in ("done.json", "methods.json", "/inference_model", "/generator", "README.md")):
        return "phase"
    return "records"


WRITING = os.O_WRONLY | os.O_RDWR


def written_path(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an audit event will write to; None if it writes nothing."""
    if event == "open":
        path, mode, flags = arguments
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & WRITING)
        return str(path) if writes else None
    if event == "os.rename":
        return str(arguments[1])
    if event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"):
        return str(arguments[0])
    return None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count_operations(root: Path, bomb: Bomb | None, counts: dict[str, int]) -> None:
    """Count file operations below `root` by place, and die right before the bomb's."""
    inside, tree = f"{root}/", ""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal tree
        path = written_path(event, arguments)
        if path is None:
            return
        if event == "shutil.rmtree":
            tree = path
        elif "/" not in path and event in ("os.remove", "os.rmdir"):  # rmtree removes by names relative to a folder
            path = f"{tree}/{path}"
        if not path.startswith(inside):
            return
        place = place_of(path.removeprefix(inside))
        counts[place] = counts.get(place, 0) + 1
        if bomb is not None and bomb.kind == "operation" and bomb.place == place and counts[place] == bomb.n:
            die()

    sys.addaudithook(hook)


def count_calls(bomb: Bomb | None, counts: dict[str, int], random: Random) -> None:
    """Count written files, evaluations and steps, and die where the bomb says."""

    def counted(kind: str, first: bool = True, appends: bool = False) -> Callable[[Function], Function]:
        def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                counts[kind] = counts.get(kind, 0) + 1
                here = bomb is not None and bomb.kind == kind and counts[kind] == bomb.n
                if here and first:
                    die()
                path = next((str(a) for a in (*arguments, *named.values()) if isinstance(a, str | Path)), "")
                before = os.path.getsize(path) if appends and os.path.isfile(path) else 0
                result = real(*arguments, **named)
                if here:
                    size = os.path.getsize(path) if os.path.isfile(path) else 0
                    if size > before:
                        os.truncate(path, random.randrange(before, size))
                    die()
                return result

            return call

        return wrap

    import torch
    from transformers import modeling_utils

    half, half_row = counted("half", first=False), counted("half", first=False, appends=True)
    torch.save = half(torch.save)
    phase_trainer.save_file = half(phase_trainer.save_file)
    modeling_utils.safe_save_file = half(modeling_utils.safe_save_file)  # type: ignore[attr-defined]
    for module in (run_directory, inference):  # each has imported it by name
        module.append_jsonl = half_row(module.append_jsonl)  # type: ignore[attr-defined]
    rows.RowFile.append = _half_row(half_row)  # type: ignore[method-assign]
    trainer = phase_trainer.PhaseTrainer
    trainer.evaluate = counted("evaluation")(trainer.evaluate)  # type: ignore[method-assign]
    log = phase_trainer._Log
    log.on_step_begin = counted("step")(log.on_step_begin)  # type: ignore[method-assign]


def _half_row(half: Callable[..., Any]) -> Any:
    real = rows.RowFile.append
    inner = half(lambda path, file, more: real(file, more))

    def append(file: rows.RowFile, more: Any) -> None:
        inner(str(file.path), file, list(more))

    return append
