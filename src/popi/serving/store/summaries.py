"""Versions of a user's summary. A version is never changed; the highest is the current one."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select

from popi.profiles.fields import Author, Forbidden, StoredClause
from popi.serving.interfaces import StoredSummary
from popi.serving.store import changes, outbox, users
from popi.serving.store.database import page
from popi.serving.store.tables import summaries
from popi.serving.store.tables import users as users_table

USERS_PER_QUERY = 500
"""Users per query."""
VERSIONS_KEPT, VERSIONS_BYTES = 100, 4 * 2**20
"""Maximum number and bytes of a user's versions. Older ones are removed; two always stay."""
TEXTS = ("text", "clauses", "forbidden")
"""Columns that make up a version's size."""


@dataclass(frozen=True)
class Version:
    """A summary that became current at `created_at` (seconds since 1970)."""

    version: int
    text: str
    clauses: tuple[StoredClause, ...]
    author: Author
    model: str | None
    created_at: float
    forbidden: tuple[Forbidden, ...] = ()


class VersionConflict(Exception):
    """The current version is not the expected one; `current` is 0 if there is no summary."""

    def __init__(self, current: int) -> None:
        super().__init__(f"the current version is {current}")
        self.current = current


# Built once: building a query takes as long as running it.
_TEXTS = select(users_table.c.user_id, summaries.c.text, summaries.c.version, users_table.c.paused).join(
    users_table, (users_table.c.tenant == summaries.c.tenant) & (users_table.c.user_id == summaries.c.user_id)
)
_CURRENT_TEXT = (
    _TEXTS.where(summaries.c.tenant == bindparam("of_tenant"), summaries.c.user_id == bindparam("of_user"))
    .order_by(summaries.c.version.desc())
    .limit(1)
)
_others = summaries.alias()
_CURRENT_TEXTS = _TEXTS.where(
    users_table.c.tenant == bindparam("of_tenant"),
    users_table.c.user_id.in_(bindparam("of_users", expanding=True)),
    summaries.c.version
    == select(func.max(_others.c.version))
    .where(_others.c.tenant == users_table.c.tenant, _others.c.user_id == users_table.c.user_id)
    .scalar_subquery(),
)


def current_text(connection: Connection, tenant: str, user_id: str) -> StoredSummary | None:
    """The text that the proxy inserts, from one lookup in two indexes. `None` while personalisation is paused."""
    row = connection.execute(_CURRENT_TEXT, {"of_tenant": tenant, "of_user": user_id}).first()
    return _shown(row)


def current_texts(connection: Connection, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], StoredSummary]:
    """`current_text` of several users, by tenant and id; users without one are omitted."""
    if len(wanted) == 1:
        ((tenant, user_id),) = wanted
        text = current_text(connection, tenant, user_id)
        return {} if text is None else {(tenant, user_id): text}
    ids: dict[str, list[str]] = {}
    for tenant, user_id in wanted:
        ids.setdefault(tenant, []).append(user_id)
    shown = {}
    for tenant, of_tenant in ids.items():
        for at in range(0, len(of_tenant), USERS_PER_QUERY):
            parameters = {"of_tenant": tenant, "of_users": of_tenant[at : at + USERS_PER_QUERY]}
            for row in connection.execute(_CURRENT_TEXTS, parameters):
                if (summary := _shown(row)) is not None:
                    shown[tenant, row.user_id] = summary
    return shown


def _shown(row: Any) -> StoredSummary | None:
    return None if row is None or not row.text or row.paused else StoredSummary(row.text, row.version)


def current(connection: Connection, tenant: str, user_id: str) -> Version | None:
    """The current version."""
    newest = versions(connection, tenant, user_id, limit=1)
    return newest[0] if newest else None


def versions(
    connection: Connection,
    tenant: str,
    user_id: str,
    limit: int = USERS_PER_QUERY,
    below: int = 2**62,
    max_characters: int = VERSIONS_BYTES,
) -> list[Version]:
    """A user's versions below a number, newest first, up to `limit` and about `max_characters`."""
    is_older = (summaries.c.tenant == tenant, summaries.c.user_id == user_id, summaries.c.version < below)
    query = select(summaries).where(*is_older).order_by(summaries.c.version.desc()).limit(limit)
    return [_version(row) for row in page(connection, query, *TEXTS, max_characters=max_characters)]


def _version(row: Row[Any]) -> Version:
    return Version(
        row.version,
        row.text,
        tuple(StoredClause.model_validate(clause) for clause in json.loads(row.clauses)),
        row.author,
        row.model,
        row.created_at,
        tuple(Forbidden.model_validate(one) for one in json.loads(row.forbidden)),
    )


