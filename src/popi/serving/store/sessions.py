"""Who is signed in to the pages, and which links were opened. Of a cookie the store holds a hash."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from popi.serving.store import users
from popi.serving.store.database import upsert
from popi.serving.store.erasure import erased_since
from popi.serving.store.tables import opened_links, sessions


@dataclass(frozen=True)
class SessionRecord:
    """One session; `expires_at` in seconds since 1970.

    Attributes:
        session_hash: SHA-256 of the cookie, in hex.
        tenant: whose pages; of the team, the key's own.
        user_id: of a user's session.
        key_id: of the team's: the admin key it was opened with.
        key_hash: of that key.
        expires_at: the end.
        member: of the team's without a key: who it is, by the identity provider.
        role: of those: admin or viewer.
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
    """Open a user's session by a link; False where the link is over, or was opened before, or the user was erased since
    it was made.

    Args:
        link_hash: names the link.
        made_at: when it was made; seconds since 1970, like all times here.
        expires_at: when it ends.
        record: the session.
    """
    tenant, user_id = record.tenant, record.user_id
    assert user_id is not None, "the team's sessions are opened by a key"
    there = users.lock_even_absent(connection, tenant, user_id, now)  # an erasure waits for us, or can be seen
    opened = (
        now < expires_at
        and not erased_since(connection, tenant, user_id, made_at)
        and take_link(connection, link_hash, expires_at)
    )
    if opened:
        add(connection, record)
    if not there:
        users.unlock_absent(connection, tenant, user_id)
    return opened


def take_link(connection: Connection, link_hash: str, expires_at: float) -> bool:
    """Open a link; False where it was opened before. In a transaction that writes."""
    once = upsert(connection, opened_links).values(link_hash=link_hash, expires_at=expires_at)
    # Not by the count of rows: PostgreSQL's driver has none for such an INSERT.
    taken = once.on_conflict_do_nothing().returning(opened_links.c.link_hash)
    return connection.execute(taken).first() is not None


def find(connection: Connection, session_hash: str, now: float) -> SessionRecord | None:
    """A session that is not over."""
    where = (sessions.c.session_hash == session_hash, sessions.c.expires_at > now)
    row = connection.execute(select(sessions).where(*where)).first()
    return None if row is None else SessionRecord(**row._mapping)


def end(connection: Connection, session_hash: str) -> None:
    """Sign out."""
    connection.execute(delete(sessions).where(sessions.c.session_hash == session_hash))
