"""A user as a line of the JSONL that `popi train` reads: what the gateway gathered goes back into training.

The newest preference pairs become the user's targets, which training scores a summary on; a signal that shows the same
pair, or nearly, is left out of the signals, and so are signals that say the same twice and pairs of two equal
responses: `popi data check` finds nothing in the line.
"""

from collections.abc import Sequence

from popi.signals.similarity import leak
from popi.signals.types import PairSignal, Signal, TargetPair, User

TARGETS = 4
"""Most target pairs of a user, as in a window of preference rows."""


def training_user(user_id: str, signals: Sequence[Signal], targets: int = TARGETS) -> User:
    """The line of one user.

    Args:
        user_id: as it stands in the file.
        signals: all of the user's, oldest first.
        targets: most pairs to hold out; at most half of the user's pairs are. 0: none, for `popi infer`.
    """
    distinct = _distinct(signals)
    pairs = [signal for signal in distinct if isinstance(signal, PairSignal)]
    held_out = pairs[len(pairs) - min(targets, (len(pairs) + 1) // 2) :] if len(distinct) > 1 and targets else []
    chosen: list[TargetPair] = []
    taken: set[int] = {id(pair) for pair in held_out}
    for pair in held_out:
        chosen.append(TargetPair(prompt=pair.prompt, chosen=pair.chosen, rejected=pair.rejected))
    kept = [
        signal
        for signal in distinct
        if id(signal) not in taken and not any(leak(target, signal) is not None for target in chosen)
    ]
    if not kept:  # nothing would be left to read: a summary of nothing can't be trained
        return User(user_id=user_id, signals=distinct)
    return User(user_id=user_id, signals=kept, targets=chosen)


def _distinct(signals: Sequence[Signal]) -> list[Signal]:
    seen: set[str] = set()
    distinct = []
    for signal in signals:
        if isinstance(signal, PairSignal) and signal.chosen.casefold() == signal.rejected.casefold():
            continue
        content = signal.model_dump_json(exclude={"id", "time"})
        if content not in seen:
            seen.add(content)
            distinct.append(signal)
    return distinct


def as_signals(signals: Sequence[Signal], targets: Sequence[TargetPair], there: Sequence[Signal]) -> list[Signal]:
    """A line's signals, and behind them its targets as pairs; without targets that are among those `there` already."""
    known = {_pair(one) for one in (*there, *signals) if isinstance(one, PairSignal)}
    pairs = [PairSignal(prompt=one.prompt, chosen=one.chosen, rejected=one.rejected) for one in targets]
    return [*signals, *(pair for pair in pairs if _pair(pair) not in known)]


def _pair(pair: PairSignal) -> str:
    return pair.model_dump_json(include={"prompt", "chosen", "rejected"})
