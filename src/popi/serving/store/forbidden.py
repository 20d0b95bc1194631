"""What a user has forbidden: hashes within the versions of the summary, their own words in a table apart."""

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
"""The secret of the hashes of what users forbade."""


@dataclass(frozen=True)
class Rules:
    """What a summary must not say.

    Attributes:
        bans: all that is forbidden, in the same words.
        private: those of them that no provider may be sent.
        told: in words, those that the model which writes summaries may be told.
        words: all whose words are kept.
    """

    bans: Bans
    private: Bans
    told: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


NO_RULES = Rules(Bans(()), Bans(()))


def secret(connection: Connection) -> bytes:
    """The secret; none where nobody has forbidden anything yet."""
    return bytes.fromhex(settings.kept(connection, SECRET) or "")


def drawn_secret(connection: Connection) -> bytes:
    """The secret, drawn if need be; in a transaction that writes."""
    return secret(connection) or bytes.fromhex(settings.keep_first(connection, SECRET, secrets.token_hex(32)))


def rules(connection: Connection, tenant: str, user_id: str, forbidden: Iterable[Forbidden]) -> Rules:
    """What is forbidden in a version."""
    listed = list(forbidden)
    if not listed:
        return NO_RULES
    key, said = secret(connection), in_words(listed, words(connection, tenant, user_id))
    told = tuple(said[one.id] for one in listed if one.tell and one.id in said)
    private = Bans((one for one in listed if not one.tell), key)
    return Rules(Bans(listed, key), private, told, tuple(said.values()))


def words(connection: Connection, tenant: str, user_id: str) -> dict[str, str]:
    """The words that are kept, by hash."""
    rows = connection.execute(
        select(forbidden_words.c.hash, forbidden_words.c.words).where(*_mine(tenant, user_id))
    ).all()
    return {row.hash: row.words for row in rows}


def keep(connection: Connection, tenant: str, user_id: str, said: Mapping[str, str]) -> None:
    """Keep words by their hash; those that no kept version of the summary refers to any more go."""
    for hashed, text in said.items():
        connection.execute(
            upsert(connection, forbidden_words)
            .values(tenant=tenant, user_id=user_id, hash=hashed, words=text)
            .on_conflict_do_update(index_elements=["tenant", "user_id", "hash"], set_={"words": text})
        )
    kept = words(connection, tenant, user_id)
    if kept:
        used = {one.hash for one in summaries.all_forbidden(connection, tenant, user_id)}
        drop(connection, tenant, user_id, kept.keys() - used)


def drop(connection: Connection, tenant: str, user_id: str, hashes: Iterable[str]) -> None:
    """Delete words; what has these hashes stays forbidden."""
    for hashed in hashes:
        connection.execute(delete(forbidden_words).where(*_mine(tenant, user_id), forbidden_words.c.hash == hashed))


def _mine(tenant: str, user_id: str) -> tuple[ColumnElement[bool], ...]:
    return forbidden_words.c.tenant == tenant, forbidden_words.c.user_id == user_id
