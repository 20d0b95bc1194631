"""Fit signals into a token budget by dropping whole signals, and report which ones.

Signals that exceed the budget on their own are dropped first. While the rest is too long, the signal with the lowest
*worth* is dropped:

    worth = recency + contrast

- recency: from 0 for the oldest signal to 1 for the newest, in equal steps. Age is determined by `time` if all signals
  have one, otherwise by their order (oldest first).
- contrast: how clearly the signal shows a preference. For a pair, 1 - Jaccard similarity of the word sets of its two
  responses; for an edited response, the same for response and edit; for any other signal, 0.5.

Ties drop the older signal. The newest signal is thus never dropped before the oldest, and of two signals of the same
age, a pair with different responses outlives one with nearly equal responses.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from popi.signals.similarity import normal
from popi.signals.types import InteractionSignal, PairSignal, Signal, message_text

CHARACTERS_PER_TOKEN = 32
"""Maximum characters per token of the budget. Longer signals are dropped without counting their tokens, which would
take memory and minutes. Ordinary text has 3 to 6."""
TOKENS_PER_BYTE = 12
"""Maximum tokens per byte of UTF-8 for any tokenizer: a token covers at least one byte of the normalised text, and
Unicode NFKC expands a byte to at most 11."""
NEUTRAL = 0.5
"""The contrast of a signal without two texts to compare."""


def fit(
    signals: Sequence[Signal], texts: Sequence[str | None], separator: str, budget: int, count: Callable[[str], int]
) -> tuple[list[Signal], tuple[str, ...]]:
    """The signals that fit, in the given order, and the names of those dropped.

    Args:
        signals: a user's signals.
        texts: the rendered signals; None for those too long to render (`too_long`).
        separator: the text between two signals.
        budget: maximum tokens of all of them together.
        count: text → number of tokens.
    """
    costs = [budget + 1 if text is None else count(text) for text in texts]
    fitting = {index for index, cost in enumerate(costs) if cost <= budget}
    total = sum(costs[index] for index in fitting)
    # Separators, and tokens that span two signals, count too. The sum of costs is only a start; the joined text
    # decides.

    def joined() -> int:
        return count(separator.join(str(texts[index]) for index in sorted(fitting)))

    if total > budget or joined() > budget:
        candidates = iter(_least_worth_first(signals, set(fitting)))
        while total > budget:
            index = next(candidates)
            total -= costs[index]
            fitting.discard(index)
        while fitting and joined() > budget:
            fitting.discard(next(candidates))
    dropped = tuple(signals[i].id or f"#{i + 1}" for i in range(len(signals)) if i not in fitting)
    return [signals[index] for index in sorted(fitting)], dropped


def too_long(signal: Signal, budget: int) -> bool:
    """Whether a signal has too many characters to fit the budget."""
    texts = (value for _, value in signal if isinstance(value, str | list))
    size = sum(len(text) if isinstance(text, str) else sum(len(message_text(turn)) for turn in text) for text in texts)
    return size > CHARACTERS_PER_TOKEN * budget


def surely_fits(text: str, budget: int) -> bool:
    """Whether a text has few enough bytes to fit with any tokenizer. If False, it may or may not fit."""
    return TOKENS_PER_BYTE * (len(text.encode()) + 1) <= budget


def contrast(signal: Signal) -> float:
    """How different a signal's two texts are, from 0 (same words) to 1 (none in common); `NEUTRAL` without two
    texts."""
    if isinstance(signal, PairSignal):
        texts = signal.chosen, signal.rejected
    elif isinstance(signal, InteractionSignal) and signal.edit:
        texts = signal.response, signal.edit
    else:
        return NEUTRAL
    first, second = (set(normal(text).tokens) or {normal(text).text} for text in texts)
    return 1 - len(first & second) / len(first | second)


def _least_worth_first(signals: Sequence[Signal], among: set[int]) -> list[int]:
    by_age = oldest_first(signals)
    newest = max(len(signals) - 1, 1)
    worth = {index: age / newest + contrast(signals[index]) for age, index in enumerate(by_age) if index in among}
    return sorted(worth, key=worth.__getitem__)  # the sort is stable, so ties stay oldest first


def oldest_first(signals: Sequence[Signal]) -> list[int]:
    """Indices ordered by `time` if all signals have one, otherwise in the given order."""
    times = [signal.time for signal in signals]
    known = [_seconds(time) for time in times if time is not None]
    order = list(range(len(signals)))
    return sorted(order, key=known.__getitem__) if len(known) == len(signals) else order


def _seconds(time: str | float) -> float:
    if not isinstance(time, str):
        return float(time)
    moment = datetime.fromisoformat(time)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
