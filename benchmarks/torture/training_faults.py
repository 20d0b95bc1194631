"""What befalls a run under torture, and what counts as surviving it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import launcher
from launcher import PLACES, TESTS, Bomb, Ended, Patch, by_torchrun, run
from training_cases import KINDS, Result, Shape, difference, result, settings, write_config

from popi.runs.files import read_jsonl

LOST = "LOST"
UNBROKEN = "right weights"
RESUMED = "clear stop, resumed to the right weights"
REFUSED = "clear stop that says what to do"


@dataclass(frozen=True)
class Case:
    """Something that befalls a run.

    Attributes:
        group: `kill`, `disk`, `corrupt`, `reward` or `server`.
        shape: what is trained.
        fault: how it is disturbed.
        n: for `kill`, how many times.
    """

    group: str
    shape: Shape
    fault: str
    seed: int
    n: int = 1

    def __str__(self) -> str:
        return f"{self.group}: {self.shape.name}: {self.fault}"


@dataclass
class Outcome:
    """How a case ended: `result` is UNBROKEN, RESUMED, REFUSED, `skipped` or LOST, and `detail` says why."""

    case: Case
    result: str
    detail: str = ""
    faults: int = 1
    places: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """For the JSON."""
        facts = asdict(self)
        return {**facts.pop("case"), **facts} | {"shape": self.case.shape.name}


class Lost(Exception):
    """A run that ended in other weights, or without saying why."""


class Bench:
    """The folder of a case, and its two runs: one that nothing befalls, and one that something does."""

    def __init__(self, case: Case, folder: Path, base: Path, **more: Any) -> None:
        self.case, self.folder, self.base, self.more = case, folder, base, more
        self.random = Random(case.seed)
        shutil.rmtree(folder, ignore_errors=True)
        self.precision, self.exact = "float32", True

    def config(self, name: str, root: Path | None = None) -> Path:
        tree = settings(self.case.shape, self.base, root or self.folder / name, **self.more)
        return write_config(self.folder / f"{name}-config", tree)

    def go(self, config: Path, **options: Any) -> Ended:
        options.setdefault("processes", self.case.shape.processes)
        seed = self.random.randrange(10**6)
        return run(config, self.folder / "output", seed=seed, precision=self.precision, **options)

    def whole(self, **options: Any) -> tuple[Ended, Result]:
        """The unbroken run."""
        config = self.config("whole")
        ended = self.go(config, **options)
        succeeded(ended, "the unbroken run")
        return ended, result(directory(config))

    def same(self, expected: Result, config: Path, kinds: tuple[str, ...] = KINDS) -> None:
        """Raise Lost unless a run ended like the unbroken one."""
        if unlike := difference(expected, result(directory(config)), self.exact, kinds):
            raise Lost(unlike)


def directory(config: Path) -> Path:
    tree = json.loads(config.read_text())
    return Path(tree["root"]) / tree["name"]


def succeeded(ended: Ended, name: str) -> None:
    if ended.code:
        raise Lost(f"{name} ended with {ended.code}: {tail(ended.errors)}")


def tail(errors: str) -> str:
    return errors[-1500:].strip()


def stopped_clearly(ended: Ended, *words: str) -> None:
    """Raise Lost unless a run ended with a message of popi's own that has these words."""
    flat = " ".join(ended.errors.split())
    if ended.code != 2 or "Traceback" in flat or "popi: " not in flat:
        raise Lost(f"no clear stop, but {ended.code}: {tail(ended.errors)}")
    if missing := [word for word in words if word not in flat]:
        raise Lost(f"the message lacks {missing}: {tail(ended.errors)}")


# -- SIGKILL ----------------------------------------------------------------------------------------------------------


