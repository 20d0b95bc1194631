"""Several processes that train one run: `torchrun` or `accelerate launch`, with a copy of the models in each (DDP).

Every process trains its share of each step. Rollouts, rewards and metrics are those of one process:

- A step's rows are divided, never multiplied: `users_per_step` and `batch_size` count the rows of all processes.
- The random streams of all processes stay equal, since each draws the numbers of the whole step and uses those of its
  own rows (`popi.training.sampling`).
- Whatever a step learns is gathered, so that all processes log the same metrics and stop at the same step.
- The first process alone writes: `decide` has it do something and gives the result to all.

Small Python objects are exchanged through gloo, also where gradients go through NCCL: a wait there is bounded by
`TIMEOUT` and blocks no GPU.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from popi.config import RunConfig
from popi.errors import ConfigError, PopiError, RunError

TIMEOUT = timedelta(hours=6)
"""Maximum time that a process waits for another. The launcher ends the run when a process dies; this is for processes
that hang."""
GRACE = 20.0
"""Seconds that a failing process other than the first waits to be ended by the launcher before it reports its error:
most errors arise in all processes, and the first reports them."""
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "Timed out waiting")
"""Phrases in gloo's errors when another process is gone."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """The processes of a run and this one's rank. By default there is one process, and every method is trivial.

    Attributes:
        rank: rank of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1
    group: Any = None
    """The gloo group; None is torch's default group."""

    @classmethod
    def started(cls, config: RunConfig) -> "Processes":
        """Join the processes that a launcher started; without a launcher there is only this process."""
        if launched() == 1:
            return cls()
        if not dist.is_initialized():  # here, and not in the trainer: users and references are read before there is one
            if not on_cpu(config):
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("gloo" if on_cpu(config) else "nccl", timeout=TIMEOUT)
        group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=TIMEOUT)
        return cls(dist.get_rank(), dist.get_world_size(), group)

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's contiguous share of the items; shares differ by at most one item."""
        if self.alone:
            return items
        n = len(items)
        return items[self.rank * n // self.size : (self.rank + 1) * n // self.size]

    def gather(self, value: Item) -> list[Item]:
        """The values of all processes, by rank. All processes must call it, as with `decide`."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def decide(self, compute: Callable[[], Item]) -> Item:
        """Have the first process compute something, and return its result in all of them."""
        if self.alone:
            return compute()
        results: list[Any] = [compute() if self.first else None]
        dist.broadcast_object_list(results, src=0, group=self.group)
        result: Item = results[0]
        return result

    def wait(self) -> None:
        """Wait until all processes are here."""
        if not self.alone:
            dist.barrier(group=self.group)

    def permutation(self, n: int) -> Tensor:
        """Order of this process's `n` rows, as they stand in one permutation of the rows of all processes. (n,)"""
        whole = torch.randperm(n * self.size) - n * self.rank
        return whole[(whole >= 0) & (whole < n)]

    @contextmanager
    def own_noise(self) -> Iterator[None]:
        """A context with separate random numbers per process; afterwards the random states are equal again."""
        if self.alone:
            yield
            return
        seed = int(torch.randint(2**62, (1,)))
        with torch.random.fork_rng():
            torch.manual_seed(seed + self.rank)
            yield


ALONE = Processes()


@contextmanager
def reporting(path: Any) -> Iterator[None]:
    """Report an error once: by the first process, or else by the process that alone met it. `path`: of the run."""
    rank, size = int(os.environ.get("RANK", "0")), launched()
    try:
        yield
    except Exception as error:
        if size == 1:
            raise
        if rank:
            time.sleep(GRACE)
        if isinstance(error, RuntimeError) and any(words in str(error) for words in LOST):
            raise RunError(
                f"process {rank} of {size}: another process of this run has ended, and its own message says why. "
                f"{path} stands as at its newest checkpoint: start all processes again, with --resume"
            ) from None
        if isinstance(error, PopiError) and rank:
            raise RunError(f"process {rank} of {size}: {error}") from None
        raise


def leave() -> None:
    """Leave the process group, after the last joint operation."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launched() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_cpu(config: RunConfig) -> bool:
    """Whether the models run on the CPU."""
    return config.model.device == "cpu" or not torch.cuda.is_available()


def refuse_several(command: str) -> None:
    """Raise ConfigError if a launcher started several processes for a command that needs one."""
    if (n := launched()) > 1:
        raise ConfigError(
            f"{command} runs in one process, but {n} were started (WORLD_SIZE): start it without torchrun or "
            "accelerate launch; only `popi train CONFIG` trains in several"
        )


def fingerprint(parameters: Sequence[Tensor]) -> list[int]:
    """One number per parameter: the sum of its bits as integers, which no order of summation changes."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [int(p.detach().contiguous().view(kinds[p.element_size()]).sum(dtype=torch.int64)) for p in parameters]
