"""The audit log: who read or changed which user's data. Entries are append-only until they expire.

A change is recorded in the transaction that makes it: both are stored, or neither. User ids are stored in plain text
while the user exists. An erasure removes the id and leaves a keyed hash, by which an operator who knows the id can
still search.
"""

import hmac
import secrets
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, insert, select, tuple_, update

from popi.serving.store import settings
from popi.serving.store.tables import audit, users

SECRET = "audit_secret"
"""Name of the setting with the hashes' secret."""
PAGE = 500
"""Entries per page."""

Role = Literal["admin", "viewer", "app", "user", "operator"]
Channel = Literal["api", "page", "cli"]


@dataclass(frozen=True)
class Actor:
    """Who performs an action.

    Attributes:
        name: `key:` and a key id (`env` for POPI_ADMIN_KEY); `page` for users on their own page; `oidc:` and a name
            from the team's identity provider; `cli:` and an account of the machine.
        role: determines what the actor may do.
        channel: the profile API, the pages or the command line.
    """

    name: str
    role: Role
    channel: Channel


ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)
"""The actor in this context; `None` disables auditing."""


@dataclass(frozen=True)
class Seen:
    """A read of a user's data; an empty `user_id` stands for the tenant's list of users."""

    actor: Actor
    action: str
    tenant: str
    user_id: str


def note(
    connection: Connection,
    now: float,
    action: str,
    tenant: str,
    user_ids: Sequence[str] = ("",),
    *,
    gone: bool = False,
) -> None:
    """Record a change in the transaction that makes it, once the users' rows are locked.

    Args:
        connection: that transaction.
        now: seconds since 1970.
        action: what was done.
        tenant: the users' tenant.
        user_ids: the users; an empty id means no user in particular.
        gone: the users no longer exist, so store only their hashes.
    """
    actor = ACTOR.get()
    if actor is not None:
        _add(connection, now, [(Seen(actor, action, tenant, one), not gone) for one in user_ids])


def note_unlocked(connection: Connection, now: float, action: str, tenant: str, user_id: str) -> None:
    """Record a change to a user whose row is not locked."""
    if (actor := ACTOR.get()) is not None:
        note_seen(connection, now, [Seen(actor, action, tenant, user_id)])


def note_seen(connection: Connection, now: float, seen: Sequence[Seen]) -> None:
    """Record reads. Of users who don't exist (any more), only the hash is stored."""
    subjects = sorted({(one.tenant, one.user_id) for one in seen if one.user_id})
    existing: set[tuple[str, str]] = set()
    for start in range(0, len(subjects), PAGE):
        query = select(users.c.tenant, users.c.user_id).where(
            tuple_(users.c.tenant, users.c.user_id).in_(subjects[start : start + PAGE])
        )
        # A concurrent erasure waits for this lock, or has finished and the row is gone.
        locked = query.order_by(users.c.tenant, users.c.user_id).with_for_update(read=True, key_share=True)
        existing |= {(row.tenant, row.user_id) for row in connection.execute(locked)}
    _add(connection, now, [(one, (one.tenant, one.user_id) in existing) for one in seen])


def _add(connection: Connection, now: float, entries: Sequence[tuple[Seen, bool]]) -> None:
    if not entries:
        return
    key = settings.get(connection, SECRET) or settings.set_default(connection, SECRET, secrets.token_hex(32))
    rows = [
        {
            "entry": f"{int(now * 1e6):016d}-{secrets.token_hex(6)}",
            "at": now,
            "actor": one.actor.name,
            "role": one.actor.role,
            "way": one.actor.channel,
            "action": one.action,
            "tenant": one.tenant,
            "user_id": one.user_id if plain and one.user_id else None,
            "user_hash": _hash(key, one.tenant, one.user_id) if one.user_id else "",
        }
        for one, plain in entries
    ]
    connection.execute(insert(audit), rows)


def forget(connection: Connection, tenant: str, user_id: str) -> None:
    """Remove a user's id from their entries; the hash stays. The user's row must be locked or gone."""
    key = settings.get(connection, SECRET)
    if key is not None:
        entries_of_user = (audit.c.user_hash == _hash(key, tenant, user_id), audit.c.user_id.is_not(None))
        connection.execute(update(audit).where(*entries_of_user).values(user_id=None))


def list_entries(
    connection: Connection,
    tenant: str | None = None,
    user_id: str | None = None,
    after: str | None = None,
    limit: int = PAGE,
) -> Sequence[Row[Any]]:
    """Rows of `audit`, newest first.

    Args:
        connection: to read with.
        tenant: only this tenant; required with `user_id`.
        user_id: only this user, who may have been erased.
        after: only entries older than this one.
        limit: maximum number of entries.
    """
    query = select(audit).order_by(audit.c.entry.desc()).limit(limit)
    if tenant is not None:
        query = query.where(audit.c.tenant == tenant)
        if user_id is not None:
            key = settings.get(connection, SECRET)
            query = query.where(audit.c.user_hash == (_hash(key, tenant, user_id) if key is not None else ""))
    if after is not None:
        query = query.where(audit.c.entry < after)
    return connection.execute(query).all()


def pages(read: Any, tenant: str | None = None, user_id: str | None = None) -> Iterator[Sequence[Row[Any]]]:
    """Yield all of `list_entries` page by page, each in its own transaction (`read` is `Database.read`)."""
    after = None
    while rows := read(list_entries, tenant, user_id, after):
        yield rows
        after = rows[-1].entry


def any_older(connection: Connection, before: float) -> bool:
    """Whether `expire` would delete any."""
    return connection.execute(_older(select(audit.c.entry), before).limit(1)).first() is not None


def expire(connection: Connection, before: float) -> int:
    """Delete entries older than `before` (seconds since 1970); returns how many."""
    return connection.execute(_older(delete(audit), before)).rowcount


def _older(query: Any, before: float) -> Any:
    return query.where(audit.c.entry < f"{int(before * 1e6):016d}")


def _hash(key: str, tenant: str, user_id: str) -> str:
    text = f"{len(tenant)}:{tenant}:{user_id}"
    return hmac.digest(bytes.fromhex(key), text.encode("utf-8", "surrogatepass"), "sha256").hex()
