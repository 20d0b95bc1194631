"""What a model wrote, as a summary; and an old summary beside the signals that came since."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from popi.profiles.screening import Screened, screened
from popi.signals.fading import Previous
from popi.signals.fading import previous as faded
from popi.signals.render import Templates
from popi.signals.types import Signal
from popi.summary import Summary

ENDINGS = (".", "!", "?", "…", "。", "！", "？")
Old = str | Summary | Previous | None
"""An old summary to renew. Of one without its number of signals (`rests_on`) it is taken that they were very many; a
`Previous` is shown as it is."""


def summary_of(
    templates: Templates,
    text: str,
    used: int,
    dropped: tuple[str, ...],
    model: str,
    count: Callable[[str], int],
    tokens: int | None = None,
    behind: int | None = 0,
    fit: Screened | None = None,
) -> Summary:
    """What a model wrote, as a summary.

    What a summary may not carry is left out first. Where the rest names no preference, the summary says so in the
    templates' own words. Where nothing is left, its text is empty, and it has not abstained: the model did not say that
    nothing is known. The generator answers the plain prompt either way.

    Args:
        templates: know which texts name no preference.
        text: what the model wrote.
        used: how many signals it read.
        dropped: those that it did not.
        model: its name.
        count: text → tokens.
        tokens: of the whole text, where the server counted them.
        behind: how many signals the old summary rests on that it renews; None: not known.
        fit: what screening leaves of the text, where that is known.
    """
    fit = screened(text) if fit is None else fit
    rests_on = 0 if behind is None else behind + used
    if fit.left_out and not fit.text:
        return Summary("", 0, used, dropped, model, left_out=fit.left_out, rests_on=rests_on)
    if templates.names_no_preference(fit.text):
        text = templates.no_preference
        return Summary(text, count(text), used, dropped, model, True, fit.left_out, rests_on)
    if tokens is None or fit.text != text:
        tokens = count(fit.text)
    return Summary(fit.text, tokens, used, dropped, model, left_out=fit.left_out, rests_on=rests_on)


def joined(templates: Templates, clauses: Sequence[Summary], model: str, count: Callable[[str], int]) -> Summary:
    """The summary of a user whose signals were read one by one: a clause for each, in their order.

    Each clause stands once, as a sentence. Those that name no preference are left out; where all are, or there is none,
    the summary says that no preference is known.
    """
    texts = [" ".join(clause.text.split()) for clause in clauses if not clause.abstained]
    sentences = dict.fromkeys(text if text.endswith(ENDINGS) else f"{text}." for text in texts if text)
    left_out = tuple(dict.fromkeys(one for clause in clauses for one in clause.left_out))
    dropped = tuple(name for clause in clauses for name in clause.signals_dropped)
    used = sum(clause.signals_used for clause in clauses)
    text = " ".join(sentences)
    if not text and not left_out:
        return replace(summary_of(templates, "", 0, dropped, model, count), signals_used=used, rests_on=used)
    return Summary(text, count(text) if text else 0, used, dropped, model, left_out=left_out, rests_on=used)


def shown(templates: Templates, old: Old, signals: Sequence[Signal]) -> Previous | None:
    """An old summary beside the signals that came since, by the rule of `signals.fading`; None where there is none, it
    names no preference, or its evidence has faded.
    """
    if old is None or isinstance(old, Previous):
        return old
    return None if templates.names_no_preference(str(old)) else faded(str(old), signals_behind(old), len(signals))


def signals_behind(old: Old) -> int | None:
    """How many signals an old summary rests on; None: not known, and 0 where there is none."""
    if old is None:
        return 0
    return old.rests_on or None if isinstance(old, Summary) else None


def nothing_new(
    templates: Templates, old: Old, model: str, count: Callable[[str], int], dropped: tuple[str, ...] = ()
) -> Summary:
    """The summary of a user without (new) signals that could be read: the old one, or that no preference is known. No
    model is asked: what it would write were its own taste. `dropped`: signals there are, none of which fits.
    """
    text = old.text if isinstance(old, Previous) else str(old or "")
    if templates.names_no_preference(text):
        return summary_of(templates, "", 0, dropped, model, count)
    if isinstance(old, Summary):
        return replace(old, signals_used=0, signals_dropped=dropped)
    return Summary(text.strip(), count(text.strip()), signals_dropped=dropped, model=model)
