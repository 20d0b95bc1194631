"""Ray Data as the engine of a population's summaries: the only file that imports ray.

Ray Data runs staging and checks as tasks and the models as a pool of actors, hands each actor its next shard when the
last one is written, restarts dead workers, and repeats their work.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from popi.errors import ConfigError, RunError
from popi.population.shard import Row

BLOCKS = 10_000
"""Maximum blocks that Ray Data has to keep track of; with more shards than that, several are in a block."""
STARTS = 3
"""Attempts to start a local cluster: Ray gives up after 30 seconds, which is short for a busy machine."""
OBJECT_STORE = 200 << 20
"""Bytes of the object store of a local cluster; only names and counts go through it."""


class RayEngine:
    """A connection to a Ray cluster, or a cluster on this machine for as long as the block lasts.

    Args:
        address: `auto` or HOST:PORT of a cluster; None starts one on this machine.
        workers: number of actors, or the minimum and maximum of a pool that grows and shrinks. By default as many as
            the cluster has room for.
        cpus: CPUs that each reserves.
        gpus: GPUs that each reserves; they see no others.

    Raises:
        ConfigError: if ray is not installed, or there is no such cluster.
    """

    def __init__(
        self, address: str | None = None, workers: tuple[int, int] | None = None, cpus: float = 1, gpus: float = 0
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("--engine ray needs Ray Data; install it: pip install 'popi[ray]'")
        if address is not None and address.startswith("ray://"):
            raise ConfigError(
                f"--address {address}: Ray Data can't run through Ray's client; run popi on a machine of the cluster "
                "(ray job submit) with --address auto"
            )
        self.address, self.workers, self.cpus, self.gpus = address, workers, cpus, gpus
        self._ours = False

    def __enter__(self) -> Self:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        import ray
        import ray.data

        if not ray.is_initialized():
            self._connect(ray)
            self._ours = True
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # each result is delivered as soon as it is there
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        return self

    def _connect(self, ray: Any) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            size = self.workers[1] if self.workers else 0
            settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
            settings |= {"num_cpus": max(1, round(size * self.cpus)) if size else None}
        for attempts_left in reversed(range(STARTS if self.address is None else 1)):
            try:
                ray.init(self.address, **settings)
                return
            except Exception as error:  # a cluster that does not start in time is a plain Exception
                ray.shutdown()
                if attempts_left:
                    continue
                where = "a local Ray cluster" if self.address is None else f"--address {self.address}"
                hint = "" if self.address is None else "; is `ray start` running, with the same version of Ray?"
                raise ConfigError(f"{where}: can't be used ({str(error).splitlines()[0]}){hint}") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ours:
            import ray

            ray.shutdown()

    def each(self, work: Callable[[Any], Iterable[Row]], items: Sequence[Any]) -> Iterator[Row]:
        """See `Engine`. Runs as tasks."""

        def results(batch: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
            for item in batch["item"]:
                for row in work(json.loads(item)):
                    yield {"row": [json.dumps(row)]}

        return self._rows(self._dataset(items).map_batches(results, batch_size=1, num_cpus=1))

    def each_with_writer(self, make: Callable[[], Callable[[str], Row]], items: Sequence[str]) -> Iterator[Row]:
        """See `Engine`. Runs as a pool of actors."""
        from ray.data import ActorPoolStrategy

        low, high = self.workers or (self._room(), self._room())
        # One shard per actor at a time: another one would wait for it while other actors are idle.
        pool = ActorPoolStrategy(min_size=low, max_size=max(low, high), max_tasks_in_flight_per_actor=1)
        actors = {"num_cpus": self.cpus, "num_gpus": self.gpus or None, "compute": pool}
        return self._rows(self._dataset(items).map_batches(_Actor, batch_size=1, fn_constructor_args=(make,), **actors))

    def _dataset(self, items: Sequence[Any]) -> Any:
        import ray.data

        rows = [{"item": json.dumps(item)} for item in items]
        return ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS))

    def _rows(self, dataset: Any) -> Iterator[Row]:
        from ray.exceptions import RayError

        try:
            for row in dataset.iter_rows():
                yield json.loads(row["row"])
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            words = (str(cause).strip().splitlines() or [""])[-1]
            raise RunError(
                f"a worker failed ({type(cause).__name__}: {words}); summaries so far are kept; continue with --resume"
            ) from error

    def _room(self) -> int:
        """The number of workers that the cluster has room for now."""
        import ray

        resources = ray.cluster_resources()
        room = [resources.get(kind, 0) / each for kind, each in (("CPU", self.cpus), ("GPU", self.gpus)) if each]
        return max(1, int(min(room, default=1)))


class _Actor:
    """A worker process: makes the model once, and writes shards."""

    def __init__(self, make: Callable[[], Callable[[str], Row]]) -> None:
        self._write = make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"row": [json.dumps(self._write(json.loads(item))) for item in batch["item"]]}
