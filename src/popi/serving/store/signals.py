"""A user's signals. Each has an id, from the caller or derived from its content, so that uploads can be repeated."""

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
"""Name of the setting with the secret for hashes of deleted signals' ids."""
CHUNK = 500
"""Ids per query."""
AT_ONCE = 8
"""Signals in memory at once during a search: each may have megabytes."""


def signal_id(signal: Signal) -> str:
    """The signal's own id, or the start of its content's SHA-256: equal content makes it the same signal."""
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
    """Add signals to a user, creating the user if necessary, and request a renewal if any were new (`key_id`, `bulk`:
    see jobs.request).

    A signal is skipped if its id is already stored or was deleted by the user. If the user switched learning off,
    nothing is stored.

    Returns:
        The ids of all given signals, in order, and how many were new; no ids if learning is off.
    """
    position = users.lock(connection, tenant, user_id, now)
    if not users.learns(connection, tenant, user_id):
        return [], 0
    ids = [signal_id(signal) for signal in new]
    known = _known(connection, tenant, user_id, ids) | _deleted(connection, tenant, user_id, ids)
    rows: list[dict[str, object]] = []
    for name, signal in zip(ids, new, strict=True):
        if name in known:
            continue
        known.add(name)
        # ASCII escapes NUL, which PostgreSQL's text doesn't allow.
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
        is_user = (users_table.c.tenant == tenant, users_table.c.user_id == user_id)
        connection.execute(
            update(users_table).where(*is_user).values(next_position=position + len(rows), expires_at=None)
        )
        jobs.request(connection, tenant, user_id, now, debounce, key_id=key_id, bulk=bulk)
    return ids, len(rows)


def delete_for_good(connection: Connection, tenant: str, user_id: str, name: str) -> None:
    """Delete a signal, and remember its id so that it is not added again."""
    key = bytes.fromhex(settings.set_default(connection, SECRET, secrets.token_hex(32)))
    where = (signals.c.tenant == tenant, signals.c.user_id == user_id, signals.c.signal_id == name)
    connection.execute(delete(signals).where(*where))
    row = {"tenant": tenant, "user_id": user_id, "hash": _hash(key, name)}
    connection.execute(upsert(connection, deleted_signals).values(**row).on_conflict_do_nothing())


def _deleted(connection: Connection, tenant: str, user_id: str, ids: Sequence[str]) -> set[str]:
    """The ids among these that the user has deleted."""
    where = (deleted_signals.c.tenant == tenant, deleted_signals.c.user_id == user_id)
    hashes = set(connection.execute(select(deleted_signals.c.hash).where(*where)).scalars())
    if not hashes:
        return set()
    key = bytes.fromhex(settings.get(connection, SECRET) or "")
    return {name for name in ids if _hash(key, name) in hashes}


def _hash(key: bytes, name: str) -> str:
    return hmac.digest(key, name.encode("utf-8", "surrogatepass"), "sha256").hex()


def remove(connection: Connection, tenant: str, user_id: str, name: str) -> bool:
    """Withdraw one signal; returns whether it existed.

    If the summary has read it, the next renewal starts over from all other signals. Not so if a person has edited the
    summary: rereading all signals might bring back what they removed.
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
    """A user's newest signals, at most `limit`, in order of arrival."""
    query = (
        select(signals.c.signal)
        .where(signals.c.tenant == tenant, signals.c.user_id == user_id)
        .order_by(signals.c.position.desc())
        .limit(limit)
    )
    return [_SIGNAL.validate_json(text) for text in connection.execute(query).scalars()][::-1]


def parsed(texts: Iterable[str]) -> list[Signal]:
    """Parse signals from their stored form."""
    return [_SIGNAL.validate_json(text) for text in texts]


def page_after(connection: Connection, tenant: str, user_id: str, after: int = -1) -> list[Row[Any]]:
    """A page of signals after a position, in order: `position`, and `signal` as JSON."""
    is_newer = (signals.c.tenant == tenant, signals.c.user_id == user_id, signals.c.position > after)
    query = select(signals.c.position, signals.c.signal).where(*is_newer).order_by(signals.c.position).limit(1000)
    return page(connection, query, "signal")


