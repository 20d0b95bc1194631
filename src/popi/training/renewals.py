"""Rows that are renewals: an old summary of the earlier signals, the later signals themselves, and the last targets.

A user's signals are split in time at a point drawn per row, with at least one signal on either side. The number of new
signals is drawn uniformly on a logarithmic scale: in practice it is small, and information survives many renewals only
if it is carried over when there is a single new signal. The phase's *initial* inference model writes the old summary
of the earlier signals, with greedy decoding as in use. It is written before the first step and stored in the phase's
`renewals.jsonl`, so that a resumed run trains on the same rows. It becomes outdated during the phase, because the
trained model would write it differently (docs/streaming.md explains why this is acceptable).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from popi.inference_model import InferenceModel
from popi.models.backend import BATCH
from popi.runs.files import read_jsonl, write_jsonl
from popi.runs.formats import current_names
from popi.signals.fit import oldest_first
from popi.signals.types import Signal, User
from popi.summary import Summary
from popi.training.processes import ALONE, Processes

FILE = "renewals.jsonl"


@dataclass(frozen=True)
class Renewal:
    """What one row shows of a user instead of all signals.

    Attributes:
        previous: the old summary of the earlier signals.
        signals: the later signals.
    """

    previous: Summary
    signals: tuple[Signal, ...]


def split_in_time(signals: Sequence[Signal], cut: int) -> tuple[list[Signal], list[Signal]]:
    """The `cut` oldest signals and the rest, both oldest first."""
    ordered = [signals[i] for i in oldest_first(signals)]
    return ordered[:cut], ordered[cut:]


def new_signals(n: int, place: float) -> int:
    """Number of new ones among `n` ≥ 2 signals, 1 to n − 1, for a `place` in [0, 1): ⌊n^place⌋, with median ⌊√n⌋."""
    return min(int(n**place), n - 1)


def cuts(users: Sequence[User], order: Sequence[int], share: float, seed: int) -> list[int]:
    """For each entry of `order` (indices of `users`), the number of earlier signals; 0 means that it is not a renewal.

    Users with fewer than two signals can't be split.
    """
    rng = Random(f"popi-renewal-{seed}")
    result = []
    for i in order:
        chosen, place = rng.random() < share, rng.random()
        n = len(users[i].signals)
        result.append(n - new_signals(n, place) if chosen and n > 1 else 0)
    return result


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
    """For each entry of `order` its renewal, or None if it is not one; a single None if `share` is 0.

    Args:
        users: the phase's users.
        order: indices of users, one per row.
        share: share of rows that are renewals.
        seed: the phase's seed.
        inference_model: the phase's initial inference model, which writes the old summaries.
        folder: the phase's folder, where old summaries are stored.
        report: called with the number of old summaries to write; returns a function to call with the number written.
        processes: write batches in parallel; the first process stores them.
    """
    if not share:
        return None
    placed = list(zip(order, cuts(users, order, share, seed), strict=True))
    stored = processes.decide(lambda: read_jsonl(folder / FILE))
    summaries = {(row["user"], row["cut"]): row for row in stored}
    missing = [key for key in dict.fromkeys(placed) if key[1] and key not in summaries]
    if missing:
        earlier = [split_in_time(users[i].signals, cut)[0] for i, cut in missing]
        written: list[Summary] = []
        progress = report(len(missing))
        for start in range(0, len(missing), BATCH * processes.size):
            first = start + BATCH * processes.rank  # whole batches, so that each is the one of a single process
            own = inference_model.summarize_many(earlier[first : first + BATCH])
            written += [one for part in processes.gather(own) for one in part]
            progress(len(written))
        for (i, cut), one in zip(missing, written, strict=True):
            facts = {"summary": one.text, "tokens": one.tokens, "signals_total": one.signals_total}
            facts["abstained"] = one.abstained
            summaries[i, cut] = {"user": i, "user_id": users[i].user_id, "cut": cut, **facts}
        if processes.first:
            write_jsonl(folder / FILE, summaries.values())
    return [_renewal(users[i], summaries[i, cut]) if cut else None for i, cut in placed]


def _renewal(user: User, row: dict) -> Renewal:
    row = current_names(row)
    previous = Summary(row["summary"], row["tokens"], abstained=row["abstained"], signals_total=row["signals_total"])
    return Renewal(previous, tuple(split_in_time(user.signals, row["cut"])[1]))
