"""A full disk, and files that have changed."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from training_faults.bench import (
    REFUSED,
    RESUMED,
    UNBROKEN,
    Bench,
    Lost,
    Outcome,
    directory,
    stopped_clearly,
    succeeded,
    tail,
)
from training_faults.bombs import Bomb
from training_faults.cases import KINDS, result


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of `size` bytes in memory; yields a function that changes its size."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "torture", str(folder)], check=True)
    try:

        def resize(new: int) -> None:
            subprocess.run(["mount", "-o", f"remount,size={new}", str(folder)], check=True)

        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def can_mount(folder: Path) -> bool:
    """Whether small file systems can be mounted, which takes root."""
    try:
        with small_disk(folder, 1 << 16):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


BIG = 256 << 20


def play_disk(bench: Bench) -> Outcome:
    """Fill the disk at several sizes, each in a new run; make room, and resume."""
    case, places, peak = bench.case, [], 0
    with small_disk(bench.folder / "whole", BIG):

        def watch() -> None:
            nonlocal peak
            disk = os.statvfs(bench.folder / "whole")
            peak = max(peak, (disk.f_blocks - disk.f_bfree) * disk.f_frsize)

        whole = bench.config("whole")
        succeeded(bench.go(whole, watch=watch), "the unbroken run")
        expected = result(directory(whole))
        for number in range(case.n):
            size = int(bench.random.uniform(0.03, 0.97) * peak)
            place = bench.folder / f"small-{number}"
            config = bench.config(f"small-{number}", place)
            with small_disk(place, size) as resize:
                ended = bench.go(config)
                if ended.code:
                    stopped_clearly(ended, "full")
                    places.append(f"{size} of {peak} bytes")
                    again = bench.go(config)  # still full
                    if again.code:
                        stopped_clearly(again, "full")
                    resize(BIG)
                    succeeded(bench.go(config), f"with {size} of {peak} bytes, then room")
                bench.same(expected, config)
    return Outcome(case, RESUMED, faults=len(places), places=places)


def damage(file: Path, how: str, random: Random) -> None:
    content = file.read_bytes()
    if how == "removed":
        file.unlink()
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(content[: random.randrange(len(content))])
    else:
        flipped = bytearray(content)
        flipped[random.randrange(len(content))] ^= 1 << random.randrange(8)
        file.write_bytes(bytes(flipped))


def play_corrupt(bench: Bench) -> Outcome:
    """Kill a run between two checkpoints, damage a file, and resume. `fault` is `PATTERN HOW`: files below the run."""
    pattern, _, how = bench.case.fault.rpartition(" ")
    _, expected = bench.whole()
    config = bench.config("broken")
    phases = 2 if bench.case.shape.order == "alternating" else 1
    ended = bench.go(config, bomb=Bomb("step", 6 * phases - 1))  # the one before the last, after two checkpoints
    if not ended.killed:
        raise Lost(f"was to be killed in the last phase, but {tail(ended.errors)}")
    every, newest = pattern.startswith("every "), pattern.startswith("newest ")
    files = sorted(directory(config).glob(pattern.split(" ")[-1]))
    if newest:
        last = max(int(file.parent.name.rpartition("-")[2]) for file in files)
        files = [file for file in files if file.parent.name == f"checkpoint-{last}"]
    if not files:
        raise Lost(f"there is no {pattern}")
    damaged = files if every else [bench.random.choice(files)]
    for file in damaged:
        damage(file, how, bench.random)
    names = ", ".join(str(file.relative_to(directory(config))) for file in damaged)
    ended = bench.go(config)
    if ended.code:  # it says what to do; for checkpoints that is to start again
        stopped_clearly(ended, str(damaged[0].parent if "checkpoint" in pattern else damaged[0].name))
        if not every:
            return Outcome(bench.case, REFUSED, tail(ended.errors), places=[names])
        succeeded(bench.go(config), "the phase's second start")
        bench.same(expected, config)
        return Outcome(bench.case, RESUMED, places=[names])
    if newest and str(damaged[0].parent.name) not in " ".join(ended.errors.split()):
        raise Lost(f"used another checkpoint than {names} without saying so: {tail(ended.errors)}")
    # Nothing brings rows of the log or of samples back; of the others only those are recomputed that are needed again.
    rows = damaged[0].suffix == ".jsonl"
    bench.same(expected, config, ("weights", "facts") if rows else KINDS)
    return Outcome(bench.case, UNBROKEN, places=[names])
