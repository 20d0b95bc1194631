"""Answers that feedback may name: what the user asked and what they got, for a bounded time (docs/profiles.md).

Each has an id of ours, which the client reads in a header of the answer. The upstream's own id stands beside it: some
servers give many answers the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, or_, select, tuple_

from popi.serving.store import controls, erasure, users
from popi.serving.store.database import page
from popi.serving.store.tables import answers

SLACK_SECONDS = 5.0
"""By how much the clocks of two gateways may differ: a chat that began so shortly after an erasure is dropped, too."""


@dataclass(frozen=True)
class KeptAnswer:
    """One answer of the model behind the gateway.

    Attributes:
        answer_id: ours.
        prompt: the user's last message, in their own words.
        answer: its text.
        version: of the summary that the model saw; 0 for none.
        upstream_id: as the answer itself says; empty where it has none.
    """

    answer_id: str
    prompt: str
    answer: str
    version: int
    upstream_id: str = ""


class AmbiguousAnswer(Exception):
    """Several answers of the user have the upstream's id that was named."""


def put(
    connection: Connection, tenant: str, user_id: str, kept: Sequence[KeptAnswer], began: float, now: float, keep: float
) -> int:
    """Keep answers for `keep` seconds; says how many.

    None is kept where the user was erased since the chat `began`, or learning was off meanwhile or is now. A user of
    whom nothing else is stored goes with them.
    """
    with connection.begin_nested() as unless_erased:
        users.lock_for_capture(
            connection, tenant, user_id, now, now + keep
        )  # first: an erasure waits for us, or is over and can be seen
        if erasure.erased_since(connection, tenant, user_id, began - SLACK_SECONDS):
            unless_erased.rollback()  # the user whom the lock made
            return 0
    if not controls.learned_since(connection, tenant, user_id, began):
        return 0
    for one in kept:
        values = {"prompt": one.prompt, "answer": one.answer, "version": one.version, "upstream_id": one.upstream_id}
        who = {"tenant": tenant, "user_id": user_id, "answer_id": one.answer_id}
        connection.execute(insert(answers).values(**who, **values, expires_at=now + keep))
    return len(kept)


def find(connection: Connection, tenant: str, user_id: str, answer_id: str, now: float) -> KeptAnswer | None:
    """One answer, while it is kept, by our id or the upstream's.

    Raises:
        AmbiguousAnswer: several have this id of the upstream's.
    """
    where = (answers.c.tenant == tenant, answers.c.user_id == user_id, answers.c.expires_at > now)
    named = or_(answers.c.answer_id == answer_id, answers.c.upstream_id == answer_id)
    rows = connection.execute(select(answers).where(*where, named).limit(2)).all()
    if len(rows) > 1:
        raise AmbiguousAnswer
    return KeptAnswer(*(rows[0]._mapping[column] for column in KeptAnswer.__dataclass_fields__)) if rows else None


def kept(
    connection: Connection, tenant: str, user_id: str, now: float, behind: tuple[float, str] | None = None
) -> list[Row[Any]]:
    """A page of those that are kept of a user, the newest first: those behind an `expires_at` and `answer_id`."""
    where = [answers.c.tenant == tenant, answers.c.user_id == user_id, answers.c.expires_at > now]
    if behind is not None:
        where.append(tuple_(answers.c.expires_at, answers.c.answer_id) < tuple_(*behind))
    order = (answers.c.expires_at.desc(), answers.c.answer_id.desc())
    return page(connection, select(answers).where(*where).order_by(*order).limit(500), "prompt", "answer")


def count(connection: Connection, tenant: str, user_id: str, now: float) -> int:
    """How many are kept of a user."""
    where = (answers.c.tenant == tenant, answers.c.user_id == user_id, answers.c.expires_at > now)
    return int(connection.execute(select(func.count()).select_from(answers).where(*where)).scalar_one())
