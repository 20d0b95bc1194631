"""A user's signals. Each has an id: the caller's own, or one made of its content, so that an upload may be repeated."""

import hmac
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any
from unicodedata import normalize

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from popi.serving.store import jobs, settings, summaries, users
from popi.serving.store.database import page, upsert
from popi.serving.store.tables import deleted_signals, signals
from popi.serving.store.tables import users as users_table
from popi.signals.types import Signal

_SIGNAL: TypeAdapter[Signal] = TypeAdapter(Signal)
SECRET = "deleted_secret"
"""The secret of the hashes of ids of deleted signals."""
CHUNK = 500
"""Ids asked for in one query."""
AT_ONCE = 8
"""Signals held at once of those that are looked through: each may have megabytes."""


def signal_id(signal: Signal) -> str:
    """The signal's own id, or the start of its content's SHA-256: the same content is the same signal."""
    if signal.id:
        return signal.id
    content = json.dumps(signal.model_dump(mode="json", exclude={"id"}, exclude_none=True), sort_keys=True)
    return "sha256-" + sha256(content.encode()).hexdigest()[:32]


def add(
    connection: Connection,
    tenant: str,
    user_id: str,
    new: Sequence[Signal],
    now: float,
    debounce: "jobs.Debounce",
    key_id: str | None = None,
    bulk: bool = False,
) -> tuple[list[str], int]:
    """Add signals to a user, and call for a renewal where some were new (key_id, bulk: see jobs.request); makes the
    user if need be.

    Of two signals with one id the first is kept, and none that the user has deleted. Of a user who switched learning
    off none is.

    Returns:
        The ids of all signals given, in order, and how many were new; no ids where nothing may be learned.
    """
    position = users.lock(connection, tenant, user_id, now)
    if not users.learns(connection, tenant, user_id):
        return [], 0
    given = [signal_id(signal) for signal in new]
    known = _known(connection, tenant, user_id, given) | _deleted(connection, tenant, user_id, given)
    rows: list[dict[str, object]] = []
    for name, signal in zip(given, new, strict=True):
        if name in known:
            continue
        known.add(name)
        # ASCII: PostgreSQL takes no NUL in text, and escaped it is none.
        stored = json.dumps(signal.model_dump(mode="json", exclude_none=True) | {"id": name})
        rows.append(
            {
                "tenant": tenant,
                "user_id": user_id,
                "signal_id": name,
                "position": position + len(rows),
                "added_at": now,
                "signal": stored,
            }
        )
    if rows:
        connection.execute(insert(signals), rows)
        mine = (users_table.c.tenant == tenant, users_table.c.user_id == user_id)
        connection.execute(update(users_table).where(*mine).values(next_position=position + len(rows), expires_at=None))
        jobs.request(connection, tenant, user_id, now, debounce, key_id=key_id, bulk=bulk)
    return given, len(rows)


def delete_for_good(connection: Connection, tenant: str, user_id: str, name: str) -> None:
    """Delete a signal; one of the same id is not added again."""
    key = bytes.fromhex(settings.keep_first(connection, SECRET, secrets.token_hex(32)))
    where = (signals.c.tenant == tenant, signals.c.user_id == user_id, signals.c.signal_id == name)
    connection.execute(delete(signals).where(*where))
    row = {"tenant": tenant, "user_id": user_id, "hash": _hash(key, name)}
    connection.execute(upsert(connection, deleted_signals).values(**row).on_conflict_do_nothing())


def _deleted(connection: Connection, tenant: str, user_id: str, asked: Sequence[str]) -> set[str]:
    """Those of these ids that the user has deleted."""
    where = (deleted_signals.c.tenant == tenant, deleted_signals.c.user_id == user_id)
    gone = set(connection.execute(select(deleted_signals.c.hash).where(*where)).scalars())
    if not gone:
        return set()
    key = bytes.fromhex(settings.kept(connection, SECRET) or "")
    return {name for name in asked if _hash(key, name) in gone}


def _hash(key: bytes, name: str) -> str:
    return hmac.digest(key, name.encode("utf-8", "surrogatepass"), "sha256").hex()


def remove(connection: Connection, tenant: str, user_id: str, name: str) -> bool:
    """Take back one signal; says whether it was there.

    What was read of it goes with the next renewal, which reads all others; but not where a person has changed the
    summary, since all signals together might say again what they took out.
    """
    where = (signals.c.tenant == tenant, signals.c.user_id == user_id, signals.c.signal_id == name)
    position = connection.execute(select(signals.c.position).where(*where)).scalar()
    if position is None:
        return False
    connection.execute(delete(signals).where(*where))
    read = users.reading(connection, tenant, user_id).read
    if read is not None and position < read and not summaries.by_hand(connection, tenant, user_id):
        users.set_signals_read(connection, tenant, user_id, None)
    return True


