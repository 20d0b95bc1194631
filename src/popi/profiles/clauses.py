"""Splitting a summary's text into clauses, and joining them.

A clause keeps its id, lock and signals as long as its words stay the same.
"""

import re
import secrets
from collections.abc import Container, Sequence

from popi.profiles.fields import LONGEST_CLAUSE, LONGEST_TEXT, MAX_CLAUSES, Author, StoredClause
from popi.profiles.requests import ClauseEdit
from popi.profiles.statements import ended, lines, normal

# "wants a formal tone, any level, humor and stories."
_LIST = re.compile(r"((?:(?:the|this) user )?(?:prefers|likes|wants|enjoys)) ([^.!?;:()\"]+)\.?", re.IGNORECASE)
_ITEM = re.compile(r",? and |, ", re.IGNORECASE)
LONGEST_ITEM = 4
"""Maximum words per item of such a list; with a longer item, the sentence is not split."""
PACKED = 2 * LONGEST_TEXT // MAX_CLAUSES
"""Characters up to which clauses are combined if there are too many, so that the longest summary still fits."""


def split(text: str, *, wishes: bool = False) -> list[str]:
    """Split a text into its list items, lines and sentences: at most `MAX_CLAUSES` of at most `LONGEST_CLAUSE`
    characters each, the limits for edits. The last clause takes the rest of the text; longer clauses are cut.

    Args:
        text: a summary.
        wishes: whether a model of the nano world wrote it, as a single list of wishes. Each wish becomes a clause:
            "Prefers short answers, humour and any layout." is "Prefers short answers", "Prefers humour"; "any layout"
            says nothing. Other sentences can't be split this way reliably.
    """
    clauses = [wish for clause in lines(text) for wish in (_wishes(clause) if wishes else [clause])]
    parts = [part for clause in clauses for part in _cut(clause)]
    last = " ".join(parts[MAX_CLAUSES - 1 :])
    if len(parts) <= MAX_CLAUSES:
        return parts
    return [*parts[: MAX_CLAUSES - 1], last] if len(last) <= LONGEST_CLAUSE else _packed(parts)


def all_parts(text: str) -> set[str]:
    """The parts of a summary at every size, to find them in other texts."""
    return {text, *lines(text), *split(text), *split(text, wishes=True)}


def _cut(clause: str) -> list[str]:
    parts = []
    while len(clause) > LONGEST_CLAUSE:
        at = clause.rfind(" ", 1, LONGEST_CLAUSE) + 1 or LONGEST_CLAUSE
        parts.append(clause[:at].rstrip())
        clause = clause[at:].lstrip()
    return [*parts, clause] if clause else parts


def _packed(parts: list[str]) -> list[str]:
    """Combine consecutive parts up to `PACKED` characters: of two neighbours, one is longer than `PACKED` / 2."""
    packed = parts[:1]
    for part in parts[1:]:
        if len(packed[-1]) + 1 + len(part) <= PACKED:
            packed[-1] += f" {part}"
        else:
            packed.append(part)
    return packed[:MAX_CLAUSES]


def _wishes(sentence: str) -> list[str]:
    items = list_items(sentence)
    if items is None:
        return [sentence]
    verb, wishes = sentence[: items[0][0] - 1], [sentence[start:stop] for start, stop in items]
    return [f"{verb} {wish}" for wish in wishes if not wish.casefold().startswith("any ")]


def list_items(sentence: str, least: int = 3) -> list[tuple[int, int]] | None:
    """The (start, stop) of each item in a sentence that lists wishes; `None` if it is not such a list, has fewer than
    `least` items, or one of more than `LONGEST_ITEM` words.
    """
    match = _LIST.fullmatch(sentence)
    if match is None:
        return None
    start, end = match.span(2)
    items = []
    for between in _ITEM.finditer(sentence, start, end):
        items.append((start, between.start()))
        start = between.end()
    items.append((start, end))
    if len(items) < least or any(len(sentence[a:b].split()) > LONGEST_ITEM for a, b in items):
        return None
    return items


def join(clauses: Sequence[StoredClause]) -> str:
    """Join clauses into one text, adding full stops between them where needed."""
    return " ".join(ended([clause.text for clause in clauses]))


def from_text(text: str, before: Sequence[StoredClause], author: Author) -> list[StoredClause]:
    """The clauses of a new text; clauses with the same words as before are reused."""
    return _clauses(split(text), before, author)


def _clauses(parts: Sequence[str], before: Sequence[StoredClause], author: Author) -> list[StoredClause]:
    reusable = {normal(clause.text): clause for clause in before}
    clauses = []
    for part in parts:
        wording = normal(part)
        clauses.append(reusable.pop(wording) if wording in reusable else _new(part, author))
    return clauses


def from_edit(edits: Sequence[ClauseEdit], before: Sequence[StoredClause], author: Author) -> list[StoredClause]:
    """The clauses after a person's edit."""
    known = {clause.id: clause for clause in before}
    used_ids = {edit.id for edit in edits}
    clauses = []
    for edit in edits:
        text = edit.text.strip()
        old = known.get(edit.id) if edit.id is not None else None
        same = old is not None and old.text == text
        signals = tuple(edit.signals)
        name = edit.id or _new_id(used_ids | known.keys())
        used_ids.add(name)
        clauses.append(
            StoredClause(
                id=name,
                text=text,
                locked=edit.locked,
                signals=signals,
                author=old.author if same and old is not None else author,
                attribution=old.attribution if same and old is not None and old.signals == signals else None,
            )
        )
    return clauses


def renewed(text: str, statements: Sequence[str], before: Sequence[StoredClause]) -> tuple[str, list[StoredClause]]:
    """Combine the locked clauses, word for word and first, with what the inference model wrote.

    Args:
        text: the text that the model wrote.
        statements: its parts; empty if the model found no preference, and then only the locked clauses remain.
        before: the clauses of the current version.

    Returns:
        The text to store, and its clauses. Without locked clauses the text is the model's own.
    """
    locked = [clause for clause in before if clause.locked]
    written = _clauses(statements, before, "model")
    locked_ids = {clause.id for clause in locked}
    new = [clause for clause in written if clause.id not in locked_ids]
    if not locked and new:
        return text.strip()[:LONGEST_TEXT], written
    clauses = [*locked, *new][: max(MAX_CLAUSES, len(locked))]
    return join(clauses), clauses


def unlocked(clauses: Sequence[StoredClause]) -> list[StoredClause]:
    """The clauses that a renewal may rephrase; they are the old summary that the inference model is shown. Locked
    clauses stay anyway, and showing them would duplicate them.
    """
    return [clause for clause in clauses if not clause.locked]


def by_hand(clauses: Sequence[StoredClause]) -> list[str]:
    """What a person wrote and did not lock; the inference model reads it as statements and may rephrase it."""
    return [clause.text for clause in clauses if clause.author != "model" and not clause.locked]


def free_id(preferred: str, used: set[str]) -> str:
    """An id that is not in `taken`, preferably `wanted`; adds it to `taken`."""
    name = preferred if preferred not in used else _new_id(used)
    used.add(name)
    return name


def _new(text: str, author: Author) -> StoredClause:
    return StoredClause(id=_new_id(()), text=text, author=author)


def _new_id(used: Container[str | None]) -> str:
    while (name := f"c{secrets.token_hex(6)}") in used:
        pass
    return name
