"""What is stored of a user, as the profile API answers it."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection

from popi.errors import DataError
from popi.profiles.answers import (
    EXPORT_FORMAT,
    AnswerKept,
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
    """There is no such user, summary or version; the message says which, the code in a word."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OverBound(DataError):
    """A bound of `ProfileSettings` does not allow it; `status` is HTTP's, the code a word for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


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
        summary=None if current is None else shown(current, forbidden.words(connection, tenant, user_id)),
        renewal=None if job is None else _renewal(job),
        controls=ControlsAnswer(use=found.use, learn=found.learn),
        paused=not found.use,
    )


def exported(read: Read, tenant: str, user_id: str) -> Iterator[str]:
    """Everything that is stored of a user: an `ExportAnswer` as JSON, in pieces.

    Each piece is read by itself: a large profile is never in memory as a whole, and a slow reader holds no transaction.

    Raises:
        NotFound: no such user; at the first piece.
    """
    who = tenant, user_id
    user = read(found_user, *who)
    created = moment(user.created_at).isoformat()
    yield f'{{"format":{EXPORT_FORMAT},"user_id":{json.dumps(user_id)},"created_at":"{created}"'
    yield f',"controls":{json.dumps({"use": user.use, "learn": user.learn})},"paused":{json.dumps(not user.use)}'
    yield ',"signals":['
    between, after = "", -1
    while rows := read(signals.page_after, *who, after):
        yield between + ",".join(json.dumps(json.loads(row.signal), ensure_ascii=False) for row in rows)
        between, after = ",", rows[-1].position
    yield '],"versions":['
    yield from _versions(read, *who)
    yield '],"answers":['
    between, behind = "", None
    while rows := read(answers.newest_page, *who, time.time(), behind):
        kept = (_kept(row) for row in rows)
        yield between + ",".join(one.model_dump_json() for one in kept)
        between, behind = ",", (rows[-1].expires_at, rows[-1].answer_id)
    yield "]}"


def _kept(row: Any) -> AnswerKept:
    return AnswerKept(id=row.answer_id, upstream_id=row.upstream_id, prompt=row.prompt, answer=row.answer)


def versions(read: Read, tenant: str, user_id: str) -> Iterator[str]:
    """A user's versions: a `VersionsAnswer` as JSON, in pieces as `exported`.

    Raises:
        NotFound: no such user; at the first piece.
    """
    read(found_user, tenant, user_id)
    yield '{"versions":['
    yield from _versions(read, tenant, user_id)
    yield "]}"


def _versions(read: Read, tenant: str, user_id: str) -> Iterator[str]:
    between, below, words = "", 2**62, read(forbidden.words, tenant, user_id)
    while page := read(summaries.versions, tenant, user_id, below=below, max_characters=PAGE):
        yield between + ",".join(shown(one, words).model_dump_json() for one in page)
        between, below = ",", page[-1].version


def training_line(connection: Connection, tenant: str, user_id: str, targets: int = TARGETS) -> User:
    """A user as `popi train` reads them.

    Raises:
        NotFound: no such user.
        OverBound: 409, the user does not want to be learned from.
    """
    if not found_user(connection, tenant, user_id).learn:
        raise OverBound(409, "learning_off", "the user does not want to be learned from: there is no line to train on")
    return training_user(user_id, signals.newest(connection, tenant, user_id), targets)


def shown(version: Version, words: Mapping[str, str]) -> SummaryAnswer:
    """A stored version as it is answered, with the words of what it forbids (store.forbidden.words)."""
    said = in_words(version.forbidden, words)
    listed = [Clause.model_validate(one.model_dump() | {"signals": list(one.signals)}) for one in version.clauses]
    return SummaryAnswer(
        version=version.version,
        text=version.text,
        clauses=listed,
        updated_at=moment(version.created_at),
        author=version.author,
        forbidden=[ForbiddenClause(id=one.id, text=said.get(one.id), tell=one.tell) for one in version.forbidden],
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


def within_bounds(connection: Connection, tenant: str, user_id: str, bounds: ProfileSettings) -> None:
    """Check a user's signals; called where some were added, which is rolled back then.

    Raises:
        OverBound: there are too many.
    """
    count, size = signals.size(connection, tenant, user_id)
    within(bounds, "signals", count, 422, "profile_full", "with these the user's signals")
    within(bounds, "signals_bytes", size, 422, "profile_full", "with these the bytes of the user's signals")


def within(bounds: ProfileSettings, bound: str, total: int, status: int, code: str, what: str) -> None:
    """Check one bound of `[profiles]` by its name.

    Raises:
        OverBound: the total is above it.
    """
    most = getattr(bounds, bound)
    if total > most:
        words = f"{what} would be {total:,}, and may be {most:,} ([profiles] {bound}); nothing was added"
        raise OverBound(status, code, words)


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