def newest(connection: Connection, tenant: str, user_id: str, limit: int | None = None) -> list[Signal]:
    """A user's signals in the order in which they came in; where there are more than `limit`, the newest."""
    query = (
        select(signals.c.signal)
        .where(signals.c.tenant == tenant, signals.c.user_id == user_id)
        .order_by(signals.c.position.desc())
        .limit(limit)
    )
    return [_SIGNAL.validate_json(text) for text in connection.execute(query).scalars()][::-1]


def parsed(texts: Iterable[str]) -> list[Signal]:
    """Signals as they are stored."""
    return [_SIGNAL.validate_json(text) for text in texts]


def stored(connection: Connection, tenant: str, user_id: str, after: int = -1) -> list[Row[Any]]:
    """A page of signals behind a position, in order: `position`, and `signal` as JSON."""
    mine = (signals.c.tenant == tenant, signals.c.user_id == user_id, signals.c.position > after)
    query = select(signals.c.position, signals.c.signal).where(*mine).order_by(signals.c.position).limit(1000)
    return page(connection, query, "signal")


def listed(
    connection: Connection, tenant: str, user_id: str, limit: int, before: int | None = None, contains: str = ""
) -> list[tuple[int, Signal]]:
    """Up to `limit` signals with their positions, newest first.

    Args:
        connection: to read with.
        tenant: whose user.
        user_id: the user.
        limit: how many at most.
        before: a position: only those that came before it.
        contains: only those in one of whose texts this stands, in whatever case.
    """
    mine = [signals.c.tenant == tenant, signals.c.user_id == user_id]
    if before is not None:
        mine.append(signals.c.position < before)
    query = select(signals.c.position, signals.c.signal).where(*mine).order_by(signals.c.position.desc())
    wanted, found = _folded(contains), list[tuple[int, Signal]]()
    with connection.execute(query, execution_options={"yield_per": AT_ONCE}) as rows:
        for position, text in rows:
            # Looked for in Python: neither database folds the case of all scripts alike.
            if wanted and not any(wanted in _folded(one) for one in _texts(json.loads(text))):
                continue
            found.append((position, _SIGNAL.validate_json(text)))
            if len(found) == limit:
                break
    return found


def _folded(text: str) -> str:
    return normalize("NFKC", text).casefold()


def _texts(value: Any, key: str = "") -> Iterator[str]:
    """What people wrote in a signal's JSON."""
    if isinstance(value, str) and key not in ("id", "type", "time", "role"):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def size(connection: Connection, tenant: str, user_id: str) -> tuple[int, int]:
    """How many signals a user has, and their bytes."""
    total = func.coalesce(func.sum(func.length(signals.c.signal)), 0)
    query = select(func.count(), total).where(signals.c.tenant == tenant, signals.c.user_id == user_id)
    count, stored_bytes = connection.execute(query).one()
    return int(count), int(stored_bytes)


def named(connection: Connection, tenant: str, user_id: str, ids: Sequence[str]) -> list[Signal]:
    """The signals of these ids that are there."""
    mine = (signals.c.tenant == tenant, signals.c.user_id == user_id)
    found: list[str] = []
    for start in range(0, len(ids), CHUNK):
        query = select(signals.c.signal).where(*mine, signals.c.signal_id.in_(ids[start : start + CHUNK]))
        found += connection.execute(query).scalars()
    return [_SIGNAL.validate_json(text) for text in found]


def since(
    connection: Connection, tenant: str, user_id: str, position: int, limit: int, characters: int
) -> tuple[list[Signal], int]:
    """Those from a position on, in order, the newest that are at most `limit` and together at most `characters` long
    (as JSON); and the position that comes next. One that is longer by itself is left out.
    """
    query = (
        select(signals.c.signal, signals.c.position)
        .where(signals.c.tenant == tenant, signals.c.user_id == user_id, signals.c.position >= position)
        .order_by(signals.c.position.desc())
        .limit(limit)
    )
    found, upto, longest = list[Signal](), position, characters
    with connection.execute(query, execution_options={"yield_per": AT_ONCE}) as rows:
        for text, at in rows:
            upto = max(upto, at + 1)
            if len(text) > longest:
                continue
            characters -= len(text)
            if characters < 0:
                break
            found.append(_SIGNAL.validate_json(text))
    return found[::-1], upto


def _known(connection: Connection, tenant: str, user_id: str, asked: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(asked), CHUNK):
        query = select(signals.c.signal_id).where(
            signals.c.tenant == tenant,
            signals.c.user_id == user_id,
            signals.c.signal_id.in_(asked[start : start + CHUNK]),
        )
        found.update(connection.execute(query).scalars())
    return found
