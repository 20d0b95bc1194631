"""Outbox of webhook events: each is added in the transaction it describes and stays until the endpoint accepts it.

A user's events reach an endpoint in order. Of several pending new versions only the newest is retained, and an erasure
replaces everything before it. So even if an endpoint accepts nothing, the outbox holds only a few rows per user and
endpoint, and none for longer than the endpoint's time limit.
"""

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, insert, or_, select, update

from popi.serving.store.database import upsert
from popi.serving.store.tables import outbox, users, webhooks

Event = Literal["summary.changed", "user.erased"]
EVENTS: tuple[Event, ...] = get_args(Event)
AHEAD_SECONDS = 1.0
"""Times further in the future than this were written by a clock that has been set back since (`correct`)."""


@dataclass(frozen=True)
class Pending:
    """An event to deliver to an endpoint, claimed by one process.

    Attributes:
        endpoint, event_id: the event's id is the same for every endpoint and attempt.
        event: what happened, at `happened_at` (seconds since 1970).
        tenant, user_id: the user.
        version: the summary version that became current.
        merged_into: the user that an erased user was merged into.
        attempts: number of previous attempts.
        lease: random token of the process that claimed it.
    """

    endpoint: str
    event_id: str
    event: Event
    tenant: str
    user_id: str
    version: int | None
    merged_into: str | None
    happened_at: float
    attempts: int
    lease: str


def register(connection: Connection, name: str, events: Collection[Event], seconds: float, now: float) -> None:
    """Register an endpoint for events, each retried for up to `seconds`. The registration expires after as long."""
    values = {"events": " ".join(events), "seconds": seconds, "expires_at": now + seconds}
    row = upsert(connection, webhooks).values(name=name, **values)
    connection.execute(row.on_conflict_do_update(index_elements=["name"], set_=values))


def add(
    connection: Connection,
    tenant: str,
    user_id: str,
    event: Event,
    now: float,
    *,
    version: int | None = None,
    merged_into: str | None = None,
) -> None:
    """Queue an event for every endpoint that subscribes to it. The user's row must be locked."""
    is_user = (outbox.c.tenant == tenant, outbox.c.user_id == user_id)
    # Events that are being delivered right now can't be replaced.
    idle = or_(outbox.c.lease.is_(None), outbox.c.lease_until <= now)
    if event == "user.erased":
        connection.execute(delete(outbox).where(*is_user, idle))
        merged_here = (outbox.c.tenant == tenant, outbox.c.merged_into == user_id)
        connection.execute(update(outbox).where(*merged_here).values(merged_into=merged_into))
    else:
        connection.execute(delete(outbox).where(*is_user, idle, outbox.c.event == event))
    event_id = f"msg_{secrets.token_hex(16)}"
    for row in connection.execute(select(webhooks).where(webhooks.c.expires_at > now)).all():
        if event not in row.events.split():
            continue
        before = select(func.coalesce(func.max(outbox.c.position), 0)).where(*is_user, outbox.c.endpoint == row.name)
        connection.execute(
            insert(outbox).values(
                endpoint=row.name,
                event_id=event_id,
                event=event,
                tenant=tenant,
                user_id=user_id,
                position=before.scalar_subquery() + 1,
                version=version,
                merged_into=merged_into,
                happened_at=now,
                due_at=now,
                attempts=0,
                expires_at=now + row.seconds,
            )
        )


def has_pending(connection: Connection, tenant: str, user_id: str) -> bool:
    """Whether events of a user are still pending."""
    is_user = (outbox.c.tenant == tenant, outbox.c.user_id == user_id)
    return connection.execute(select(outbox.c.event_id).where(*is_user).limit(1)).first() is not None


def _ready(endpoint: str, now: float) -> ColumnElement[bool]:
    earlier = outbox.alias()
    same = (getattr(earlier.c, name) == outbox.c[name] for name in ("tenant", "user_id", "endpoint"))
    first = ~exists().where(*same, earlier.c.position < outbox.c.position)
    free = or_(outbox.c.lease.is_(None), outbox.c.lease_until <= now)
    return and_(outbox.c.endpoint == endpoint, outbox.c.due_at <= now, free, outbox.c.expires_at > now, first)