def play_kill(bench: Bench) -> Outcome:
    """Kill a run again and again, resume it, and compare; start another if it ends before all kills are used up."""
    case, random = bench.case, bench.random
    changing = case.fault == "changing"
    if changing:
        bench.precision, bench.exact = "float64", False
    whole, expected = bench.whole()
    duration, places, number = whole.seconds, list[str](), 0
    config = bench.config("broken-0")
    for attempt in range(6 * case.n):
        left = case.n - len(places)
        bomb, moment, victims = None, None, None
        n = random.choice((1, 2, 4)) if changing else case.shape.processes
        if left and random.random() < 0.5:
            moment = random.uniform(0, duration) * 0.7**attempt
            victims = None if random.random() < 0.5 else (random.randrange(n),)
        elif left:
            bomb = any_bomb(whole.counts, random, n)
        ended = bench.go(config, processes=n, bomb=bomb, moment=moment, victims=victims)
        if ended.killed:
            places.append(str(bomb) if bomb else f"after {moment:.2f} s, {'all' if victims is None else victims}")
            continue
        succeeded(ended, f"the run resumed after {places}")
        bench.same(expected, config)
        if not left:
            break
        number += 1
        config = bench.config(f"broken-{number}")
    else:
        if len(places) == case.n:
            raise Lost("did not end")
    return Outcome(case, UNBROKEN, faults=len(places), places=places)


def any_bomb(counts: dict[str, int], random: Random, processes: int) -> Bomb:
    """A dangerous place, drawn evenly from the kinds that a run has."""
    kinds = [kind for kind in (*PLACES, "half", "evaluation", "step") if counts.get(kind)]
    kind = random.choice(kinds)
    n, rank = random.randint(1, counts[kind]), 0 if random.random() < 0.7 else random.randrange(processes)
    return Bomb("operation", n, kind, rank) if kind in PLACES else Bomb(kind, n, "", rank)


def play_torchrun(bench: Bench) -> Outcome:
    """Kill torchrun itself and all that it started, once a random number of steps has been logged."""
    _, expected = bench.whole()
    config, places = bench.config("broken"), list[str]()
    log, n, output = directory(config) / "log.jsonl", bench.case.shape.processes, bench.folder / "output"
    for _ in range(bench.case.n):
        rows = len(read_jsonl(log)) + bench.random.randint(1, 3)
        ended = by_torchrun(config, n, output, lambda rows=rows: len(read_jsonl(log)) >= rows)  # type: ignore[misc]
        if ended.killed:
            places.append(f"torchrun, at row {rows} of the log")
        else:
            succeeded(ended, "under torchrun")
    succeeded(by_torchrun(config, n, output), "resumed under torchrun")
    bench.same(expected, config)
    return Outcome(bench.case, UNBROKEN, faults=len(places), places=places)


# -- a full disk ------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of `size` bytes in memory; yields a function that changes its size."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "torture", str(folder)], check=True)
    try:
        yield lambda new: subprocess.run(["mount", "-o", f"remount,size={new}", str(folder)], check=True) and None
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

        _, expected = bench.whole(watch=watch)
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


# -- damaged files ----------------------------------------------------------------------------------------------------


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
    rows = damaged[0].name in ("log.jsonl", "samples.jsonl")  # nothing can bring these rows back
    bench.same(expected, config, ("weights", "facts") if rows else KINDS)
    return Outcome(bench.case, UNBROKEN, places=[names])


# -- rewards that are no numbers --------------------------------------------------------------------------------------


