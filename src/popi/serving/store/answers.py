"""Answers that feedback can refer to: the user's prompt and the response, stored for a limited time (docs/profiles.md).

Each has an id assigned by popi, which the client reads from a response header. The upstream's own id is stored too, but
is not unique: some servers give many answers the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, or_, select, tuple_

from popi.serving.store import controls, erasure, users
from popi.serving.store.database import page
from popi.serving.store.tables import answers

SLACK_SECONDS = 5.0
"""Allowed clock skew between gateways: a chat that began this soon after an erasure is dropped too."""


@dataclass(frozen=True)
class StoredAnswer:
    """One answer of the model behind the gateway.

    Attributes:
        answer_id: the id assigned by popi.
        prompt: the user's last message, as they wrote it.
        answer: its text.
        version: version of the summary that the model saw; 0 for none.
        upstream_id: the id in the answer itself; empty if it has none.
    """

    answer_id: str
    prompt: str
    answer: str
    version: int
    upstream_id: str = ""


class AmbiguousAnswer(Exception):
    """Several of the user's answers have this upstream id."""


def put(
    connection: Connection,
    tenant: str,
    user_id: str,
    captured: Sequence[StoredAnswer],
    began: float,
    now: float,
    keep: float,
) -> int:
    """Store answers for `keep` seconds; returns how many were stored.

    Nothing is stored if the user was erased after the chat `began`, or if learning is off or has been since. A user
    with no other data expires together with the answers.
    """
    with connection.begin_nested() as unless_erased:
        # Lock first: a concurrent erasure then waits for us, or has finished and is visible.
        users.lock_for_capture(connection, tenant, user_id, now, now + keep)
        if erasure.erased_since(connection, tenant, user_id, began - SLACK_SECONDS):
            unless_erased.rollback()  # removes the row that the lock created
            return 0
    if not controls.learned_since(connection, tenant, user_id, began, now):
        return 0
    for one in captured:
        values = {"prompt": one.prompt, "answer": one.answer, "version": one.version, "upstream_id": one.upstream_id}
        key = {"tenant": tenant, "user_id": user_id, "answer_id": one.answer_id}
        connection.execute(insert(answers).values(**key, **values, expires_at=now + keep))
    return len(captured)


def find(connection: Connection, tenant: str, user_id: str, answer_id: str, now: float) -> StoredAnswer | None:
    """One stored answer, by popi's id or the upstream's.

    Raises:
        AmbiguousAnswer: several have this upstream id.
    """
    where = (answers.c.tenant == tenant, answers.c.user_id == user_id, answers.c.expires_at > now)
    has_id = or_(answers.c.answer_id == answer_id, answers.c.upstream_id == answer_id)
    rows = connection.execute(select(answers).where(*where, has_id).limit(2)).all()
    if len(rows) > 1:
        raise AmbiguousAnswer
    return StoredAnswer(*(rows[0]._mapping[column] for column in StoredAnswer.__dataclass_fields__)) if rows else None


def newest_page(
    connection: Connection, tenant: str, user_id: str, now: float, before: tuple[float, str] | None = None
) -> list[Row[Any]]:
    """A page of a user's stored answers, newest first, starting after the given `expires_at` and `answer_id`."""
    where = [answers.c.tenant == tenant, answers.c.user_id == user_id, answers.c.expires_at > now]
    if before is not None:
        where.append(tuple_(answers.c.expires_at, answers.c.answer_id) < tuple_(*before))
    order = (answers.c.expires_at.desc(), answers.c.answer_id.desc())
    return page(connection, select(answers).where(*where).order_by(*order).limit(500), "prompt", "answer")


def count(connection: Connection, tenant: str, user_id: str, now: float) -> int:
    """The number of a user's stored answers."""
    where = (answers.c.tenant == tenant, answers.c.user_id == user_id, answers.c.expires_at > now)
    return int(connection.execute(select(func.count()).select_from(answers).where(*where)).scalar_one())
