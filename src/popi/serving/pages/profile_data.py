"""The data of a user's pages, read from the store in one transaction."""

from dataclasses import dataclass

from sqlalchemy import Connection

from popi.profiles.answers import UserAnswer
from popi.serving.api.stored import NotFound, user_answer
from popi.serving.store import answers, signals, summaries, undo
from popi.serving.store.undo import Steps
from popi.signals.types import Signal


@dataclass(frozen=True)
class ProfileData:
    """A stored user.

    Attributes:
        user: in the profile API's form.
        reasons: the signals that the summary's clauses rest on.
        steps: the versions that "Undo" and "Redo" restore.
        versions: number of stored versions.
        answers: number of answers stored for feedback.
    """

    user: UserAnswer
    reasons: list[Signal]
    steps: Steps
    versions: int
    answers: int


def profile_data(connection: Connection, tenant: str, user_id: str, now: float) -> ProfileData | None:
    """A user's data at `now` (seconds since 1970); None if nothing is stored about them."""
    try:
        user = user_answer(connection, tenant, user_id, now)
    except NotFound:
        return None
    clauses = user.summary.clauses if user.summary is not None else ()
    ids = list(dict.fromkeys(name for clause in clauses for name in clause.signals))
    return ProfileData(
        user,
        signals.named(connection, tenant, user_id, ids),
        undo.steps(connection, tenant, user_id),
        summaries.count(connection, tenant, user_id),
        answers.count(connection, tenant, user_id, now),
    )
