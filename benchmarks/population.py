"""`popi infer --engine ray` with a simulated model: throughput by number of workers, memory by number of users, and the
death of workers.

    python benchmarks/population.py scaling --workers 1 4 16
    python benchmarks/population.py memory --users 10000 100000 1000000
    python benchmarks/population.py kill --workers 4 --users 4000 --shard-users 100 --kills 20
    python benchmarks/population.py cost --tokens 2048 256 --price 3

The simulated model takes `--latency` seconds for every 32 users and computes nothing. `scaling` counts from the moment
when all workers have loaded it, since starting many processes on few cores says nothing about a cluster. `memory` runs
each number of users in a new process. Only processes that this program started are killed.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from popi.errors import PopiError
from popi.inference_model import InferenceModel
from popi.models.architecture import architecture_of
from popi.models.backend import Backend, Reply
from popi.population.ray_engine import RayEngine
from popi.population.run import Order, Totals, summarize_population
from popi.signals.types import Signal
from popi.summary import Summary

BATCH = 32


class Nothing(Backend):
    name = "simulated"

    def chat_many(self, conversations: Any, **settings: Any) -> list[Reply | PopiError]:
        raise NotImplementedError


class Simulated(InferenceModel):
    """A model that sleeps. Each process that loads it leaves a file named by its id."""

    def __init__(self, latency: float, loaded: Path, workers: int) -> None:
        super().__init__(Nothing())
        self.latency, self.loaded, self.workers = latency, loaded, workers
        (loaded / str(os.getpid())).touch()

    def summarize_each(self, users: Sequence[Sequence[Signal]], *_: Any, **__: Any) -> list[Summary | PopiError]:
        while len(list(self.loaded.iterdir())) < self.workers:
            time.sleep(0.1)
        for _ in range(-(-len(users) // BATCH)):
            time.sleep(self.latency)
        return [Summary("likes short answers.", 4, len(signals), model=self.name) for signals in users]


def simulated(latency: float, loaded: Path, workers: int) -> InferenceModel:
    return Simulated(latency, loaded, workers)


def write_users(path: Path, number: int) -> None:
    with path.open("w") as file:
        for n in range(number):
            signals = [{"type": "statement", "text": f"i like answers of {k + n} words."} for k in range(4)]
            file.write(json.dumps({"user_id": f"user-{n}", "signals": signals}) + "\n")


def run(
    folder: Path,
    users: int,
    workers: int,
    latency: float,
    shard_users: int,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
) -> tuple[Totals, float]:
    """Summarise made-up users. Returns the result, and the users per second once all workers were there."""
    write_users(folder / "users.jsonl", users)
    loaded = folder / "loaded"
    loaded.mkdir()
    make = partial(simulated, latency, loaded, workers)
    ends: list[float] = []

    def record(step: str, done: int, total: int | None) -> None:
        if step.startswith("users ("):
            ends.append(time.time())
        progress(step, done, total)

    with RayEngine(workers=(workers, workers)) as engine:
        order = Order(folder / "users.jsonl", folder / "out", {}, make, shard_users=shard_users)
        totals = summarize_population(order, lambda: engine, record)
    started = sorted(file.stat().st_mtime for file in loaded.iterdir())[workers - 1]
    return totals, users / (ends[-1] - started)


def scaling(workers: list[int], latency: float, shard_users: int, shards: int) -> None:
    print(f"{latency} s per {BATCH} users, {shard_users} users per shard, {shards} shards per worker")
    print("| Workers | Users | Users per second | Efficiency |\n|---|---|---|---|")
    ideal = BATCH / latency
    first = 0.0
    for number in workers:
        with tempfile.TemporaryDirectory() as folder:
            totals, rate = run(Path(folder), number * shards * shard_users, number, latency, shard_users)
        first = first or rate / number
        efficiency = f"{rate / number / first:.3f} ({rate / number / ideal:.3f} of the model's {ideal:.0f})"
        print(f"| {number} | {totals.written:,} | {rate:.1f} | {efficiency} |", flush=True)


def memory(users: list[int], shard_users: int) -> None:
    print("| Users | Driver's peak, MiB | Before the first user, MiB | Seconds |\n|---|---|---|---|")
    for number in users:
        command = [sys.executable, __file__, "one", "--users", str(number), "--shard-users", str(shard_users)]
        print(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(), flush=True)


def one(users: int, shard_users: int) -> None:
    """One line of `memory`."""
    at_start = 0.0

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def record(step: str, done: int, total: int | None) -> None:
        nonlocal at_start
        at_start = at_start or peak()

    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        totals, _ = run(Path(folder), users, 2, 0.0, shard_users, record)
    assert totals.written == users
    print(f"| {users:,} | {peak():.0f} | {at_start:.0f} | {time.monotonic() - started:.0f} |")


def kill(users: int, kills: int, workers: int, latency: float, shard_users: int) -> None:
    """Kill workers at random moments, each as soon as another has come up."""
    with tempfile.TemporaryDirectory() as name:
        folder, killed, over = Path(name), set[int](), threading.Event()

        def strike() -> None:
            while not over.is_set() and len(killed) < kills:
                time.sleep(random.uniform(0, 3))
                loaded = folder / "loaded"
                alive = [int(file.name) for file in loaded.iterdir()] if loaded.is_dir() else []
                alive = [pid for pid in alive if pid not in killed and Path(f"/proc/{pid}").exists()]
                if len(alive) >= workers // 2:
                    killed.add(victim := random.choice(alive))
                    os.kill(victim, signal.SIGKILL)

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            totals, _ = run(folder, users, workers, latency, shard_users)
        finally:
            over.set()
            thread.join()
        rows = [json.loads(line)["user_id"] for file in (folder / "out").glob("part-*") for line in file.open()]
        print(
            f"{len(killed)} workers killed, {totals.restarted} shards begun again; {users} users, "
            f"{len(rows)} summaries of {len(set(rows))} users, {totals.rejected} rejected"
        )
        assert sorted(rows) == sorted(f"user-{n}" for n in range(users))


def cost(prompt: int, summary: int, price: float) -> None:
    # They import torch, which would count as the driver's memory.
    from popi.training.planning.population_cost import hours_per_million, seconds_per_user
    from popi.training.planning.sizing import MODELS

    print("| Model | GPU hours per million users | Cost |\n|---|---|---|")
    for size, name in MODELS.items():
        if estimate := seconds_per_user(architecture_of(name)[0], prompt, summary):
            hours = hours_per_million(estimate[0])
            print(f"| {size} | {hours:,.1f} | {hours * price:,.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scaling", "memory", "one", "kill", "cost"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds per 32 users")
    parser.add_argument("--shard-users", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=4, help="shards per worker, for `scaling`")
    parser.add_argument("--tokens", type=int, nargs=2, default=[2048, 256], help="of prompt and summary, for `cost`")
    parser.add_argument("--price", type=float, default=3.0, help="of a GPU hour, for `cost`")
    given = parser.parse_args()
    if given.what == "scaling":
        scaling(given.workers, given.latency, given.shard_users, given.shards)
    elif given.what == "memory":
        memory(given.users, given.shard_users)
    elif given.what == "one":
        one(given.users[0], given.shard_users)
    elif given.what == "cost":
        cost(*given.tokens, given.price)
    else:
        kill(given.users[0], given.kills, given.workers[0], given.latency, given.shard_users)
