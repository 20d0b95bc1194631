"""Checks of what a person writes into a summary, before anything is stored."""

from popi.errors import DataError
from popi.profiles.requests import ImportedUser, SummaryEdit
from popi.profiles.screening import checked


def checked_edit(edit: SummaryEdit) -> SummaryEdit:
    """Apply `checked` to all texts of an edit.

    Raises:
        DataError: it has content that a summary must not contain, or a clause without visible text.
    """
    fit: dict[str, object] = {}
    if edit.text is not None:
        fit["text"] = checked(edit.text)
    if edit.clauses is not None:
        fit["clauses"] = clauses = [one.model_copy(update={"text": checked(one.text)}) for one in edit.clauses]
        if not all(one.text.strip() for one in clauses):
            raise DataError("a clause must not be blank")
        checked(" ".join(one.text for one in clauses))  # clauses may pass one by one and fail together
    if edit.forbidden is not None:  # these may be sent to an LLM
        fit["forbidden"] = [
            one if one.text is None else one.model_copy(update={"text": checked(one.text)}) for one in edit.forbidden
        ]
    return edit.model_copy(update=fit)


def checked_user(one: ImportedUser) -> ImportedUser:
    """Apply `checked_edit` to an imported user's summary.

    Raises:
        DataError: as `checked_edit`; it names the user.
    """
    if one.summary is None:
        return one
    try:
        return one.model_copy(update={"summary": checked_edit(one.summary)})
    except DataError as error:
        raise DataError(f"user {one.user_id!r}: {error}") from None
