"""Starts `popi train` in forked processes, and ends them by SIGKILL: at a moment, or at a dangerous place.

Importing torch and popi takes seconds, so this process imports them once, and each run is a fork of it that calls the
command line's own entry point. Several processes are forked as `torchrun` would start them, with its environment
variables; if one dies, the others are ended.

This process itself must never compute with torch: threads do not survive a fork.
"""

import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import popi.cli
import popi.training.train  # noqa: F401  imported before the fork, with torch, transformers and PEFT
from training_faults.bombs import Bomb, count_calls, count_operations

TESTS = Path(__file__).parents[3] / "tests"
GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL for the processes of a run that has lost one."""
LIMIT = 1800.0
"""Seconds after which a run counts as hanging."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Ended:
    """How a run ended.

    Attributes:
        code: the exit status of the process that first ended abnormally, or 0; −9 if it was killed.
        seconds: how long it ran.
        errors: what its processes wrote to stderr.
        counts: how many file operations, half-written files, evaluations and steps there were, in the first process.
        killed: by a bomb, or at a moment.
    """

    code: int
    seconds: float
    errors: str
    counts: dict[str, int]
    killed: bool


_listing: Path | None = None
"""Where a process lists the modules that it has imported."""
Patch = Callable[[], None]
"""Called in each process before it starts: a fault that is to befall it."""


def run(
    config: Path,
    scratch: Path,
    *,
    processes: int = 1,
    bomb: Bomb | None = None,
    moment: float | None = None,
    victims: tuple[int, ...] | None = None,
    patch: Patch | None = None,
    precision: str = "float32",
    seed: int = 0,
    watch: Callable[[], None] | None = None,
) -> Ended:
    """Run `popi train CONFIG --resume` until it ends.

    Args:
        config: the file.
        scratch: a folder for what the processes write to stderr.
        processes: how many to start.
        bomb: where one of them dies.
        moment: seconds after which to kill; None never does.
        victims: ranks to kill at that moment; None is all of them.
        patch: a fault.
        precision: of the weights; float64 by the tests' own means.
        watch: called every few milliseconds while it runs.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    port, began = free_port(), time.perf_counter()
    places = [scratch / f"{rank}.json" for rank in range(processes)]
    logs = [scratch / f"{rank}.log" for rank in range(processes)]
    for file in (*places, *logs):
        file.unlink(missing_ok=True)
    pids: dict[int, int] = {}
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            _child(config, rank, processes, port, bomb, patch, precision, logs[rank], places[rank], seed)
        pids[rank] = pid
    code, killed, ended = 0, False, dict[int, int]()
    try:
        while len(ended) < processes:
            time.sleep(0.002)
            if watch is not None:
                watch()
            if moment is not None and not killed and time.perf_counter() - began >= moment:
                for rank in pids if victims is None else victims:
                    if rank not in ended:
                        os.kill(pids[rank], signal.SIGKILL)
                        killed = True
            for rank, pid in pids.items():
                if rank in ended:
                    continue
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[rank] = os.waitstatus_to_exitcode(status)
                    code = code or ended[rank]
            killed = killed or -signal.SIGKILL in ended.values()
            if code and len(ended) < processes:
                _end([pid for rank, pid in pids.items() if rank not in ended], ended, pids)
            if time.perf_counter() - began > LIMIT:
                return Ended(-1, LIMIT, "it hangs", {}, False)
    finally:
        for rank, pid in pids.items():
            if rank not in ended:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    counts = json.loads(places[0].read_text()) if places[0].is_file() else {}
    errors = "\n".join(log.read_text(errors="replace") for log in logs if log.is_file())
    return Ended(code, time.perf_counter() - began, errors, counts, killed)


def _end(others: list[int], ended: dict[int, int], pids: dict[int, int]) -> None:
    """End the other processes, as torchrun does."""
    for pid in others:
        os.kill(pid, signal.SIGTERM)
    until = time.perf_counter() + GRACE
    while others:
        time.sleep(0.005)
        for pid in list(others):
            if time.perf_counter() > until:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                others.remove(pid)
                ended[next(rank for rank, own in pids.items() if own == pid)] = os.waitstatus_to_exitcode(status)


def _child(
    config: Path,
    rank: int,
    processes: int,
    port: int,
    bomb: Bomb | None,
    patch: Patch | None,
    precision: str,
    log: Path,
    place: Path,
    seed: int,
) -> None:
    """One process of a run; never returns."""
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ["COLUMNS"] = "10000"  # so that no name is wrapped
        if processes > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        own = bomb if bomb is not None and bomb.rank == rank else None
        counts: dict[str, int] = {}
        count_calls(own, counts, Random(seed))
        count_operations(Path(json.loads(config.read_text())["root"]), own, counts)
        if patch is not None:
            patch()
        sys.argv = ["popi", "train", str(config), "--resume"]
        try:
            with in_precision(precision):
                popi.cli.main()
        except SystemExit as end:
            code = int(end.code or 0)  # popi exits with numbers only
        place.write_text(json.dumps(counts))
        if _listing is not None:
            _listing.write_text(json.dumps(sorted(sys.modules)))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def in_precision(precision: str) -> Any:
    """A context in which all weights have this precision."""
    if precision == "float32":
        return nullcontext()
    sys.path.append(str(TESTS))
    from exact import in_precision

    return in_precision(precision)


def in_child(work: Callable[[], None]) -> None:
    """Do something with torch in a fork, since this process must not."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("a child process failed")


def by_torchrun(config: Path, processes: int, scratch: Path, when: Callable[[], bool] = lambda: False) -> Ended:
    """The same under torchrun itself, which is killed, with its processes, as soon as `when` is true."""
    scratch.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "popi", "train", str(config), "--resume"]
    began, log, killed = time.perf_counter(), scratch / "torchrun.log", False
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        while process.poll() is None:
            time.sleep(0.005)
            if when() or time.perf_counter() - began > LIMIT:
                killed = True
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Ended(process.returncode, time.perf_counter() - began, log.read_text(errors="replace"), {}, killed)


def warm_up(config: Path, scratch: Path) -> Ended:
    """Train once in a fork, then import what it had to import: each later fork finds it in memory."""
    listing = scratch / "modules.json"

    def patch() -> None:
        global _listing
        _listing = listing

    ended = run(config, scratch, patch=patch)
    for name in json.loads(listing.read_text()) if listing.is_file() else ():
        with suppress(Exception):
            importlib.import_module(name)
    with suppress(ImportError):  # compiling its expressions takes half a second
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("llama")
    gc.collect()
    gc.freeze()  # so that collecting garbage does not copy what forks share
    return ended
