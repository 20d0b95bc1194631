"""Events for webhooks: in the outbox from the transaction that they tell of until an endpoint took them.

A user's events reach an endpoint one after the other. Of several versions that wait the newest alone stays, and an
erasure takes the place of all before it. So whatever an endpoint does not take, the outbox has at most a few rows per
user and endpoint, none longer than the endpoint's hours.
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


@dataclass(frozen=True)
class Pending:
    """What an endpoint is to be told, taken by a process that tells it.

    Attributes:
        endpoint, event_id: which; an event's id is the same at every endpoint, and at every try.
        event: what happened, at `happened_at` (seconds since 1970).
        tenant, user_id: to whom.
        version: of the summary that is current since.
        merged_into: the user that an erased one became part of.
        attempts: those before.
        lease: whose it is; a word.
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
    """An endpoint is told of events, each for at most `seconds`; for as long it counts without being named again."""
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
    """Something happened to a user, whose row is locked: every endpoint that wants to know of it is to be told."""
    mine = (outbox.c.tenant == tenant, outbox.c.user_id == user_id)
    # What is being told just now is told before this.
    waits = or_(outbox.c.lease.is_(None), outbox.c.lease_until <= now)
    if event == "user.erased":
        connection.execute(delete(outbox).where(*mine, waits))
        named = (outbox.c.tenant == tenant, outbox.c.merged_into == user_id)
        connection.execute(update(outbox).where(*named).values(merged_into=merged_into))
    else:
        connection.execute(delete(outbox).where(*mine, waits, outbox.c.event == event))
    event_id = f"msg_{secrets.token_hex(16)}"
    for row in connection.execute(select(webhooks).where(webhooks.c.expires_at > now)).all():
        if event not in row.events.split():
            continue
        before = select(func.coalesce(func.max(outbox.c.position), 0)).where(*mine, outbox.c.endpoint == row.name)
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


def waits(connection: Connection, tenant: str, user_id: str) -> bool:
    """Whether somebody is still to be told of a user."""
    mine = (outbox.c.tenant == tenant, outbox.c.user_id == user_id)
    return connection.execute(select(outbox.c.event_id).where(*mine).limit(1)).first() is not None


def _ready(endpoint: str, now: float) -> ColumnElement[bool]:
    earlier = outbox.alias()
    same = (getattr(earlier.c, name) == outbox.c[name] for name in ("tenant", "user_id", "endpoint"))
    first = ~exists().where(*same, earlier.c.position < outbox.c.position)
    free = or_(outbox.c.lease.is_(None), outbox.c.lease_until <= now)
    return and_(outbox.c.endpoint == endpoint, outbox.c.due_at <= now, free, outbox.c.expires_at > now, first)


def any_due(connection: Connection, endpoint: str, now: float) -> bool:
    """Whether `claim` would find anything; a reader's question."""
    return connection.execute(select(outbox.c.event_id).where(_ready(endpoint, now)).limit(1)).first() is not None


def claim(connection: Connection, endpoint: str, now: float, lease_seconds: float, most: int) -> list[Pending]:
    """Take what an endpoint is to be told next, of each user one event; those that are due longest first."""
    query = select(outbox).where(_ready(endpoint, now)).order_by(outbox.c.due_at).limit(most)
    taken = []
    for row in connection.execute(query.with_for_update(skip_locked=True)).all():
        values = {name: row._mapping[name] for name in Pending.__dataclass_fields__}
        pending = Pending(**values | {"lease": secrets.token_hex(16)})
        key = (outbox.c.endpoint == endpoint, outbox.c.event_id == row.event_id)
        connection.execute(update(outbox).where(*key).values(lease=pending.lease, lease_until=now + lease_seconds))
        taken.append(pending)
    return taken


def _held(pending: Pending) -> tuple[ColumnElement[bool], ...]:
    mine = (outbox.c.endpoint == pending.endpoint, outbox.c.event_id == pending.event_id)
    return (*mine, outbox.c.lease == pending.lease)


def finish(connection: Connection, pending: Pending) -> bool:
    """The endpoint was told, or never will be. Says whether this was the last of somebody who is erased: then the bytes
    are to be overwritten once more.
    """
    connection.execute(delete(outbox).where(*_held(pending)))
    row = select(users.c.user_id).where(users.c.tenant == pending.tenant, users.c.user_id == pending.user_id)
    return connection.execute(row).first() is None


def postpone(connection: Connection, pending: Pending, due_at: float) -> None:
    """Give an event back, to be told at `due_at`; where a later one says as much, it goes instead."""
    later = outbox.alias()
    same = (getattr(later.c, name) == getattr(pending, name) for name in ("tenant", "user_id", "endpoint"))
    said = exists().where(*same, later.c.position > outbox.c.position)
    if pending.event == "summary.changed" and connection.execute(delete(outbox).where(*_held(pending), said)).rowcount:
        return
    values = {"lease": None, "lease_until": None, "due_at": due_at, "attempts": pending.attempts + 1}
    connection.execute(update(outbox).where(*_held(pending)).values(**values))


def waiting(connection: Connection, endpoint: str) -> int:
    """How many events an endpoint is still to be told."""
    query = select(func.count()).select_from(outbox).where(outbox.c.endpoint == endpoint)
    return int(connection.execute(query).scalar_one())
