"""How old evidence fades. Training, evaluation and the gateway all use this rule.

A signal has the weight 2^(−a/H), where a is the number of the same user's later signals and H is `HALF_LIFE`. The worth
of a summary is the total weight of the signals it is based on. For n such signals, followed by k newer ones, it is

    worth(n, k) = Σ_{a=k}^{k+n−1} 2^(−a/H) = 2^(−k/H) · (1 − 2^(−n/H)) / (1 − 2^(−1/H))

The inference model sees this number, rounded, with the old summary. If it rounds to 0 (below ½), the old summary is not
shown at all. The reasons for this rule:

- It depends only on n and k, so it does not matter whether the n signals came in one batch or in sixteen, and a single
  number has to be stored with a summary.
- For any length of history, a summary is worth at most 1/(1 − 2^(−1/H)) ≈ 1.44·H signals, and after H new signals the
  new evidence weighs as much as all earlier evidence: changed preferences can always prevail.
"""

from dataclasses import dataclass

HALF_LIFE = 16
"""H: the number of newer signals after which a signal's weight has halved."""


@dataclass(frozen=True)
class Previous:
    """An old summary as shown to the inference model.

    Attributes:
        text: the summary.
        worth: its weight as a number of new signals, at least 1.
    """

    text: str
    worth: int


def worth(read: int | None, new: int) -> float:
    """The weight of an old summary as a number of signals (the module's formula).

    Args:
        read: number of signals it is based on, n; None if unknown, treated as infinitely many.
        new: number of signals since then, k.
    """
    step = 2 ** (-1 / HALF_LIFE)
    return step**new * (1 - (0.0 if read is None else step**read)) / (1 - step)


def previous(text: str, read: int | None, new: int) -> Previous | None:
    """The old summary after `new` further signals; None if its evidence has faded."""
    rounded = int(worth(read, new) + 0.5)
    return Previous(text, rounded) if rounded else None
