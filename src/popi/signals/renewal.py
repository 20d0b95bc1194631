"""Which old summary a renewal starts from: one followed by enough new signals.

A renewal loses some of the old summary's content, more so the fewer signals it reads, and if each summary is made from
the previous one, these losses compound (docs/streaming.md has measurements). So a renewal starts from the *base*, a
summary that stays the base until `MIN_SIGNALS` signals have been added. Until then, every renewal starts from the same
base and reads all signals since, plus as many earlier ones as needed to read `MIN_SIGNALS`. Losses thus compound only
once per `MIN_SIGNALS` signals, no matter how often the summary is renewed. Before there is a base, all signals are
read.
"""

MIN_SIGNALS = 4
"""Number of new signals after which a new summary becomes the base, and the minimum that a renewal reads."""


def first_read(base: int, total: int, min_signals: int) -> int:
    """Index of the first signal that a renewal reads: the first one after the base, or an earlier one so that it reads
    `min_signals`. If 0, it reads all signals and no old summary.

    Args:
        base: number of signals that the base has read; 0 if there is no base.
        total: number of signals now.
        min_signals: see `MIN_SIGNALS`; 1 always starts from the newest summary.
    """
    return max(0, min(base, total - min_signals))


def becomes_base(base: int, total: int, min_signals: int) -> bool:
    """Whether a renewal's summary becomes the new base. Arguments as for `first_read`."""
    return total - base >= min_signals
