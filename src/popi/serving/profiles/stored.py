"""What is stored of a user, as the profile API answers it."""

import time

from sqlalchemy import Connection

from popi.serving.profiles.models import (
    AnswerKept,
    Clause,
    ExportAnswer,
    ForbiddenClause,
    Renewal,
    SummaryAnswer,
    UserAnswer,
    moment,
)
from popi.serving.profiles.training import TARGETS, training_user
from popi.serving.store import answers, jobs, signals, summaries, users
from popi.serving.store.jobs import JobState
from popi.serving.store.summaries import Version
from popi.signals.types import User


class NotFound(Exception):
    """There is no such user, summary or version; the message says which, the code in a word."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def user_of(connection: Connection, tenant: str, user_id: str, now: float) -> UserAnswer:
    """One user, as they stand at `now`.

    Raises:
        NotFound: no such user.
    """
    found = found_user(connection, tenant, user_id)
    current = summaries.current(connection, tenant, user_id)
    job = jobs.state(connection, tenant, user_id, now)
    return UserAnswer(
        user_id=user_id,
        created_at=moment(found.created_at),
        signals=found.signals,
        last_signal_at=None if found.last_signal_at is None else moment(found.last_signal_at),
        summary=None if current is None else shown(current),
        renewal=None if job is None else _renewal(job),
        paused=found.paused,
    )


def exported(connection: Connection, tenant: str, user_id: str, now: float | None = None) -> ExportAnswer:
    """Everything that is stored of a user; `now` in seconds since 1970, by default this machine's.

    Raises:
        NotFound: no such user.
    """
    found = found_user(connection, tenant, user_id)
    return ExportAnswer(
        user_id=user_id,
        created_at=moment(found.created_at),
        signals=signals.newest(connection, tenant, user_id),
        versions=[shown(one) for one in summaries.versions(connection, tenant, user_id)],
        paused=found.paused,
        answers=[
            AnswerKept(id=one.answer_id, prompt=one.prompt, answer=one.answer)
            for one in answers.kept(connection, tenant, user_id, time.time() if now is None else now)
        ],
    )


def training_line(connection: Connection, tenant: str, user_id: str, targets: int = TARGETS) -> User:
    """A user as `popi train` reads them.

    Raises:
        NotFound: no such user.
    """
    found_user(connection, tenant, user_id)
    return training_user(user_id, signals.newest(connection, tenant, user_id), targets)


def shown(version: Version) -> SummaryAnswer:
    """A stored version as it is answered."""
    listed = [Clause.model_validate(one.model_dump() | {"signals": list(one.signals)}) for one in version.clauses]
    return SummaryAnswer(
        version=version.version,
        text=version.text,
        clauses=listed,
        updated_at=moment(version.created_at),
        author=version.author,
        forbidden=[ForbiddenClause(id=one.id, text=one.text) for one in version.forbidden],
    )


def _renewal(job: JobState) -> Renewal:
    state = "failed" if job.failed else "running" if job.running else "waiting"
    return Renewal.model_validate(
        {
            "state": state,
            "due_at": moment(job.due_at),
            "attempts": job.attempts,
            "error": job.error,
            "held_by": job.held_by,
        }
    )


def found_user(connection: Connection, tenant: str, user_id: str) -> users.UserRecord:
    """A user who must be there.

    Raises:
        NotFound: no such user.
    """
    found = users.find(connection, tenant, user_id)
    if found is None:
        raise no_user()
    return found


def no_user() -> NotFound:
    """That there is no such user."""
    return NotFound("no_user", "there is no such user")
