"""What a person may write into a summary: its texts, checked before anything is stored."""

from popi.errors import DataError
from popi.profiles.requests import ImportedUser, SummaryEdit
from popi.profiles.screening import checked


def fit_edit(edit: SummaryEdit) -> SummaryEdit:
    """An edit whose texts are as `checked` gives them.

    Raises:
        DataError: it carries what a summary may not, or a clause has nothing that anybody sees.
    """
    fit: dict[str, object] = {}
    if edit.text is not None:
        fit["text"] = checked(edit.text)
    if edit.clauses is not None:
        fit["clauses"] = clauses = [one.model_copy(update={"text": checked(one.text)}) for one in edit.clauses]
        if not all(one.text.strip() for one in clauses):
            raise DataError("a clause must not be blank")
        checked(" ".join(one.text for one in clauses))  # what is good in parts may not be as a whole
    if edit.forbidden is not None:  # an LLM may be told them
        fit["forbidden"] = [
            one if one.text is None else one.model_copy(update={"text": checked(one.text)}) for one in edit.forbidden
        ]
    return edit.model_copy(update=fit)


def fit_user(one: ImportedUser) -> ImportedUser:
    """An imported user whose summary is as `fit_edit` gives it.

    Raises:
        DataError: likewise; it names the user.
    """
    if one.summary is None:
        return one
    try:
        return one.model_copy(update={"summary": fit_edit(one.summary)})
    except DataError as error:
        raise DataError(f"user {one.user_id!r}: {error}") from None
