"""The signals that the clauses of a new version rest on."""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain

from popi.profiles.fields import StoredClause
from popi.profiles.statements import ended
from popi.serving.worker.material import Material
from popi.serving.worker.provenance import Explainer
from popi.summary import Summary

log = logging.getLogger("popi.gateway.renewal")

MAX_REASONS = 100
"""Maximum number of signals recorded per clause; if there are more, those found last."""


def sources_of(
    explainer: Explainer | None, read: Material, summary: Summary, texts: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Ids of the signals that each clause rests on, by the clause's text, including those of the old clauses that
    it rests on. A failure to find them doesn't stop the renewal.
    """
    if explainer is None or not texts:
        return {}
    shown = [one for one in read.signals if one.id not in summary.signals_dropped]
    before, total = ended(clause.text for clause in read.clauses), read.old.signals_total if read.old else None
    try:
        reasons = explainer.explain(shown, summary.text, texts, before, total)
    except Exception as error:
        log.warning("provenance not found", extra={"fields": {"error": type(error).__name__}})
        return {}
    ids = [(one.id or "",) for one in shown] + [clause.signals for clause in read.clauses]
    return {text: _unique(ids[i] for i in positions) for text, positions in zip(texts, reasons, strict=True)}


def explained(
    explainer: Explainer | None, clause: StoredClause, sources: dict[str, tuple[str, ...]], old: Sequence[StoredClause]
) -> StoredClause:
    """The clause with the signals that it rests on. A person's words rest on none, and locked clauses don't change.
    A clause that the old summary had in the same words retains its old signals too.
    """
    if explainer is None or clause.locked or clause.author != "model" or clause.text not in sources:
        return clause
    carried = next((one.signals for one in old if one.id == clause.id), None)
    signal_ids = _unique((sources[clause.text], carried or ()))
    if carried is not None and not sources[clause.text]:
        return clause
    return clause.model_copy(update={"signals": signal_ids, "attribution": explainer.how})


def _unique(ids: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(ids)))[:MAX_REASONS]
