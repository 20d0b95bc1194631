"""Who is signed in to the pages, and which links were opened. Of a cookie the store holds a hash."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select

from popi.serving.store.database import upsert
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
    """

    session_hash: str
    tenant: str
    user_id: str | None
    key_id: str | None
    key_hash: str | None
    expires_at: float


def add(connection: Connection, record: SessionRecord) -> None:
    """Open a session."""
    connection.execute(insert(sessions).values(**record.__dict__))


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
