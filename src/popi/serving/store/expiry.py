"""Data that is stored for a limited time: each such table has a column `expires_at`, in seconds since 1970.

Users have one too while nothing but captured answers is stored about them: a user who gave no feedback expires together
with the answers, id included.
"""

import time
from collections.abc import Callable

from sqlalchemy import Connection, Exists, and_, delete, exists, or_, select, update
from sqlalchemy.sql.schema import Table

from popi.serving.store import audit, erasure
from popi.serving.store.tables import (
    answers,
    erasures,
    jobs,
    keys,
    opened_links,
    outbox,
    sessions,
    signals,
    summaries,
    usage,
    users,
    webhooks,
)

LEAP_SECONDS = 60.0
"""A clock that gains this much between two looks has been set."""
SETTLE_SECONDS = 600.0
"""How long nothing is deleted for its age after that."""
TABLES = (answers, erasures, opened_links, outbox, sessions, usage, webhooks)


class Leaps:
    """Notices that the clock leapt forward. Then nothing is deleted for its age for a while: a wrong clock is usually
    set back soon.

    Args:
        steady: monotonic seconds.
    """

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady, self._settled_at = steady, float("-inf")
        self._seen: tuple[float, float] | None = None

    def waiting(self, now: float) -> bool:
        """Whether to wait. Call this regularly, with seconds since 1970."""
        steady = self._steady()
        if self._seen is not None and (now - self._seen[0]) - (steady - self._seen[1]) > LEAP_SECONDS:
            self._settled_at = steady + SETTLE_SECONDS
        self._seen = now, steady
        return steady < self._settled_at


def any_expired(connection: Connection, now: float) -> bool:
    """Whether `expire` would delete any row. Needs only a read, so that most checks write nothing."""
    due = (select(table.c.expires_at).where(table.c.expires_at <= now) for table in TABLES)
    alone = select(users.c.expires_at).where(users.c.expires_at <= now, ~_of_user(answers))
    return any(connection.execute(one.limit(1)).first() is not None for one in (*due, alone))


def expire(connection: Connection, now: float) -> int:
    """Delete expired rows; returns how many."""
    deleted = {table: connection.execute(delete(table).where(table.c.expires_at <= now)).rowcount for table in TABLES}
    if deleted[outbox]:  # undelivered events may hold ids of erased users
        erasure.scrub_later(connection, now)
    due = and_(users.c.expires_at <= now, ~_of_user(answers))
    has_data = or_(users.c.paused == 1, users.c.learn_off == 1, *map(_of_user, (signals, summaries, jobs, keys)))
    connection.execute(update(users).where(due, has_data).values(expires_at=None))
    expired_users = connection.execute(delete(users).where(due).returning(users.c.tenant, users.c.user_id)).all()
    for row in expired_users:
        audit.forget(connection, row.tenant, row.user_id)
    return sum(deleted.values()) + len(expired_users)


def _of_user(table: Table) -> Exists:
    return exists().where(table.c.tenant == users.c.tenant, table.c.user_id == users.c.user_id)
