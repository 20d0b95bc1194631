"""Merging two summaries when two users turn out to be one person."""

from collections.abc import Iterable, Mapping, Sequence

from popi.profiles import clauses as parts
from popi.profiles.fields import MAX_CLAUSES, Forbidden, StoredClause
from popi.profiles.forbidden import Bans, in_words
from popi.profiles.statements import normal


def merged(
    text: str,
    newer: Sequence[StoredClause],
    newer_bans: Sequence[Forbidden],
    older: Sequence[StoredClause],
    older_bans: Sequence[Forbidden],
    secret: bytes = b"",
    words: Mapping[str, str] | None = None,
) -> tuple[str, list[StoredClause], list[Forbidden]]:
    """Merge the newer summary with what a person decided in the older one: its locked clauses and its bans.

    The bans of both apply, and also remove clauses of the other summary, even locked ones: if a lock and a ban
    contradict each other, the ban wins. A clause that is in both is locked if it is locked in either.

    Args:
        text: text of the newer summary.
        newer: its clauses.
        newer_bans: its forbidden statements.
        older: clauses of the older summary.
        older_bans: its forbidden statements.
        secret: the store's secret for forbidden statements.
        words: the stored words of forbidden statements, by hash. Bans of the same words are merged; the model may be
            sent them if both allow it.

    Returns:
        The text, its clauses and its forbidden statements. If there are more than `MAX_CLAUSES` clauses, the last
        unlocked ones are dropped.
    """
    locked = {normal(clause.text) for clause in older if clause.locked}
    allowed = _allowed(newer, older_bans, secret)
    clauses = [
        clause.model_copy(update={"locked": True}) if normal(clause.text) in locked else clause for clause in allowed
    ]
    newer_texts = {normal(clause.text) for clause in newer}
    own = [
        clause
        for clause in _allowed(older, newer_bans, secret)
        if clause.locked and normal(clause.text) not in newer_texts
    ]
    used_ids = {clause.id for clause in clauses}
    clauses += [clause.model_copy(update={"id": parts.free_id(clause.id, used_ids)}) for clause in own]
    for clause in [clause for clause in reversed(clauses) if not clause.locked][: max(0, len(clauses) - MAX_CLAUSES)]:
        clauses.remove(clause)
    forbidden, used_ids = list(newer_bans), {one.id for one in newer_bans}
    ids = {normal(text): name for name, text in in_words(newer_bans, words or {}).items()}
    texts = in_words(older_bans, words or {})
    for one in older_bans:
        same = ids.get(normal(texts[one.id])) if one.id in texts else None
        if same is None:
            forbidden.append(one.model_copy(update={"id": parts.free_id(one.id, used_ids)}))
        elif not one.send_to_model:
            forbidden = [
                ban.model_copy(update={"send_to_model": False}) if ban.id == same else ban for ban in forbidden
            ]
    unchanged = [clause.id for clause in clauses] == [clause.id for clause in newer]
    return (text if unchanged else parts.join(clauses)), clauses, forbidden


def _allowed(clauses: Iterable[StoredClause], forbidden: Sequence[Forbidden], secret: bytes) -> list[StoredClause]:
    bans = Bans(forbidden, secret)
    return [clause for clause in clauses if not bans.hit(clause.text)]
