"""What a user's pages show of the store, read in one go."""

from dataclasses import dataclass

from sqlalchemy import Connection

from popi.profiles.answers import UserAnswer
from popi.serving.api.stored import NotFound, user_of
from popi.serving.store import answers, signals, summaries, undo
from popi.serving.store.undo import Steps
from popi.signals.types import Signal


@dataclass(frozen=True)
class Known:
    """A user of whom something is stored.

    Attributes:
        user: as the profile API answers.
        reasons: the signals that clauses of the summary rest on.
        steps: where "Undo" and "Redo" lead.
        versions: how many versions are kept.
        answers: how many answers are kept for feedback.
    """

    user: UserAnswer
    reasons: list[Signal]
    steps: Steps
    versions: int
    answers: int


def known(connection: Connection, tenant: str, user_id: str, now: float) -> Known | None:
    """What is known at `now` (seconds since 1970); None: nothing is stored of this user."""
    try:
        user = user_of(connection, tenant, user_id, now)
    except NotFound:
        return None
    clauses = user.summary.clauses if user.summary is not None else ()
    ids = list(dict.fromkeys(name for clause in clauses for name in clause.signals))
    return Known(
        user,
        signals.named(connection, tenant, user_id, ids),
        undo.steps(connection, tenant, user_id),
        summaries.count(connection, tenant, user_id),
        answers.count(connection, tenant, user_id, now),
    )
