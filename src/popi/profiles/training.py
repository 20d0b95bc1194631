"""A user as a JSONL line for `popi train`, so that data collected by the gateway can be used for training.

The newest preference pairs become the user's targets, on which training scores summaries. Signals that show the same
pair or nearly the same, duplicate signals, and pairs of two equal responses are omitted, so that the line passes
`popi data check`.
"""

from collections.abc import Sequence

from popi.signals.similarity import leak
from popi.signals.types import PairSignal, Signal, TargetPair, User

TARGETS = 4
"""Maximum target pairs per user, as in a window of preference rows."""


def training_user(user_id: str, signals: Sequence[Signal], targets: int = TARGETS) -> User:
    """One user's line.

    Args:
        user_id: the id to write.
        signals: all of the user's signals, oldest first.
        targets: maximum pairs to hold out, up to half of the user's pairs; 0 holds out none, for `popi infer`.
    """
    distinct = _distinct(signals)
    pairs = [signal for signal in distinct if isinstance(signal, PairSignal)]
    held_out = pairs[len(pairs) - min(targets, (len(pairs) + 1) // 2) :] if len(distinct) > 1 and targets else []
    chosen: list[TargetPair] = []
    taken: set[int] = {id(pair) for pair in held_out}
    for pair in held_out:
        chosen.append(TargetPair(prompt=pair.prompt, chosen=pair.chosen, rejected=pair.rejected))
    remaining = [
        signal
        for signal in distinct
        if id(signal) not in taken and not any(leak(target, signal) is not None for target in chosen)
    ]
    if not remaining:  # without signals to read, a summary can't be trained
        return User(user_id=user_id, signals=distinct)
    return User(user_id=user_id, signals=remaining, targets=chosen)


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


def as_signals(signals: Sequence[Signal], targets: Sequence[TargetPair], stored: Sequence[Signal]) -> list[Signal]:
    """A line's signals, followed by its targets as pairs, except targets that are already `stored`."""
    known = {_pair(one) for one in (*stored, *signals) if isinstance(one, PairSignal)}
    pairs = [PairSignal(prompt=one.prompt, chosen=one.chosen, rejected=one.rejected) for one in targets]
    return [*signals, *(pair for pair in pairs if _pair(pair) not in known)]


def _pair(pair: PairSignal) -> str:
    return pair.model_dump_json(include={"prompt", "chosen", "rejected"})
