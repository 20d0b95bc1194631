"""Sessions on the pages, and used links. The store holds only a hash of each cookie."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from popi.serving.store import users
from popi.serving.store.database import upsert
from popi.serving.store.erasure import erased_since
from popi.serving.store.tables import opened_links, sessions

AHEAD_SECONDS = 60.0
"""Allowed difference between the clocks of two machines."""


@dataclass(frozen=True)
class SessionRecord:
    """One session; `expires_at` in seconds since 1970.

    Attributes:
        session_hash: SHA-256 of the cookie, in hex.
        tenant: the user's tenant; in a team session, the key's tenant.
        user_id: the user, in a user's session.
        key_id: the admin key that opened a team session.
        key_hash: that key's hash.
        expires_at: when the session ends.
        member: the member's name at the identity provider, in a team session without a key.
        role: that member's role: admin or viewer.
    """

    session_hash: str
    tenant: str
    user_id: str | None
    key_id: str | None
    key_hash: str | None
    expires_at: float
    member: str | None = None
    role: str | None = None


def add(connection: Connection, record: SessionRecord) -> None:
    """Open a session."""
    connection.execute(insert(sessions).values(**record.__dict__))


def open_by_link(
    connection: Connection, link_hash: str, made_at: float, expires_at: float, record: SessionRecord, now: float
) -> bool:
    """Open a user's session by a link. Returns False if the link has expired or was used before, if the user was erased
    after it was created, or if it was created by a clock that was ahead, and would be valid for too long.

    Args:
        link_hash: identifies the link.
        made_at: when it was created; seconds since 1970, like all times here.
        expires_at: when it expires.
        record: the session.
    """
    tenant, user_id = record.tenant, record.user_id
    assert user_id is not None, "team sessions are not opened by links"
    exists = users.lock_or_reserve(connection, tenant, user_id, now)  # a concurrent erasure waits, or is visible
    opened = (
        made_at - AHEAD_SECONDS <= now < expires_at
        and not erased_since(connection, tenant, user_id, made_at)
        and take_link(connection, link_hash, expires_at)
    )
    if opened:
        add(connection, record)
    if not exists:
        users.release_reservation(connection, tenant, user_id)
    return opened


def take_link(connection: Connection, link_hash: str, expires_at: float) -> bool:
    """Mark a link as used; returns False if it already was. Needs a write transaction."""
    once = upsert(connection, opened_links).values(link_hash=link_hash, expires_at=expires_at)
    # PostgreSQL's driver reports no row count for such an INSERT.
    inserted = once.on_conflict_do_nothing().returning(opened_links.c.link_hash)
    return connection.execute(inserted).first() is not None


def find(connection: Connection, session_hash: str, now: float) -> SessionRecord | None:
    """A session that has not expired."""
    where = (sessions.c.session_hash == session_hash, sessions.c.expires_at > now)
    row = connection.execute(select(sessions).where(*where)).first()
    return None if row is None else SessionRecord(**row._mapping)


def end(connection: Connection, session_hash: str) -> None:
    """Sign out."""
    connection.execute(delete(sessions).where(sessions.c.session_hash == session_hash))
