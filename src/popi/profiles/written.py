"""Turning a model's answer into a summary, and an old summary to renew."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from popi.profiles.screening import Screened, screened
from popi.signals.fading import Previous
from popi.signals.fading import previous as faded
from popi.signals.render import Templates
from popi.signals.types import Signal
from popi.summary import Summary

ENDINGS = (".", "!", "?", "…", "。", "！", "？")
OldSummary = str | Summary | Previous | None
"""An old summary to renew. Without a number of signals (`signals_total`) it is treated as based on infinitely many; a
`Previous` is shown as is."""


def summary_of(
    templates: Templates,
    text: str,
    used: int,
    dropped: tuple[str, ...],
    model: str,
    count: Callable[[str], int],
    tokens: int | None = None,
    previous_signals: int | None = 0,
    fit: Screened | None = None,
) -> Summary:
    """Turn a model's answer into a summary.

    Screening first removes content that a summary must not contain. If the rest names no preference, the summary says
    so in the templates' words. If nothing remains, its text is empty but it has not abstained, since the model did not
    say that no preference is known. In both cases the generator answers the plain prompt.

    Args:
        templates: determine which texts name no preference.
        text: what the model wrote.
        used: number of signals that it read.
        dropped: ids of signals that it did not read.
        model: the model's name.
        count: text → tokens.
        tokens: tokens of the whole text, if the server counted them.
        previous_signals: how many signals the renewed summary rests on; `None` if unknown.
        fit: the text after screening, if it has been screened already.
    """
    fit = screened(text) if fit is None else fit
    signals_total = 0 if previous_signals is None else previous_signals + used
    if fit.removed and not fit.text:
        return Summary("", 0, used, dropped, model, removed_content=fit.removed, signals_total=signals_total)
    if templates.names_no_preference(fit.text):
        text = templates.no_preference
        return Summary(text, count(text), used, dropped, model, True, fit.removed, signals_total)
    if tokens is None or fit.text != text:
        tokens = count(fit.text)
    return Summary(fit.text, tokens, used, dropped, model, removed_content=fit.removed, signals_total=signals_total)


def joined(templates: Templates, clauses: Sequence[Summary], model: str, count: Callable[[str], int]) -> Summary:
    """The summary of a user whose signals were read one by one: one clause per signal, in order.

    Duplicate clauses, and those that name no preference, are omitted; each remaining one becomes a sentence. If none
    remains, the summary says that no preference is known.
    """
    texts = [" ".join(clause.text.split()) for clause in clauses if not clause.abstained]
    sentences = dict.fromkeys(text if text.endswith(ENDINGS) else f"{text}." for text in texts if text)
    removed = tuple(dict.fromkeys(one for clause in clauses for one in clause.removed_content))
    dropped = tuple(name for clause in clauses for name in clause.signals_dropped)
    used = sum(clause.signals_used for clause in clauses)
    text = " ".join(sentences)
    if not text and not removed:
        return replace(summary_of(templates, "", 0, dropped, model, count), signals_used=used, signals_total=used)
    return Summary(text, count(text) if text else 0, used, dropped, model, removed_content=removed, signals_total=used)


def shown_previous(templates: Templates, old: OldSummary, signals: Sequence[Signal]) -> Previous | None:
    """The old summary as shown with the signals since, by the rule of `signals.fading`. `None` if there is no old
    summary, if it names no preference, or if its evidence has faded.
    """
    if old is None or isinstance(old, Previous):
        return old
    return None if templates.names_no_preference(str(old)) else faded(str(old), evidence_count(old), len(signals))


def evidence_count(old: OldSummary) -> int | None:
    """How many signals an old summary rests on: `None` if unknown, 0 if there is no summary."""
    if old is None:
        return 0
    return old.signals_total or None if isinstance(old, Summary) else None


def nothing_new(
    templates: Templates, old: OldSummary, model: str, count: Callable[[str], int], dropped: tuple[str, ...] = ()
) -> Summary:
    """The summary of a user without (new) signals to read: the old one, or that no preference is known. The model is
    not called, since it could only make something up. `dropped`: ids of signals that don't fit the token budget.
    """
    text = old.text if isinstance(old, Previous) else str(old or "")
    if templates.names_no_preference(text):
        return summary_of(templates, "", 0, dropped, model, count)
    if isinstance(old, Summary):
        return replace(old, signals_used=0, signals_dropped=dropped)
    return Summary(text.strip(), count(text.strip()), signals_dropped=dropped, model=model)
