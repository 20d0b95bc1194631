"""What fits a token budget: the one rule by which signals are dropped, whole, and reported.

First go signals that do not fit alone. While the rest is too long, the signal of least *worth* goes, one by one:

    worth = recency + contrast

- recency: 0 for the oldest signal, 1 for the newest, equal steps between. Age is `time` where all signals have one,
  else the order given (first is oldest).
- contrast: how much the signal shows of what the user tells apart. A pair: 1 - Jaccard similarity of the sets of words
  of its two responses; an edited response: the same of response and edit; any other signal: 0.5.

Of equal worth, the older goes first. So the newest signal never goes before the oldest, and among signals of one age a
pair whose responses differ outlives one whose responses are nearly the same.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from popi.signals.similarity import normal
from popi.signals.types import InteractionSignal, PairSignal, Signal

NEUTRAL = 0.5
"""The contrast of a signal that puts no two texts side by side."""


def fit(
    signals: Sequence[Signal], texts: Sequence[str], separator: str, budget: int, count: Callable[[str], int]
) -> tuple[list[Signal], tuple[str, ...]]:
    """The signals that stay, in the order given, and the names of those dropped.

    Args:
        signals: a user's signals.
        texts: each rendered.
        separator: what will stand between two of them.
        budget: most tokens of all together.
        count: text → tokens.
    """
    costs = [count(text) for text in texts]
    kept = {index for index, cost in enumerate(costs) if cost <= budget}
    total = sum(costs[index] for index in kept)
    # Separators and tokens across signals' borders count too: the sum finds a start, the whole text decides.
    if total > budget or count(separator.join(texts[index] for index in sorted(kept))) > budget:
        going = iter([index for index in _least_worth_first(signals) if index in kept])
        while total > budget:
            index = next(going)
            total -= costs[index]
            kept.discard(index)
        while kept and count(separator.join(texts[index] for index in sorted(kept))) > budget:
            kept.discard(next(going))
    dropped = tuple(signals[i].id or f"#{i + 1}" for i in range(len(signals)) if i not in kept)
    return [signals[index] for index in sorted(kept)], dropped


def contrast(signal: Signal) -> float:
    """How different the two texts of a signal are, from 0 (the same words) to 1 (none in common); else `NEUTRAL`."""
    if isinstance(signal, PairSignal):
        texts = signal.chosen, signal.rejected
    elif isinstance(signal, InteractionSignal) and signal.edit:
        texts = signal.response, signal.edit
    else:
        return NEUTRAL
    one, other = (set(normal(text).tokens) or {normal(text).text} for text in texts)
    return 1 - len(one & other) / len(one | other)


def _least_worth_first(signals: Sequence[Signal]) -> list[int]:
    by_age = oldest_first(signals)
    newest = max(len(signals) - 1, 1)
    worth = {index: age / newest + contrast(signals[index]) for age, index in enumerate(by_age)}
    return sorted(by_age, key=worth.__getitem__)  # stable: of equal worth the older stays first in line


def oldest_first(signals: Sequence[Signal]) -> list[int]:
    """Indices by age: `time` where all signals have one, else the order given."""
    times = [signal.time for signal in signals]
    known = [_seconds(time) for time in times if time is not None]
    order = list(range(len(signals)))
    return sorted(order, key=known.__getitem__) if len(known) == len(signals) else order


def _seconds(time: str | float) -> float:
    if not isinstance(time, str):
        return float(time)
    moment = datetime.fromisoformat(time)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