def any_due(connection: Connection, endpoint: str, now: float) -> bool:
    """Whether `claim` would find anything. Needs only a read."""
    return connection.execute(select(outbox.c.event_id).where(_ready(endpoint, now)).limit(1)).first() is not None


def claim(connection: Connection, endpoint: str, now: float, lease_seconds: float, limit: int) -> list[Pending]:
    """Claim an endpoint's next events, longest due first and at most one per user."""
    query = select(outbox).where(_ready(endpoint, now)).order_by(outbox.c.due_at).limit(limit)
    claimed = []
    for row in connection.execute(query.with_for_update(skip_locked=True)).all():
        values = {name: row._mapping[name] for name in Pending.__dataclass_fields__}
        pending = Pending(**values | {"lease": secrets.token_hex(16)})
        key = (outbox.c.endpoint == endpoint, outbox.c.event_id == row.event_id)
        connection.execute(update(outbox).where(*key).values(lease=pending.lease, lease_until=now + lease_seconds))
        claimed.append(pending)
    return claimed


def _held(pending: Pending) -> tuple[ColumnElement[bool], ...]:
    is_event = (outbox.c.endpoint == pending.endpoint, outbox.c.event_id == pending.event_id)
    return (*is_event, outbox.c.lease == pending.lease)


def finish(connection: Connection, pending: Pending) -> bool:
    """Remove an event that was delivered or given up. Returns whether the user is erased: then the bytes must be
    overwritten once more.
    """
    connection.execute(delete(outbox).where(*_held(pending)))
    row = select(users.c.user_id).where(users.c.tenant == pending.tenant, users.c.user_id == pending.user_id)
    return connection.execute(row).first() is None


def postpone(connection: Connection, pending: Pending, due_at: float) -> None:
    """Give an event back, to retry at `due_at`. If a later event supersedes it, drop it instead."""
    later = outbox.alias()
    same = (getattr(later.c, name) == getattr(pending, name) for name in ("tenant", "user_id", "endpoint"))
    superseded = exists().where(*same, later.c.position > outbox.c.position)
    if pending.event == "summary.changed":
        if connection.execute(delete(outbox).where(*_held(pending), superseded)).rowcount:
            return
    values = {"lease": None, "lease_until": None, "due_at": due_at, "attempts": pending.attempts + 1}
    connection.execute(update(outbox).where(*_held(pending)).values(**values))


def correct(connection: Connection, endpoint: str, now: float, lease_seconds: float, longest_wait: float) -> None:
    """Undo what a clock that was ahead has left of an endpoint's events: an event that has not been tried is due now,
    and any other within `longest_wait` seconds; a lease lasts `lease_seconds` at most."""
    of_endpoint, ahead = outbox.c.endpoint == endpoint, outbox.c.due_at > now + AHEAD_SECONDS
    late = or_(and_(outbox.c.attempts == 0, ahead), outbox.c.due_at > now + longest_wait + AHEAD_SECONDS)
    connection.execute(update(outbox).where(of_endpoint, late).values(due_at=now))
    leased = outbox.c.lease_until > now + lease_seconds + AHEAD_SECONDS
    connection.execute(update(outbox).where(of_endpoint, leased).values(lease_until=now + lease_seconds))
    seconds = select(webhooks.c.seconds).where(webhooks.c.name == endpoint).scalar_subquery()
    connection.execute(
        update(outbox).where(of_endpoint, outbox.c.expires_at > now + seconds).values(expires_at=now + seconds)
    )


def count_pending(connection: Connection, endpoint: str) -> int:
    """The number of an endpoint's pending events."""
    query = select(func.count()).select_from(outbox).where(outbox.c.endpoint == endpoint)
    return int(connection.execute(query).scalar_one())
