"""Rejected input, which the page shows again next to the reason."""

from dataclasses import dataclass

from popi.profiles.answers import SummaryAnswer
from popi.profiles.screening import Unfit

TYPED = ("edit", "add")
"""Forms with a text."""


@dataclass(frozen=True)
class Draft:
    """A rejected text.

    Attributes:
        trouble: the reason (one of render.TROUBLES).
        text: the text as typed.
        lock: whether the box to keep it was ticked.
        clause: the clause it was meant to replace; None for a new clause.
        unfit: the part that is not allowed in a summary, if that is the reason.
    """

    trouble: str
    text: str
    lock: bool
    clause: str | None
    unfit: Unfit | None = None

    def on(self, summary: SummaryAnswer | None) -> "Draft":
        """The draft for a summary's page: it becomes a new clause if the clause it was meant to replace is gone."""
        ids = {one.id for one in (summary.clauses if summary is not None else ())}
        return self if self.clause in ids else Draft(self.trouble, self.text, self.lock, None, self.unfit)


def draft_of(name: str, form: dict[str, str], trouble: str, unfit: Unfit | None = None) -> Draft:
    """The draft of a form; `name` is the last part of its path, one of TYPED."""
    clause = form.get("clause") if name == "edit" else None
    return Draft(trouble, form.get("text", ""), form.get("lock") == "yes", clause, unfit)
