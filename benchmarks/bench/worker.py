"""A separate process for each way, so that peaks of memory are separate and a failure does not affect the others."""

import ctypes
import gc
import importlib
import os
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from bench.cases import Case

WAYS = {
    "ours": "bench.ways:Ours",
    "floor": "bench.ways:Floor",
    "released": "bench.released:Released",
    "trl": "bench.stock:Stock",
}


RUNS, TURN = 3, 30.0
"""Maximum timed runs per turn, and the seconds after which no further run is started; slow ways have only one."""


class Failure(Exception):
    """A way failed; the message describes how."""


def resident() -> int:
    """This process's peak resident memory in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def give_back() -> None:
    """Return freed memory to the system, so that waiting ways do not take it from the active one."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def serve(pipe: Connection, way: str, case: Case, memory_limit: int) -> None:
    """Build a way, then run its part on request. Answers are ("ok", …) or ("failed", reason), and ("ran", None) after
    each run of a turn, so that the parent can enforce its time limit.
    """
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.stderr = nothing
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        gpu = case.device.startswith("cuda")
        if memory_limit and not gpu:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
        module, name = WAYS[way].split(":")
        kind = getattr(importlib.import_module(module), name)
        before = resident()  # excludes the libraries' memory
        try:
            torch.manual_seed(case.seed)
            built = kind(case)
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            pipe.send(("ok", None))
            while (order := pipe.recv()) is not None:
                if order == "check":
                    pipe.send(("ok", {k: v.numpy() for k, v in built.check().items()}))
                    continue
                built.run()  # not timed, since it has to allocate the returned memory again
                pipe.send(("ran", None))
                taken: list[float] = []
                while not taken or (len(taken) < RUNS and sum(taken) + taken[-1] <= TURN):
                    result, seconds = timed(built, gpu)
                    taken.append(seconds)
                    pipe.send(("ran", None))
                peak = torch.cuda.max_memory_allocated() if gpu else resident() - before
                built.policy.zero_grad(set_to_none=True)
                give_back()
                pipe.send(("ok", (statistics.median(taken), peak, {k: v.numpy() for k, v in result.items()})))
        except (MemoryError, torch.OutOfMemoryError) as error:
            pipe.send(("failed", f"out of memory ({type(error).__name__})"))
        except RuntimeError as error:
            short = "DefaultCPUAllocator" in str(error) or "out of memory" in str(error).lower()
            pipe.send(("failed", "out of memory" if short else _message(error)))
        except Exception as error:  # noqa: BLE001 - any failure is the way's result
            pipe.send(("failed", _message(error)))


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def timed(built: Any, gpu: bool) -> tuple[dict[str, torch.Tensor], float]:
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = built.run()
    if gpu:
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


class Worker:
    """The parent's end of a way's process.

    Args:
        context: multiprocessing context, with a server that has imported everything.
        seconds: time limit per run; a turn has an untimed run and a timed one, or more if they are short.
    """

    def __init__(self, context: Any, way: str, case: Case, memory_limit: int, seconds: float) -> None:
        self.seconds = seconds
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=serve, args=(child, way, case, memory_limit), daemon=True)
        self.process.start()
        child.close()

    def answer(self, order: str = "load") -> Any:
        """Wait for the next answer. Raises Failure."""
        limit = self.seconds if order == "run" else 2 * self.seconds + TURN  # loading and checks may take longer
        kind = "ran"
        try:
            while kind == "ran":
                if not self.pipe.poll(limit):
                    self.process.kill()
                    raise Failure(f"out of time (more than {self.seconds:g} s)")
                kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            killed = self.process.exitcode == -9
            raise Failure("out of memory (killed)" if killed else f"ended with {self.process.exitcode}") from None
        if kind == "failed":
            raise Failure(content)
        return content

    def ask(self, order: str) -> Any:
        self.pipe.send(order)
        return self.answer(order)

    def end(self) -> None:
        if self.process.is_alive():
            try:
                self.pipe.send(None)
            except OSError:
                pass
            self.process.join(5)
            self.process.kill()
        self.pipe.close()