def bad_score(value: float, call: int) -> Patch:
    """The generator's log-probs have a value that is no number, from a call of the reward on."""

    def patch() -> None:
        from popi.generator import Generator
        from popi.training.reward import SummaryReward

        real, logps, calls = SummaryReward.score, Generator.pair_logps, [0, False]

        def score(self: Any, *arguments: Any) -> Any:
            calls[0] += 1
            calls[1] = calls[0] >= call
            return real(self, *arguments)

        def pair_logps(self: Any, *arguments: Any, **named: Any) -> Any:
            chosen, rejected = logps(self, *arguments, **named)
            if calls[1]:
                chosen[len(chosen) // 2] = value
                calls[1] = False
            return chosen, rejected

        SummaryReward.score, Generator.pair_logps = score, pair_logps  # type: ignore[method-assign]

    return patch


def play_reward(bench: Bench) -> Outcome:
    """A log-prob that is no number in the fourth reward or later; then the run resumes without it."""
    _, expected = bench.whole()
    config = bench.config("broken")
    ended = bench.go(config, patch=bad_score(float(bench.case.fault), call=bench.random.randint(4, 6)))
    stopped_clearly(ended, "step", "user", "prompt", "--resume")
    places = [next(line for line in ended.errors.splitlines() if "popi: " in line)]
    succeeded(bench.go(config), "resumed without the bad reward")
    bench.same(expected, config)
    return Outcome(bench.case, RESUMED, places=places)


# -- a server that fails ----------------------------------------------------------------------------------------------


class Server:
    """A model API in a forked process, which can be taken down and put up again on the same port."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.base, self.flag, self.port, self.pid = base, folder / "unavailable", launcher.free_port(), 0
        folder.mkdir(parents=True, exist_ok=True)

    def up(self) -> None:
        """Start it, or let it answer again."""
        self.flag.unlink(missing_ok=True)
        if self.pid:
            return
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve()
            finally:
                os._exit(1)

    def down(self, how: str) -> None:
        """Let it refuse connections (`refuses`), or answer 503 (`503`)."""
        if how == "503":
            self.flag.touch()
        elif self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def _serve(self) -> None:
        sys.path.append(str(TESTS))
        from fake_upstream import FakeUpstream, Handler, status
        from fake_upstream import Server as Http

        from popi.models.local.model import LocalModel

        flag = self.flag

        class Outage(list):  # type: ignore[type-arg]
            def __bool__(self) -> bool:
                return flag.exists()

            def pop(self, index: Any = -1) -> Any:
                return status(503)

        http = Http(("127.0.0.1", self.port), Handler)
        http.fake = FakeUpstream(url=f"http://127.0.0.1:{self.port}", faults=Outage())
        http.fake.local = LocalModel.load(self.base, device="cpu")
        http.serve_forever()


def play_server(bench: Bench) -> Outcome:
    """An outage after the second step. `fault` is `HOW SECONDS`; 0 seconds: until the run gives up."""
    how, seconds = bench.case.fault.split()
    server = Server(bench.folder / "server", bench.base)
    retries = 25 if float(seconds) > 60 else 9 if float(seconds) else 1
    bench.more = {"model": {"api_generator": {"url": f"http://127.0.0.1:{server.port}/v1", "name": "tiny"}}}
    bench.more["model"]["api_generator"]["retries"] = retries
    began = ended_at = 0.0
    try:
        server.up()
        _, expected = bench.whole()
        config = bench.config("broken")
        log = directory(config) / "log.jsonl"

        def watch() -> None:
            nonlocal began, ended_at
            if not began and len(read_jsonl(log)) >= 2:
                server.down(how)
                began = time.perf_counter()
            if began and not ended_at and float(seconds) and time.perf_counter() - began > float(seconds):
                server.up()
                ended_at = time.perf_counter()

        ended = bench.go(config, watch=watch)
        if not began:
            raise Lost(f"the outage never began: {tail(ended.errors)}")
        if float(seconds):
            succeeded(ended, f"through an outage of {seconds} s")
            if not ended_at:
                raise Lost("it ended before the outage did")
        else:
            stopped_clearly(ended, f"127.0.0.1:{server.port}", "--resume")
            server.up()
            succeeded(bench.go(config), "resumed once the server was back")
        bench.same(expected, config)
        return Outcome(bench.case, UNBROKEN if float(seconds) else RESUMED)
    finally:
        server.down("refuses")


GROUPS: dict[str, Callable[[Bench], Outcome]] = {
    "kill": play_kill,
    "torchrun": play_torchrun,
    "disk": play_disk,
    "corrupt": play_corrupt,
    "reward": play_reward,
    "server": play_server,
}


def play(case: Case, folder: Path, base: Path) -> Outcome:
    """Play a case, and remove what it left unless something was lost."""
    began = time.perf_counter()
    if case.group == "disk" and not can_mount(folder / "probe"):
        return Outcome(case, "skipped", "mounting a small file system takes root", faults=0)
    bench = Bench(case, folder, base)
    try:
        outcome = GROUPS[case.group](bench)
    except Lost as loss:
        outcome = Outcome(case, LOST, str(loss))
    except Exception as error:
        outcome = Outcome(case, LOST, f"the harness failed: {error!r}")
    outcome.seconds = round(time.perf_counter() - began, 1)
    if outcome.result != LOST:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome
