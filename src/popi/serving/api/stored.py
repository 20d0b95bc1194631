"""A user's stored data in the profile API's response format."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection

from popi.errors import DataError
from popi.profiles.answers import (
    EXPORT_FORMAT,
    CapturedAnswer,
    Clause,
    ControlsAnswer,
    ForbiddenClause,
    Renewal,
    SummaryAnswer,
    UserAnswer,
    moment,
)
from popi.profiles.forbidden import in_words
from popi.profiles.training import TARGETS, training_user
from popi.serving.settings import ProfileSettings
from popi.serving.store import answers, forbidden, jobs, signals, summaries, users
from popi.serving.store.database import PAGE
from popi.serving.store.jobs import JobState
from popi.serving.store.summaries import Version
from popi.signals.types import User

Read = Callable[..., Any]
"""`Database.read`."""


class NotFound(Exception):
    """A user, summary, version or the like does not exist; `code` says what is missing."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OverBound(DataError):
    """Not allowed by a limit of `ProfileSettings` or by the user's switches. `code`: the reason as one word."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def user_answer(connection: Connection, tenant: str, user_id: str, now: float) -> UserAnswer:
    """One user, as of `now`.

    Raises:
        NotFound: no such user.
    """
    user = existing_user(connection, tenant, user_id)
    current = summaries.current(connection, tenant, user_id)
    job = jobs.state(connection, tenant, user_id, now)
    return UserAnswer(
        user_id=user_id,
        created_at=moment(user.created_at),
        signals=user.signals,
        last_signal_at=None if user.last_signal_at is None else moment(user.last_signal_at),
        summary=None if current is None else summary_answer(current, forbidden.words(connection, tenant, user_id)),
        renewal=None if job is None else _renewal(job),
        controls=ControlsAnswer(use=user.use, learn=user.learn),
        paused=not user.use,
    )


def exported(read: Read, tenant: str, user_id: str) -> Iterator[str]:
    """Everything stored about a user: an `ExportAnswer` as JSON, in pieces.

    Each piece is read separately, so that a large profile is never in memory as a whole and a slow client holds no
    transaction.

    Raises:
        NotFound: no such user; raised with the first piece.
    """
    owner = tenant, user_id
    user = read(existing_user, *owner)
    created = moment(user.created_at).isoformat()
    yield f'{{"format":{EXPORT_FORMAT},"user_id":{json.dumps(user_id)},"created_at":"{created}"'
    yield f',"controls":{json.dumps({"use": user.use, "learn": user.learn})},"paused":{json.dumps(not user.use)}'
    yield ',"signals":['
    separator, after = "", -1
    while rows := read(signals.page_after, *owner, after):
        yield separator + ",".join(json.dumps(json.loads(row.signal), ensure_ascii=False) for row in rows)
        separator, after = ",", rows[-1].position
    yield '],"versions":['
    yield from _versions(read, *owner)
    yield '],"answers":['
    separator, cursor = "", None
    while rows := read(answers.newest_page, *owner, time.time(), cursor):
        stored_answers = (_captured_answer(row) for row in rows)
        yield separator + ",".join(one.model_dump_json() for one in stored_answers)
        separator, cursor = ",", (rows[-1].expires_at, rows[-1].answer_id)
    yield "]}"


def _captured_answer(row: Any) -> CapturedAnswer:
    return CapturedAnswer(id=row.answer_id, upstream_id=row.upstream_id, prompt=row.prompt, answer=row.answer)


def versions(read: Read, tenant: str, user_id: str) -> Iterator[str]:
    """A user's versions: a `VersionsAnswer` as JSON, in pieces, like `exported`.

    Raises:
        NotFound: no such user; raised with the first piece.
    """
    read(existing_user, tenant, user_id)
    yield '{"versions":['
    yield from _versions(read, tenant, user_id)
    yield "]}"


def _versions(read: Read, tenant: str, user_id: str) -> Iterator[str]:
    separator, below, words = "", 2**62, read(forbidden.words, tenant, user_id)
    while page := read(summaries.versions, tenant, user_id, below=below, max_characters=PAGE):
        yield separator + ",".join(summary_answer(one, words).model_dump_json() for one in page)
        separator, below = ",", page[-1].version


def training_line(connection: Connection, tenant: str, user_id: str, targets: int = TARGETS) -> User:
    """A user in the format that `popi train` reads.

    Raises:
        NotFound: no such user.
        OverBound: 409, the user has turned learning off.
    """
    if not existing_user(connection, tenant, user_id).learn:
        raise OverBound(
            409, "learning_off", "the user has turned learning off, so their data can't be exported for training"
        )
    return training_user(user_id, signals.newest(connection, tenant, user_id), targets)


def summary_answer(version: Version, words: Mapping[str, str]) -> SummaryAnswer:
    """A stored version as a response, with the words of its forbidden clauses (from store.forbidden.words)."""
    forbidden_words = in_words(version.forbidden, words)
    clauses = [Clause.model_validate(one.model_dump() | {"signals": list(one.signals)}) for one in version.clauses]
    return SummaryAnswer(
        version=version.version,
        text=version.text,
        clauses=clauses,
        updated_at=moment(version.created_at),
        author=version.author,
        forbidden=[
            ForbiddenClause(id=one.id, text=forbidden_words.get(one.id), send_to_model=one.send_to_model)
            for one in version.forbidden
        ],
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


def check_bounds(connection: Connection, tenant: str, user_id: str, bounds: ProfileSettings) -> None:
    """Check the number and size of a user's signals. Call it in the transaction that adds some, so that they roll back.

    Raises:
        OverBound: there are too many.
    """
    count, size = signals.size(connection, tenant, user_id)
    check_bound(bounds, "signals", count, 422, "profile_full", "the number of the user's signals")
    check_bound(bounds, "signals_bytes", size, 422, "profile_full", "the size of the user's signals in bytes")


def check_bound(bounds: ProfileSettings, bound: str, total: int, status: int, code: str, subject: str) -> None:
    """Check one limit of `[profiles]`, by its name.

    Raises:
        OverBound: `total` exceeds it.
    """
    maximum = getattr(bounds, bound)
    if total > maximum:
        message = f"{subject} would be {total:,}; the maximum is {maximum:,} ([profiles] {bound}); nothing was added"
        raise OverBound(status, code, message)


def existing_user(connection: Connection, tenant: str, user_id: str) -> users.UserRecord:
    """A user who must exist.

    Raises:
        NotFound: no such user.
    """
    user = users.find(connection, tenant, user_id)
    if user is None:
        raise no_user()
    return user


def no_user() -> NotFound:
    """The error for a user who does not exist."""
    return NotFound("no_user", "there is no such user")
