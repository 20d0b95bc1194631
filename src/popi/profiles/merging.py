"""One summary of two, where two users turn out to be one person."""

from collections.abc import Iterable, Mapping, Sequence

from popi.profiles import clauses as parts
from popi.profiles.fields import MOST_CLAUSES, Forbidden, StoredClause
from popi.profiles.forbidden import Bans, in_words
from popi.profiles.statements import normal


def merged(
    text: str,
    newer: Sequence[StoredClause],
    newer_bans: Sequence[Forbidden],
    older: Sequence[StoredClause],
    older_bans: Sequence[Forbidden],
    secret: bytes = b"",
    said: Mapping[str, str] | None = None,
) -> tuple[str, list[StoredClause], list[Forbidden]]:
    """The newer summary, and of the older what a person decided: its locked clauses, and what it forbids.

    What is forbidden in either is forbidden. It takes out clauses of the other, locked ones too: of a lock and a ban
    that contradict each other the ban holds. Where both say the same, the lock of either holds.

    Args:
        text: of the newer.
        newer: its clauses.
        newer_bans: what it forbids.
        older: the clauses of the older.
        older_bans: what that forbids.
        secret: of the store, for what is forbidden.
        said: the words of what either forbids, by hash, as far as they are kept. Of two bans of the same words one
            stays; the model is told it where both allow that.

    Returns:
        The text, its clauses and what is forbidden. Where that makes more than `MOST_CLAUSES` clauses, the last that
        are not locked go.
    """
    locked = {normal(clause.text) for clause in older if clause.locked}
    stay = _allowed(newer, older_bans, secret)
    clauses = [
        clause.model_copy(update={"locked": True}) if normal(clause.text) in locked else clause for clause in stay
    ]
    there = {normal(clause.text) for clause in newer}
    own = [
        clause for clause in _allowed(older, newer_bans, secret) if clause.locked and normal(clause.text) not in there
    ]
    taken = {clause.id for clause in clauses}
    clauses += [clause.model_copy(update={"id": parts.free_id(clause.id, taken)}) for clause in own]
    for clause in [clause for clause in reversed(clauses) if not clause.locked][: max(0, len(clauses) - MOST_CLAUSES)]:
        clauses.remove(clause)
    forbidden, taken = list(newer_bans), {one.id for one in newer_bans}
    places = {normal(text): name for name, text in in_words(newer_bans, said or {}).items()}
    texts = in_words(older_bans, said or {})
    for one in older_bans:
        same = places.get(normal(texts[one.id])) if one.id in texts else None
        if same is None:
            forbidden.append(one.model_copy(update={"id": parts.free_id(one.id, taken)}))
        elif not one.tell:
            forbidden = [ban.model_copy(update={"tell": False}) if ban.id == same else ban for ban in forbidden]
    as_before = [clause.id for clause in clauses] == [clause.id for clause in newer]
    return (text if as_before else parts.join(clauses)), clauses, forbidden


def _allowed(clauses: Iterable[StoredClause], forbidden: Sequence[Forbidden], secret: bytes) -> list[StoredClause]:
    bans = Bans(forbidden, secret)
    return [clause for clause in clauses if not bans.hit(clause.text)]
