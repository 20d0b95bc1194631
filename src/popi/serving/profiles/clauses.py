"""A summary's text in parts, and the parts as text.

A clause keeps its id, its lock and its signals for as long as its words stay the same.
"""

import re
import secrets
from collections.abc import Container, Sequence

from popi.serving.profiles.models import MOST_CLAUSES, ClauseEdit
from popi.serving.store.summaries import Author, StoredClause

# A sentence's end with blanks behind it; an abbreviation now and then makes two clauses of one.
_END = re.compile(r"(?<=[.!?;。！？])\s+")
_ENDS = (".", "!", "?", ";", ":", ",", "。", "！", "？")
_BULLET = re.compile(r"^(?:[-*•]|\d+[.)])\s+")


def split(text: str) -> list[str]:
    """The sentences and lines of a text, without bullets; what is beyond `MOST_CLAUSES` stays in the last."""
    lines = [_BULLET.sub("", line.strip()) for line in text.splitlines()]
    parts = [part for line in lines for part in _END.split(line.strip()) if part]
    if len(parts) > MOST_CLAUSES:
        parts[MOST_CLAUSES - 1 :] = [" ".join(parts[MOST_CLAUSES - 1 :])]
    return parts


def join(clauses: Sequence[StoredClause]) -> str:
    """Clauses as one text; one without an end gets a full stop before the next begins."""
    texts = [clause.text for clause in clauses]
    ended = [text if text.endswith(_ENDS) else f"{text}." for text in texts[:-1]]
    return " ".join([*ended, *texts[-1:]])


def from_text(text: str, before: Sequence[StoredClause], author: Author) -> list[StoredClause]:
    """The clauses of a new text; those whose words stood there before are the same clauses."""
    left = {_folded(clause.text): clause for clause in before}
    clauses = []
    for part in split(text):
        same = _folded(part)
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
            )
        )
    return clauses


def renewed(text: str, before: Sequence[StoredClause]) -> tuple[str, list[StoredClause]]:
    """What the inference model wrote, with the locked clauses kept word for word and put first.

    Returns:
        The text as it is stored, and its clauses. Without locked clauses the text is the model's own.
    """
    locked = [clause for clause in before if clause.locked]
    written = from_text(text, before, "model")
    if not locked:
        return text.strip(), written
    kept = {clause.id for clause in locked}
    clauses = [*locked, *(clause for clause in written if clause.id not in kept)]
    return join(clauses), clauses


def by_hand(clauses: Sequence[StoredClause]) -> list[str]:
    """What a person wrote and did not lock: the inference model hears it as a statement, and may put it anew."""
    return [clause.text for clause in clauses if clause.author != "model" and not clause.locked]


def _new(text: str, author: Author) -> StoredClause:
    return StoredClause(id=_new_id(()), text=text, author=author)


def _new_id(taken: Container[str | None]) -> str:
    while (name := f"c{secrets.token_hex(6)}") in taken:
        pass
    return name


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".;")
