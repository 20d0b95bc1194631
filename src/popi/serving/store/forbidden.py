"""What a user has forbidden: hashes in the summary versions, and the user's own words in a separate table."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, select

from popi.profiles.fields import Forbidden
from popi.profiles.forbidden import Bans, in_words
from popi.serving.store import settings, summaries
from popi.serving.store.database import upsert
from popi.serving.store.tables import forbidden_words

SECRET = "forbidden_secret"
"""Name of the setting with the secret for these hashes."""


@dataclass(frozen=True)
class Rules:
    """What a summary must not say.

    Attributes:
        bans: all forbidden statements, matched by their words.
        private: the bans whose words must not be sent to any provider.
        disclosed: the words of bans that may be sent to the model that writes summaries.
        words: all stored words.
    """

    bans: Bans
    private: Bans
    disclosed: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


NO_RULES = Rules(Bans(()), Bans(()))


def secret(connection: Connection) -> bytes:
    """The secret; empty until something has been forbidden."""
    return bytes.fromhex(settings.get(connection, SECRET) or "")


def ensure_secret(connection: Connection) -> bytes:
    """The secret, created if necessary; needs a write transaction."""
    return secret(connection) or bytes.fromhex(settings.set_default(connection, SECRET, secrets.token_hex(32)))


def rules(connection: Connection, tenant: str, user_id: str, forbidden: Iterable[Forbidden]) -> Rules:
    """The rules from a version's forbidden statements."""
    entries = list(forbidden)
    if not entries:
        return NO_RULES
    key, texts = secret(connection), in_words(entries, words(connection, tenant, user_id))
    disclosed = tuple(texts[one.id] for one in entries if one.send_to_model and one.id in texts)
    private = Bans((one for one in entries if not one.send_to_model), key)
    return Rules(Bans(entries, key), private, disclosed, tuple(texts.values()))


def words(connection: Connection, tenant: str, user_id: str) -> dict[str, str]:
    """The stored words, by hash."""
    rows = connection.execute(
        select(forbidden_words.c.hash, forbidden_words.c.words).where(*_mine(tenant, user_id))
    ).all()
    return {row.hash: row.words for row in rows}


def store_words(connection: Connection, tenant: str, user_id: str, texts: Mapping[str, str]) -> None:
    """Store words by their hash, and delete those that no stored version refers to any more."""
    for hashed, text in texts.items():
        connection.execute(
            upsert(connection, forbidden_words)
            .values(tenant=tenant, user_id=user_id, hash=hashed, words=text)
            .on_conflict_do_update(index_elements=["tenant", "user_id", "hash"], set_={"words": text})
        )
    stored = words(connection, tenant, user_id)
    if stored:
        used = {one.hash for one in summaries.all_forbidden(connection, tenant, user_id)}
        delete_words(connection, tenant, user_id, stored.keys() - used)


def delete_words(connection: Connection, tenant: str, user_id: str, hashes: Iterable[str]) -> None:
    """Delete words by hash; the statements stay forbidden."""
    for hashed in hashes:
        connection.execute(delete(forbidden_words).where(*_mine(tenant, user_id), forbidden_words.c.hash == hashed))


def _mine(tenant: str, user_id: str) -> tuple[ColumnElement[bool], ...]:
    return forbidden_words.c.tenant == tenant, forbidden_words.c.user_id == user_id
