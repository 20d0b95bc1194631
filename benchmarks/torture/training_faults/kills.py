"""SIGKILL at random moments and at dangerous places."""

from random import Random

from popi.runs.files import read_jsonl
from training_faults.bench import UNBROKEN, Bench, Lost, Outcome, directory, succeeded
from training_faults.bombs import PLACES, Bomb
from training_faults.launcher import by_torchrun


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
