"""Who read or changed whom: entries that are added and never changed, until their time is over.

A change is noted in its own transaction: both are stored, or neither. Users are named in plain while they are there; of
one who is erased the id goes, and a keyed hash stays, which an operator who is told the id can still ask for.
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
"""The secret of the hashes."""
PAGE = 500
"""Entries read at once."""

Role = Literal["admin", "viewer", "app", "user", "operator"]
Way = Literal["api", "page", "cli"]


@dataclass(frozen=True)
class Actor:
    """Who does something.

    Attributes:
        name: `key:` and a key's id, `env` being POPI_ADMIN_KEY's; `page` of a user on their own page; `oidc:` and a
            name of the team's identity provider; `cli:` and an account of the machine.
        role: what they may do.
        way: by the profile API, the pages or the command line.
    """

    name: str
    role: Role
    way: Way


ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)
"""Who acts in this context; None: nobody who is noted."""


@dataclass(frozen=True)
class Seen:
    """Somebody read something of a user; empty `user_id`: of a tenant's users as a list."""

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
    """Note a change in the transaction that makes it, once the users' rows are locked.

    Args:
        connection: that transaction.
        now: seconds since 1970.
        action: what was done.
        tenant: whose users.
        user_ids: the users; an empty one: none in particular.
        gone: they are gone now, and not named in plain.
    """
    actor = ACTOR.get()
    if actor is not None:
        _add(connection, now, [(Seen(actor, action, tenant, one), not gone) for one in user_ids])


def note_one_there(connection: Connection, now: float, action: str, tenant: str, user_id: str) -> None:
    """Note a change of something of a user whose row is not locked."""
    if (actor := ACTOR.get()) is not None:
        note_seen(connection, now, [Seen(actor, action, tenant, user_id)])


def note_seen(connection: Connection, now: float, seen: Sequence[Seen]) -> None:
    """Note what was read. Users who are not there, or not any more, are not named in plain."""
    mine = sorted({(one.tenant, one.user_id) for one in seen if one.user_id})
    there: set[tuple[str, str]] = set()
    for start in range(0, len(mine), PAGE):
        query = select(users.c.tenant, users.c.user_id).where(
            tuple_(users.c.tenant, users.c.user_id).in_(mine[start : start + PAGE])
        )
        # An erasure waits until they are noted, or is over, and then they are not there.
        locked = query.order_by(users.c.tenant, users.c.user_id).with_for_update(read=True, key_share=True)
        there |= {(row.tenant, row.user_id) for row in connection.execute(locked)}
    _add(connection, now, [(one, (one.tenant, one.user_id) in there) for one in seen])


def _add(connection: Connection, now: float, entries: Sequence[tuple[Seen, bool]]) -> None:
    if not entries:
        return
    key = settings.kept(connection, SECRET) or settings.keep_first(connection, SECRET, secrets.token_hex(32))
    rows = [
        {
            "entry": f"{int(now * 1e6):016d}-{secrets.token_hex(6)}",
            "at": now,
            "actor": one.actor.name,
            "role": one.actor.role,
            "way": one.actor.way,
            "action": one.action,
            "tenant": one.tenant,
            "user_id": one.user_id if plain and one.user_id else None,
            "user_hash": _hash(key, one.tenant, one.user_id) if one.user_id else "",
        }
        for one, plain in entries
    ]
    connection.execute(insert(audit), rows)


def forget(connection: Connection, tenant: str, user_id: str) -> None:
    """Take a user's id out of what is noted of them; their hash stays. Their row is locked, or gone."""
    key = settings.kept(connection, SECRET)
    if key is not None:
        mine = (audit.c.user_hash == _hash(key, tenant, user_id), audit.c.user_id.is_not(None))
        connection.execute(update(audit).where(*mine).values(user_id=None))


def listed(
    connection: Connection,
    tenant: str | None = None,
    user_id: str | None = None,
    after: str | None = None,
    limit: int = PAGE,
) -> Sequence[Row[Any]]:
    """Entries, newest first: rows of `audit`.

    Args:
        connection: reads.
        tenant: of one tenant alone; needed with `user_id`.
        user_id: of one user, also one who was erased.
        after: an entry: older ones than that.
        limit: maximum number.
    """
    query = select(audit).order_by(audit.c.entry.desc()).limit(limit)
    if tenant is not None:
        query = query.where(audit.c.tenant == tenant)
        if user_id is not None:
            key = settings.kept(connection, SECRET)
            query = query.where(audit.c.user_hash == (_hash(key, tenant, user_id) if key is not None else ""))
    if after is not None:
        query = query.where(audit.c.entry < after)
    return connection.execute(query).all()


def pages(read: Any, tenant: str | None = None, user_id: str | None = None) -> Iterator[Sequence[Row[Any]]]:
    """All of `listed`, page by page, each read (`Database.read`) by itself."""
    after = None
    while rows := read(listed, tenant, user_id, after):
        yield rows
        after = rows[-1].entry


def any_older(connection: Connection, before: float) -> bool:
    """Whether `expire` would delete any."""
    return connection.execute(_older(select(audit.c.entry), before).limit(1)).first() is not None


def expire(connection: Connection, before: float) -> int:
    """Delete entries from before a time (seconds since 1970); says how many."""
    return connection.execute(_older(delete(audit), before)).rowcount


def _older(query: Any, before: float) -> Any:
    return query.where(audit.c.entry < f"{int(before * 1e6):016d}")


def _hash(key: str, tenant: str, user_id: str) -> str:
    text = f"{len(tenant)}:{tenant}:{user_id}"
    return hmac.digest(bytes.fromhex(key), text.encode("utf-8", "surrogatepass"), "sha256").hex()
