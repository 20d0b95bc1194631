"""A summary that is a copy of the user's signals: a baseline for inference models, and a fallback without a model.

The template set determines which part of a signal is copied and how it is worded (`copy.j2`, and `copy_opening` and
`copy_separator` in set.toml): by default the preferred response of a pair, a response or the user's edit of it, and the
text of everything else. Nothing is rewritten or truncated: whole signals are dropped to fit, as in `popi.signals.fit`.
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
        templates: determine what is copied of a signal.
        signals: the user's signals.
        budget: maximum tokens of the copy, including its opening.
        count: text → number of tokens.

    Returns:
        The text. It is blank, so that it names no preference, if nothing is copied or nothing fits.

    Raises:
        ConfigError: if the template set can't copy.
    """
    opening, separator = templates.copy_opening, templates.copy_separator
    before = count(opening)
    texts = [None if too_long(signal, budget) else templates.copied_text(signal) for signal in signals]
    copied = [index for index, text in enumerate(texts) if text != ""]
    fitting, _ = fit(
        [signals[index] for index in copied],
        [texts[index] for index in copied],
        separator,
        max(0, budget - before),
        lambda text: count(opening + text) - before,
    )
    identities = set(map(id, fitting))
    dropped = tuple(signals[i].id or f"#{i + 1}" for i in copied if id(signals[i]) not in identities)
    copies = [str(texts[i]) for i in copied if id(signals[i]) in identities]
    return (opening + separator.join(copies) if copies else ""), dropped
