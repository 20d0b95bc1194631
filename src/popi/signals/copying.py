"""A summary that is the user's signals, copied: what a writer has to beat, and a writer where there is no model.

What of a signal is copied, and in which words it stands, is the template set's (`copy.j2`, `copy_opening` and
`copy_separator` in set.toml): by default the preferred response of a pair, a response or the user's edit of it, and
the text of everything else. Nothing is rewritten, and no signal is cut: what does not fit goes whole, by the rule of
`popi.signals.fit`.
"""

from collections.abc import Callable, Sequence

from popi.signals.fit import fit, too_long
from popi.signals.render import Templates
from popi.signals.types import Signal


def copy_signals(
    templates: Templates, signals: Sequence[Signal], budget: int, count: Callable[[str], int]
) -> tuple[str, tuple[str, ...]]:
    """The copy of a user's signals, and the names of those dropped (`popi.signals.fit.fit`).

    Args:
        templates: say what is copied of a signal.
        signals: the user's, in any number.
        budget: most tokens of the copy, its opening words included.
        count: text → tokens.

    Returns:
        The text: blank, so that it names no preference, where nothing is copied or nothing fits.

    Raises:
        ConfigError: the template set can't copy.
    """
    opening, separator = templates.copy_opening, templates.copy_separator
    before = count(opening)
    texts = [None if too_long(signal, budget) else templates.copied_text(signal) for signal in signals]
    copied = [index for index, text in enumerate(texts) if text != ""]
    kept, _ = fit(
        [signals[index] for index in copied],
        [texts[index] for index in copied],
        separator,
        max(0, budget - before),
        lambda text: count(opening + text) - before,
    )
    stays = set(map(id, kept))
    dropped = tuple(signals[i].id or f"#{i + 1}" for i in copied if id(signals[i]) not in stays)
    copies = [str(texts[i]) for i in copied if id(signals[i]) in stays]
    return (opening + separator.join(copies) if copies else ""), dropped
