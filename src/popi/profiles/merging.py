"""One summary of two, where two users turn out to be one person."""

from collections.abc import Iterable, Sequence

from popi.profiles import clauses as parts
from popi.profiles.forbidden import Bans
from popi.profiles.models import MOST_CLAUSES, Forbidden, StoredClause
from popi.statements import normal


def merged(
    text: str,
    newer: Sequence[StoredClause],
    newer_bans: Sequence[Forbidden],
    older: Sequence[StoredClause],
    older_bans: Sequence[Forbidden],
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

    Returns:
        The text, its clauses and what is forbidden. Where that makes more than `MOST_CLAUSES` clauses, the last that
        are not locked go.
    """
    locked = {normal(clause.text) for clause in older if clause.locked}
    stay = _allowed(newer, older_bans)
    clauses = [
        clause.model_copy(update={"locked": True}) if normal(clause.text) in locked else clause for clause in stay
    ]
    said = {normal(clause.text) for clause in newer}
    own = [clause for clause in _allowed(older, newer_bans) if clause.locked and normal(clause.text) not in said]
    taken = {clause.id for clause in clauses}
    clauses += [clause.model_copy(update={"id": parts.free_id(clause.id, taken)}) for clause in own]
    for clause in [clause for clause in reversed(clauses) if not clause.locked][: max(0, len(clauses) - MOST_CLAUSES)]:
        clauses.remove(clause)
    forbidden = list(newer_bans)
    words, taken = {normal(one.text) for one in forbidden}, {one.id for one in forbidden}
    for one in older_bans:
        if normal(one.text) not in words:
            forbidden.append(one.model_copy(update={"id": parts.free_id(one.id, taken)}))
    as_before = [clause.id for clause in clauses] == [clause.id for clause in newer]
    return (text if as_before else parts.join(clauses)), clauses, forbidden


def _allowed(clauses: Iterable[StoredClause], forbidden: Sequence[Forbidden]) -> list[StoredClause]:
    bans = Bans(one.text for one in forbidden)
    return [clause for clause in clauses if not bans.hit(clause.text)]
