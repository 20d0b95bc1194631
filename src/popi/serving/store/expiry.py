"""What a store keeps for a stated time only: each such table has a column `expires_at`, in seconds since 1970."""

from sqlalchemy import Connection, delete, select

from popi.serving.store import erasure
from popi.serving.store.tables import answers, erasures, opened_links, outbox, sessions, usage, webhooks

TABLES = (answers, erasures, opened_links, outbox, sessions, usage, webhooks)


def any_expired(connection: Connection, now: float) -> bool:
    """Whether `expire` would delete any row; a reader's question, so that most looks write nothing."""
    return any(
        connection.execute(select(table.c.expires_at).where(table.c.expires_at <= now).limit(1)).first() is not None
        for table in TABLES
    )


def expire(connection: Connection, now: float) -> int:
    """Delete the rows whose time is over; says how many."""
    gone = {table: connection.execute(delete(table).where(table.c.expires_at <= now)).rowcount for table in TABLES}
    if gone[outbox]:  # what was told nobody of somebody who is erased
        erasure.scrub_later(connection, now)
    return sum(gone.values())
