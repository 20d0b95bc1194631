"""From which of the old summaries a renewal starts: one that enough signals have come after.

A renewal loses some of what the old summary told, more of it the fewer signals it reads, and where each summary is made
of the one before, losses compound with every one (docs/streaming.md has them measured). So a renewal starts from the
*base*: a summary that stays the base until `LEAST` signals have come since. Meanwhile each renewal starts from it anew
and reads all signals since, and so many before as make `LEAST`. Losses compound once in `LEAST` signals, however often
the summary is renewed. Without a base, at the beginning, all signals are read.
"""

LEAST = 4
"""How many signals come before a summary is made of the one before, and how many a renewal reads at least."""


def first_read(base: int, upto: int, least: int) -> int:
    """Position of the first signal that a renewal reads: that behind the base, or an earlier one, so that it reads
    `least`. 0: it reads all, and no summary.

    Args:
        base: how many signals the base has read; 0 where there is none.
        upto: how many there are now.
        least: see `LEAST`; 1 starts from the newest summary, always.
    """
    return max(0, min(base, upto - least))


def becomes_base(base: int, upto: int, least: int) -> bool:
    """Whether the summary that a renewal has written is the base of the next ones; arguments as `first_read`'s."""
    return upto - base >= least
