"""What a person typed and the gateway did not take: the page shows it again, with the reason beside it."""

from dataclasses import dataclass

from popi.profiles.answers import SummaryAnswer
from popi.profiles.screening import Unfit

TYPED = ("edit", "add")
"""Forms that bring a text."""


@dataclass(frozen=True)
class Draft:
    """A text that was not taken.

    Attributes:
        trouble: why not (render.TROUBLES).
        text: as it was typed.
        lock: whether the box was ticked.
        clause: the clause that it was to replace; None: it was to be added.
        unfit: what in it a summary may not carry.
    """

    trouble: str
    text: str
    lock: bool
    clause: str | None
    unfit: Unfit | None = None

    def on(self, summary: SummaryAnswer | None) -> "Draft":
        """The draft on the page of a summary: of a clause that is there no longer, it is to be added."""
        there = {one.id for one in (summary.clauses if summary is not None else ())}
        return self if self.clause in there else Draft(self.trouble, self.text, self.lock, None, self.unfit)


def draft_of(name: str, form: dict[str, str], trouble: str, unfit: Unfit | None = None) -> Draft:
    """The draft of a form: `name` is the last part of its path, one of TYPED."""
    clause = form.get("clause") if name == "edit" else None
    return Draft(trouble, form.get("text", ""), form.get("lock") == "yes", clause, unfit)