def all_forbidden(connection: Connection, tenant: str, user_id: str) -> list[Forbidden]:
    """Everything forbidden by any stored version."""
    query = select(summaries.c.forbidden).where(summaries.c.tenant == tenant, summaries.c.user_id == user_id).distinct()
    lists = [json.loads(text) for text in connection.execute(query).scalars()]
    return [Forbidden.model_validate(one) for entries in lists for one in entries]


def below(connection: Connection, tenant: str, user_id: str, version: int) -> Version | None:
    """The newest stored version below this number, if any."""
    older = versions(connection, tenant, user_id, limit=1, below=version)
    return older[0] if older else None


def find(connection: Connection, tenant: str, user_id: str, version: int) -> Version | None:
    """One version, if it is stored."""
    query = select(summaries).where(
        summaries.c.tenant == tenant, summaries.c.user_id == user_id, summaries.c.version == version
    )
    row = connection.execute(query).first()
    return None if row is None else _version(row)


def by_hand(connection: Connection, tenant: str, user_id: str) -> bool:
    """Whether any stored version was written by a person."""
    is_user = (summaries.c.tenant == tenant, summaries.c.user_id == user_id)
    query = select(summaries.c.version).where(*is_user, summaries.c.author != "model").limit(1)
    return connection.execute(query).first() is not None


def count(connection: Connection, tenant: str, user_id: str) -> int:
    """The number of stored versions of a user's summary."""
    is_user = (summaries.c.tenant == tenant, summaries.c.user_id == user_id)
    return int(connection.execute(select(func.count()).select_from(summaries).where(*is_user)).scalar_one())


def put(
    connection: Connection,
    tenant: str,
    user_id: str,
    text: str,
    clauses: Sequence[StoredClause],
    author: Author,
    now: float,
    *,
    expected: int | None,
    model: str | None = None,
    forbidden: Sequence[Forbidden] | None = None,
    restores: int | None = None,
    keep: tuple[int, int] = (VERSIONS_KEPT, VERSIONS_BYTES),
) -> Version:
    """Write the next version, creating the user if necessary.

    Args:
        connection: a write transaction.
        tenant: the user's tenant.
        user_id: the user.
        text: the summary.
        clauses: its parts.
        author: who wrote it.
        now: seconds since 1970.
        expected: the current version as the author saw it, 0 for none; `None` writes unconditionally.
        model: the inference model's name, if a model wrote it.
        forbidden: statements it must not contain; `None` copies the current version's.
        restores: for an undo or redo, the version whose content this is (store.undo).
        keep: maximum number of stored versions, and of their bytes.

    Raises:
        VersionConflict: the current version is not `expected`.
    """
    users.lock(connection, tenant, user_id, now)
    is_user = (summaries.c.tenant == tenant, summaries.c.user_id == user_id)
    latest = select(summaries.c.version, summaries.c.forbidden).where(*is_user)
    row = connection.execute(latest.order_by(summaries.c.version.desc()).limit(1)).first()
    before = row.version if row is not None else 0
    if expected is not None and before != expected:
        raise VersionConflict(before)
    if forbidden is None:
        forbidden = [Forbidden.model_validate(one) for one in json.loads(row.forbidden)] if row is not None else []
    written = Version(before + 1, text, tuple(clauses), author, model, now, tuple(forbidden))
    connection.execute(
        insert(summaries).values(
            tenant=tenant,
            user_id=user_id,
            version=written.version,
            text=text,
            clauses=json.dumps([clause.model_dump(mode="json") for clause in clauses]),
            author=author,
            model=model,
            created_at=now,
            forbidden=json.dumps([one.model_dump(mode="json", exclude_defaults=True) for one in forbidden]),
            restores=restores,
        )
    )
    changes.add_user(connection, tenant, user_id)
    outbox.add(connection, tenant, user_id, "summary.changed", now, version=written.version)
    length = func.length
    size = length(summaries.c.text) + length(summaries.c.clauses) + length(summaries.c.forbidden)
    sizes = select(summaries.c.version, size).where(*is_user)
    total = 0
    rows = connection.execute(sizes.order_by(summaries.c.version.desc())).all()
    for number, (version, length) in enumerate(rows, start=1):
        total += length
        if number > keep[0] or (number > 2 and total > keep[1]):
            connection.execute(delete(summaries).where(*is_user, summaries.c.version <= version))
            break
    return written
