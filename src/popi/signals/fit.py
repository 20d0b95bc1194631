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
from popi.signals.types import InteractionSignal, PairSignal, Signal, said

CHARACTERS = 32
"""Most characters per token of the budget: a longer signal is dropped without counting its tokens, which would take
memory and minutes. Texts have 3 to 6."""
TOKENS_PER_BYTE = 12
"""Maximum tokens per byte of UTF-8, whatever the tokenizer: a token stands for at least a byte of the normalised text,
and Unicode's NFKC makes at most 11 bytes of one."""
NEUTRAL = 0.5
"""The contrast of a signal that puts no two texts side by side."""


def fit(
    signals: Sequence[Signal], texts: Sequence[str | None], separator: str, budget: int, count: Callable[[str], int]
) -> tuple[list[Signal], tuple[str, ...]]:
    """The signals that stay, in the order given, and the names of those dropped.

    Args:
        signals: a user's signals.
        texts: each rendered; None where it was too long for that (`too_long`).
        separator: what will stand between two of them.
        budget: most tokens of all together.
        count: text → tokens.
    """
    costs = [budget + 1 if text is None else count(text) for text in texts]
    kept = {index for index, cost in enumerate(costs) if cost <= budget}
    total = sum(costs[index] for index in kept)
    # Separators and tokens across signals' borders count too: the sum finds a start, the whole text decides.

    def whole() -> int:
        return count(separator.join(str(texts[index]) for index in sorted(kept)))

    if total > budget or whole() > budget:
        going = iter(_least_worth_first(signals, set(kept)))
        while total > budget:
            index = next(going)
            total -= costs[index]
            kept.discard(index)
        while kept and whole() > budget:
            kept.discard(next(going))
    dropped = tuple(signals[i].id or f"#{i + 1}" for i in range(len(signals)) if i not in kept)
    return [signals[index] for index in sorted(kept)], dropped


def too_long(signal: Signal, budget: int) -> bool:
    """Whether a signal can't fit, by its characters alone."""
    texts = (value for _, value in signal)
    size = sum(
        len(v) if isinstance(v, str) else sum(len(said(turn)) for turn in v) for v in texts if isinstance(v, str | list)
    )
    return size > CHARACTERS * budget


def surely_fits(text: str, budget: int) -> bool:
    """Whether a text fits, by its bytes alone, whatever the tokenizer. False says nothing."""
    return TOKENS_PER_BYTE * (len(text.encode()) + 1) <= budget


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


def _least_worth_first(signals: Sequence[Signal], among: set[int]) -> list[int]:
    by_age = oldest_first(signals)
    newest = max(len(signals) - 1, 1)
    worth = {index: age / newest + contrast(signals[index]) for age, index in enumerate(by_age) if index in among}
    return sorted(worth, key=worth.__getitem__)  # stable: of equal worth the older stays first in line


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
