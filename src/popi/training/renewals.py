"""Rows that are renewals: an old summary of the earlier signals, the later signals themselves, and the last targets.

A user's signals are split in time at a place drawn for each row, at least one signal on either side. How many are new
is drawn evenly on a logarithmic scale: in use few are, and what a summary tells survives many renewals only if it is
carried over beside a single new signal. The old summary is the one that the phase's *starting* inference model writes
of the earlier part: greedy, as summaries are written in use. It is written before the first step and kept in the
phase's `renewals.jsonl`, so that a run that goes on after a kill trains on the same rows. It is as old as the phase is
long: by the last step the model would write it otherwise (docs/streaming.md says why that is borne).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from popi.inference_model import InferenceModel
from popi.models.backend import BATCH
from popi.runs.run_directory import read_jsonl, write_jsonl
from popi.signals.fit import oldest_first
from popi.signals.types import Signal, User
from popi.summary import Summary
from popi.training.processes import ALONE, Processes

FILE = "renewals.jsonl"


@dataclass(frozen=True)
class Renewal:
    """What one row shows of a user in place of all signals.

    Attributes:
        previous: the old summary, of the earlier signals.
        signals: the later ones.
    """

    previous: Summary
    signals: tuple[Signal, ...]


def split_in_time(signals: Sequence[Signal], cut: int) -> tuple[list[Signal], list[Signal]]:
    """The `cut` oldest signals, and the others, each part oldest first."""
    ordered = [signals[i] for i in oldest_first(signals)]
    return ordered[:cut], ordered[cut:]


def new_signals(n: int, place: float) -> int:
    """How many of `n` ≥ 2 signals are new, 1 to n − 1, for a `place` in [0, 1): ⌊n^place⌋, the median ⌊√n⌋."""
    return min(int(n**place), n - 1)


def cuts(users: Sequence[User], order: Sequence[int], share: float, seed: int) -> list[int]:
    """For each entry of `order` (indices of `users`) how many signals are the earlier part; 0: the row is no renewal.

    Users with fewer than two signals can't be split.
    """
    rng = Random(f"popi-renewal-{seed}")
    found = []
    for i in order:
        chosen, place = rng.random() < share, rng.random()
        n = len(users[i].signals)
        found.append(n - new_signals(n, place) if chosen and n > 1 else 0)
    return found


def renewals(
    users: Sequence[User],
    order: Sequence[int],
    share: float,
    seed: int,
    inference_model: InferenceModel,
    folder: Path,
    report: Callable[[int], Callable[[int], None]],
    processes: Processes = ALONE,
) -> list[Renewal | None] | None:
    """For each entry of `order` what it shows if it is a renewal, else None; None for all if `share` is 0.

    Args:
        users: the phase's.
        order: indices of them, one a row.
        share: of the rows that are renewals.
        seed: of the phase.
        inference_model: writes old summaries; as it is when the phase starts.
        folder: the phase's; old summaries are kept there.
        report: called with how many old summaries are to be written; returns what is called with how many are.
        processes: write batches of them side by side; the first process stores them.
    """
    if not share:
        return None
    placed = list(zip(order, cuts(users, order, share, seed), strict=True))
    stored = processes.decide(lambda: read_jsonl(folder / FILE))
    kept = {(row["user"], row["cut"]): row for row in stored}
    missing = [key for key in dict.fromkeys(placed) if key[1] and key not in kept]
    if missing:
        earlier = [split_in_time(users[i].signals, cut)[0] for i, cut in missing]
        written: list[Summary] = []
        tell = report(len(missing))
        for start in range(0, len(missing), BATCH * processes.size):
            first = start + BATCH * processes.rank  # whole batches, so that each is the one of a single process
            own = inference_model.summarize_many(earlier[first : first + BATCH])
            written += [one for part in processes.gather(own) for one in part]
            tell(len(written))
        for (i, cut), one in zip(missing, written, strict=True):
            told = {"summary": one.text, "tokens": one.tokens, "rests_on": one.rests_on, "abstained": one.abstained}
            kept[i, cut] = {"user": i, "user_id": users[i].user_id, "cut": cut, **told}
        if processes.first:
            write_jsonl(folder / FILE, kept.values())
    return [_renewal(users[i], kept[i, cut]) if cut else None for i, cut in placed]


def _renewal(user: User, row: dict) -> Renewal:
    previous = Summary(row["summary"], row["tokens"], abstained=row["abstained"], rests_on=row["rests_on"])
    return Renewal(previous, tuple(split_in_time(user.signals, row["cut"])[1]))
