"""What a store keeps for a stated time only: each such table has a column `expires_at`, in seconds since 1970.

A user has one, too, as long as nothing but captured answers is stored of them: a user who gave no feedback goes with
the answers, id included.
"""

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

TABLES = (answers, erasures, opened_links, outbox, sessions, usage, webhooks)


def any_expired(connection: Connection, now: float) -> bool:
    """Whether `expire` would delete any row; a reader's question, so that most looks write nothing."""
    due = (select(table.c.expires_at).where(table.c.expires_at <= now) for table in TABLES)
    alone = select(users.c.expires_at).where(users.c.expires_at <= now, ~_of_user(answers))
    return any(connection.execute(one.limit(1)).first() is not None for one in (*due, alone))


def expire(connection: Connection, now: float) -> int:
    """Delete the rows whose time is over; says how many."""
    gone = {table: connection.execute(delete(table).where(table.c.expires_at <= now)).rowcount for table in TABLES}
    if gone[outbox]:  # what nobody was told of somebody who is erased
        erasure.scrub_later(connection, now)
    due = and_(users.c.expires_at <= now, ~_of_user(answers))
    more = or_(users.c.paused == 1, users.c.learn_off == 1, *map(_of_user, (signals, summaries, jobs, keys)))
    connection.execute(update(users).where(due, more).values(expires_at=None))
    left = connection.execute(delete(users).where(due).returning(users.c.tenant, users.c.user_id)).all()
    for row in left:
        audit.forget(connection, row.tenant, row.user_id)
    return sum(gone.values()) + len(left)


def _of_user(table: Table) -> Exists:
    return exists().where(table.c.tenant == users.c.tenant, table.c.user_id == users.c.user_id)