def search(
    connection: Connection, tenant: str, user_id: str, limit: int, before: int | None = None, contains: str = ""
) -> list[tuple[int, Signal]]:
    """Up to `limit` signals with their positions, newest first.

    Args:
        connection: to read with.
        tenant: the user's tenant.
        user_id: the user.
        limit: maximum number of signals.
        before: only signals before this position.
        contains: only signals with a text that contains this, ignoring case.
    """
    conditions = [signals.c.tenant == tenant, signals.c.user_id == user_id]
    if before is not None:
        conditions.append(signals.c.position < before)
    query = select(signals.c.position, signals.c.signal).where(*conditions).order_by(signals.c.position.desc())
    needle, matches = _folded(contains), list[tuple[int, Signal]]()
    with connection.execute(query, execution_options={"yield_per": AT_ONCE}) as rows:
        for position, text in rows:
            # Search in Python: neither database folds case correctly for all scripts.
            if needle and not any(needle in _folded(one) for one in _texts(json.loads(text))):
                continue
            matches.append((position, _SIGNAL.validate_json(text)))
            if len(matches) == limit:
                break
    return matches


def _folded(text: str) -> str:
    return normalize("NFKC", text).casefold()


def _texts(value: Any, key: str = "") -> Iterator[str]:
    """Yield the texts that people wrote from a signal's JSON."""
    if isinstance(value, str) and key not in ("id", "type", "time", "role"):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def size(connection: Connection, tenant: str, user_id: str) -> tuple[int, int]:
    """The number of a user's signals, and their size in bytes."""
    total = func.coalesce(func.sum(func.length(signals.c.signal)), 0)
    query = select(func.count(), total).where(signals.c.tenant == tenant, signals.c.user_id == user_id)
    count, stored_bytes = connection.execute(query).one()
    return int(count), int(stored_bytes)


def named(connection: Connection, tenant: str, user_id: str, ids: Sequence[str]) -> list[Signal]:
    """The signals with these ids, as far as they exist."""
    is_user = (signals.c.tenant == tenant, signals.c.user_id == user_id)
    texts: list[str] = []
    for start in range(0, len(ids), CHUNK):
        query = select(signals.c.signal).where(*is_user, signals.c.signal_id.in_(ids[start : start + CHUNK]))
        texts += connection.execute(query).scalars()
    return [_SIGNAL.validate_json(text) for text in texts]


def since(
    connection: Connection, tenant: str, user_id: str, position: int, limit: int, characters: int
) -> tuple[list[Signal], int]:
    """The newest signals from a position on, in order: at most `limit`, with at most `characters` in total (as JSON);
    and the next free position. A single signal longer than that is skipped.
    """
    query = (
        select(signals.c.signal, signals.c.position)
        .where(signals.c.tenant == tenant, signals.c.user_id == user_id, signals.c.position >= position)
        .order_by(signals.c.position.desc())
        .limit(limit)
    )
    newest_first, next_position, longest = list[Signal](), position, characters
    with connection.execute(query, execution_options={"yield_per": AT_ONCE}) as rows:
        for text, at in rows:
            next_position = max(next_position, at + 1)
            if len(text) > longest:
                continue
            characters -= len(text)
            if characters < 0:
                break
            newest_first.append(_SIGNAL.validate_json(text))
    return newest_first[::-1], next_position


def _known(connection: Connection, tenant: str, user_id: str, ids: Sequence[str]) -> set[str]:
    known: set[str] = set()
    for start in range(0, len(ids), CHUNK):
        query = select(signals.c.signal_id).where(
            signals.c.tenant == tenant,
            signals.c.user_id == user_id,
            signals.c.signal_id.in_(ids[start : start + CHUNK]),
        )
        known.update(connection.execute(query).scalars())
    return known
