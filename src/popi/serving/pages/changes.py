"""What the page's buttons change in a summary, as edits for the profile API."""

from collections.abc import Callable

from popi.profiles.answers import SummaryAnswer
from popi.profiles.fields import LONGEST_CLAUSE
from popi.profiles.requests import ClauseEdit, ForbiddenEdit, SummaryEdit
from popi.profiles.statements import normal
from popi.serving.pages.strings import say

Form = dict[str, str]


CHOICES = {
    "length": ("short", "medium", "long"),
    "tone": ("friendly", "plain", "formal"),
    "format": ("lists", "prose", "examples"),
}
"""Choices for new users, by topic; each one's text becomes a clause (`choice_…` in strings.toml)."""


class BadForm(Exception):
    """The form is invalid or out of date; `saying` names the message to show (one of render.SAYINGS)."""

    def __init__(self, saying: str) -> None:
        super().__init__(saying)
        self.saying = saying


def unchanged(summary: SummaryAnswer | None) -> list[ClauseEdit]:
    """The clauses of a summary, as edits that change nothing."""
    clauses = summary.clauses if summary is not None else []
    return [ClauseEdit(id=one.id, text=one.text, locked=one.locked, signals=one.signals) for one in clauses]


def lock(summary: SummaryAnswer | None, form: Form, locked: bool = True) -> SummaryEdit:
    """Lock or unlock a clause."""
    clauses = unchanged(summary)
    _named(clauses, form).locked = locked
    return SummaryEdit(clauses=clauses)


def unlock(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Unlock a clause, so that the next renewal may reword it."""
    return lock(summary, form, False)


def edit(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Reword a clause. The new words are the person's own and rest on no signals; locked if the form says so."""
    clauses = unchanged(summary)
    one = _named(clauses, form)
    text = _text(form)
    one.signals = one.signals if text == one.text else []
    one.text, one.locked = text, form.get("lock") == "yes"
    return SummaryEdit(clauses=clauses)


def add(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Add a clause in the person's own words."""
    return SummaryEdit(clauses=[*unchanged(summary), ClauseEdit(text=_text(form), locked=form.get("lock") == "yes")])


def choose(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Add the chosen clauses, at most one per topic, locked."""
    chosen = [f"choice_{kind}_{form[kind]}" for kind, options in CHOICES.items() if form.get(kind) in options]
    if not chosen:
        raise BadForm("none_chosen")
    return SummaryEdit(clauses=[*unchanged(summary), *(ClauseEdit(text=say(one), locked=True) for one in chosen)])


def forbid(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Remove a clause and ban it; unlocked clauses with the same words are removed too."""
    clauses = unchanged(summary)
    one = _named(clauses, form)
    same = normal(one.text)
    rest = [each for each in clauses if each is not one and (each.locked or normal(each.text) != same)]
    return SummaryEdit(clauses=rest, forbidden=[*_forbidden(summary), ForbiddenEdit(text=one.text)])


def allow(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Lift a ban."""
    banned = [one for one in _forbidden(summary) if one.id != form.get("clause")]
    return SummaryEdit(clauses=unchanged(summary), forbidden=banned)


def tell(summary: SummaryAnswer | None, form: Form, enabled: bool = True) -> SummaryEdit:
    """Let the model that writes summaries see a forbidden clause."""
    banned = _forbidden(summary)
    for one in banned:
        if one.id == form.get("clause"):
            one.send_to_model = enabled
            return SummaryEdit(clauses=unchanged(summary), forbidden=banned)
    raise BadForm("conflict")


def untell(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Stop letting the model see a forbidden clause."""
    return tell(summary, form, False)


CHANGES: dict[str, Callable[[SummaryAnswer | None, Form], SummaryEdit]] = {
    "lock": lock,
    "unlock": unlock,
    "edit": edit,
    "add": add,
    "choose": choose,
    "forbid": forbid,
    "allow": allow,
    "tell": tell,
    "untell": untell,
}
"""Changes by the last part of the form's path."""


def _forbidden(summary: SummaryAnswer | None) -> list[ForbiddenEdit]:
    return [
        ForbiddenEdit(id=one.id, send_to_model=one.send_to_model)
        for one in (summary.forbidden if summary is not None else ())
    ]


def _named(clauses: list[ClauseEdit], form: Form) -> ClauseEdit:
    for one in clauses:
        if one.id == form.get("clause"):
            return one
    raise BadForm("conflict")


def _text(form: Form) -> str:
    text = " ".join(form.get("text", "").split())
    if not text:
        raise BadForm("empty")
    if len(text) > LONGEST_CLAUSE or "\x00" in text:
        raise BadForm("too_long")
    return text
