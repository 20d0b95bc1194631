"""A summary's text in parts, and the parts as text.

A clause keeps its id, its lock and its signals for as long as its words stay the same.
"""

import re
import secrets
from collections.abc import Container, Sequence

from popi.profiles.fields import LONGEST_CLAUSE, LONGEST_TEXT, MOST_CLAUSES, Author, StoredClause
from popi.profiles.requests import ClauseEdit
from popi.profiles.statements import ended, lines, normal

# "wants a formal tone, any level, humor and stories."
_LIST = re.compile(r"((?:(?:the|this) user )?(?:prefers|likes|wants|enjoys)) ([^.!?;:()\"]+)\.?", re.IGNORECASE)
_ITEM = re.compile(r",? and |, ", re.IGNORECASE)
LONGEST_ITEM = 4
"""Words of an item of such a list; with a longer one the sentence stays whole."""
PACKED = 2 * LONGEST_TEXT // MOST_CLAUSES
"""Characters up to which clauses are put together where they are too many: a summary of the longest has room then."""


def split(text: str, *, wishes: bool = False) -> list[str]:
    """The list items, lines and sentences of a text: at most `MOST_CLAUSES`, each of at most `LONGEST_CLAUSE`
    characters, so that a person can write them back. What is beyond the most stays in the last; what is longer is cut.

    Args:
        text: a summary.
        wishes: it is by a model of the nano world, whose only sentence is a list of wishes. Each is a clause then:
            "Prefers short answers, humour and any layout." is "Prefers short answers", "Prefers humour"; "any layout"
            says nothing. Of nobody else's sentences can that be told without a mistake.
    """
    said = [wish for clause in lines(text) for wish in (_wishes(clause) if wishes else [clause])]
    parts = [part for clause in said for part in _cut(clause)]
    last = " ".join(parts[MOST_CLAUSES - 1 :])
    if len(parts) <= MOST_CLAUSES:
        return parts
    return [*parts[: MOST_CLAUSES - 1], last] if len(last) <= LONGEST_CLAUSE else _packed(parts)


def in_any_parts(text: str) -> set[str]:
    """What a summary says, in parts of any size: for finding it again in other texts."""
    return {text, *lines(text), *split(text), *split(text, wishes=True)}


def _cut(clause: str) -> list[str]:
    parts = []
    while len(clause) > LONGEST_CLAUSE:
        at = clause.rfind(" ", 1, LONGEST_CLAUSE) + 1 or LONGEST_CLAUSE
        parts.append(clause[:at].rstrip())
        clause = clause[at:].lstrip()
    return [*parts, clause] if clause else parts


def _packed(parts: list[str]) -> list[str]:
    """Parts that follow each other as one, so that few are left: of two neighbours one is longer than `PACKED` / 2."""
    packed = parts[:1]
    for part in parts[1:]:
        if len(packed[-1]) + 1 + len(part) <= PACKED:
            packed[-1] += f" {part}"
        else:
            packed.append(part)
    return packed[:MOST_CLAUSES]


def _wishes(sentence: str) -> list[str]:
    items = list_items(sentence)
    if items is None:
        return [sentence]
    verb, wishes = sentence[: items[0][0] - 1], [sentence[start:stop] for start, stop in items]
    return [f"{verb} {wish}" for wish in wishes if not wish.casefold().startswith("any ")]


def list_items(sentence: str, least: int = 3) -> list[tuple[int, int]] | None:
    """Where the items of a list of wishes stand in its sentence, (start, stop) each; None where it is no such list, has
    fewer than `least`, or one of more than `LONGEST_ITEM` words.
    """
    listed = _LIST.fullmatch(sentence)
    if listed is None:
        return None
    start, end = listed.span(2)
    items = []
    for between in _ITEM.finditer(sentence, start, end):
        items.append((start, between.start()))
        start = between.end()
    items.append((start, end))
    if len(items) < least or any(len(sentence[a:b].split()) > LONGEST_ITEM for a, b in items):
        return None
    return items


def join(clauses: Sequence[StoredClause]) -> str:
    """Clauses as one text; one without an end gets a full stop before the next begins."""
    return " ".join(ended([clause.text for clause in clauses]))


def from_text(text: str, before: Sequence[StoredClause], author: Author) -> list[StoredClause]:
    """The clauses of a new text; those whose words stood there before are the same clauses."""
    return _clauses(split(text), before, author)


def _clauses(parts: Sequence[str], before: Sequence[StoredClause], author: Author) -> list[StoredClause]:
    left = {normal(clause.text): clause for clause in before}
    clauses = []
    for part in parts:
        same = normal(part)
        clauses.append(left.pop(same) if same in left else _new(part, author))
    return clauses


def from_edit(edits: Sequence[ClauseEdit], before: Sequence[StoredClause], author: Author) -> list[StoredClause]:
    """The clauses that a person wrote or kept."""
    known = {clause.id: clause for clause in before}
    given = {edit.id for edit in edits}
    clauses = []
    for edit in edits:
        text = edit.text.strip()
        old = known.get(edit.id) if edit.id is not None else None
        same = old is not None and old.text == text
        name = edit.id or _new_id(given | known.keys())
        given.add(name)
        clauses.append(
            StoredClause(
                id=name,
                text=text,
                locked=edit.locked,
                signals=tuple(edit.signals),
                author=old.author if same and old is not None else author,
                found=old.found if same and old is not None and old.signals == tuple(edit.signals) else None,
            )
        )
    return clauses


def renewed(text: str, said: Sequence[str], before: Sequence[StoredClause]) -> tuple[str, list[StoredClause]]:
    """What the inference model wrote; the locked clauses word for word, and first.

    Args:
        text: as it wrote it.
        said: the same in parts; none where it says that it knows too little, and then nothing but the locked clauses is
            left.
        before: the clauses of the current version.

    Returns:
        The text as it is stored, and its clauses. With nothing locked the text is the model's own.
    """
    locked = [clause for clause in before if clause.locked]
    written = _clauses(said, before, "model")
    kept = {clause.id for clause in locked}
    new = [clause for clause in written if clause.id not in kept]
    if not locked and new:
        return text.strip()[:LONGEST_TEXT], written
    clauses = [*locked, *new][: max(MOST_CLAUSES, len(locked))]
    return join(clauses), clauses


def unlocked(clauses: Sequence[StoredClause]) -> list[StoredClause]:
    """What a renewal may put anew, the old summary that the inference model is shown. Locked clauses stay by
    themselves, and shown they would be said twice.
    """
    return [clause for clause in clauses if not clause.locked]


def by_hand(clauses: Sequence[StoredClause]) -> list[str]:
    """What a person wrote and did not lock: the inference model hears it as a statement, and may put it anew."""
    return [clause.text for clause in clauses if clause.author != "model" and not clause.locked]


def free_id(wanted: str, taken: set[str]) -> str:
    """An id that is not among those that are taken, `wanted` if it can be had; it is taken then."""
    name = wanted if wanted not in taken else _new_id(taken)
    taken.add(name)
    return name


def _new(text: str, author: Author) -> StoredClause:
    return StoredClause(id=_new_id(()), text=text, author=author)


def _new_id(taken: Container[str | None]) -> str:
    while (name := f"c{secrets.token_hex(6)}") in taken:
        pass
    return name
