"""What a button of the page does to a summary: the edit that the profile API would be sent."""

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
"""What newcomers may choose, by what it is about; the words of each are a clause (strings.toml, `choice_…`)."""


class BadForm(Exception):
    """The form can't be what the page had; `saying` is what to say (render.SAYINGS)."""

    def __init__(self, saying: str) -> None:
        super().__init__(saying)
        self.saying = saying


def kept(summary: SummaryAnswer | None) -> list[ClauseEdit]:
    """The clauses as they are."""
    clauses = summary.clauses if summary is not None else []
    return [ClauseEdit(id=one.id, text=one.text, locked=one.locked, signals=one.signals) for one in clauses]


def lock(summary: SummaryAnswer | None, form: Form, locked: bool = True) -> SummaryEdit:
    """Lock a clause, or open it."""
    clauses = kept(summary)
    _named(clauses, form).locked = locked
    return SummaryEdit(clauses=clauses)


def unlock(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Open a clause: the next renewal may put it anew."""
    return lock(summary, form, False)


def edit(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Put a clause in other words, which are the person's own and rest on no signal; locked if the form says so."""
    clauses = kept(summary)
    one = _named(clauses, form)
    text = _text(form)
    one.signals = one.signals if text == one.text else []
    one.text, one.locked = text, form.get("lock") == "yes"
    return SummaryEdit(clauses=clauses)


def add(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Add a clause of one's own."""
    return SummaryEdit(clauses=[*kept(summary), ClauseEdit(text=_text(form), locked=form.get("lock") == "yes")])


def choose(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Add the clauses that were chosen, one for each kind at most; they are locked."""
    chosen = [f"choice_{kind}_{form[kind]}" for kind, options in CHOICES.items() if form.get(kind) in options]
    if not chosen:
        raise BadForm("none_chosen")
    return SummaryEdit(clauses=[*kept(summary), *(ClauseEdit(text=say(one), locked=True) for one in chosen)])


def forbid(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Take a clause out and never use it again; others in the same words go with it, unless they are locked."""
    clauses = kept(summary)
    one = _named(clauses, form)
    same = normal(one.text)
    rest = [each for each in clauses if each is not one and (each.locked or normal(each.text) != same)]
    return SummaryEdit(clauses=rest, forbidden=[*_forbidden(summary), ForbiddenEdit(text=one.text)])


def allow(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Forbid something no longer."""
    banned = [one for one in _forbidden(summary) if one.id != form.get("clause")]
    return SummaryEdit(clauses=kept(summary), forbidden=banned)


def tell(summary: SummaryAnswer | None, form: Form, told: bool = True) -> SummaryEdit:
    """Let the model that writes summaries know of something that is forbidden."""
    banned = _forbidden(summary)
    for one in banned:
        if one.id == form.get("clause"):
            one.tell = told
            return SummaryEdit(clauses=kept(summary), forbidden=banned)
    raise BadForm("conflict")


def untell(summary: SummaryAnswer | None, form: Form) -> SummaryEdit:
    """Let it know no longer."""
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
"""By the last part of the form's path."""


def _forbidden(summary: SummaryAnswer | None) -> list[ForbiddenEdit]:
    return [ForbiddenEdit(id=one.id, tell=one.tell) for one in (summary.forbidden if summary is not None else ())]


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
