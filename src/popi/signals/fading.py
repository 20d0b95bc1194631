"""How old evidence fades: the one rule of training, evaluation and the gateway.

A signal counts 2^(−a/H), where a is how many of the same user's signals came after it and H is `HALF_LIFE`. A summary
counts as the signals that it rests on. Of one that rests on n signals, with k newer ones beside it, that is

    worth(n, k) = Σ_{a=k}^{k+n−1} 2^(−a/H) = 2^(−k/H) · (1 − 2^(−n/H)) / (1 − 2^(−1/H))

The inference model is told this number, rounded, beside the old summary; where it rounds to 0, below ½, the old summary
is not shown at all. Why so:

- It depends on n and k alone, so it is the same whether the n signals came in one batch or in sixteen, and one number
  is all that has to be stored with a summary.
- However old a user, a summary counts at most 1/(1 − 2^(−1/H)) ≈ 1.44·H signals, and after H new signals what is new
  counts as much as all that was before: a preference that changes can always win.
"""

from dataclasses import dataclass

HALF_LIFE = 16
"""H: after so many newer signals a signal counts half."""


@dataclass(frozen=True)
class Previous:
    """An old summary as the inference model is shown it.

    Attributes:
        text: what it says.
        worth: how many of the new signals it counts as much as, at least 1.
    """

    text: str
    worth: int


def worth(read: int | None, new: int) -> float:
    """How many signals an old summary counts as much as (the module's formula).

    Args:
        read: how many signals it rests on, n; None: not known, taken as very many.
        new: how many signals came since, k.
    """
    step = 2 ** (-1 / HALF_LIFE)
    return step**new * (1 - (0.0 if read is None else step**read)) / (1 - step)


def previous(text: str, read: int | None, new: int) -> Previous | None:
    """The old summary beside `new` signals; None where its evidence has faded."""
    counts = int(worth(read, new) + 0.5)
    return Previous(text, counts) if counts else None
