"""Versions of a user's summary. A version is never changed; the highest is the current one."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select

from popi.profiles.fields import Author, Forbidden, StoredClause
from popi.serving.interfaces import StoredSummary
from popi.serving.store import outbox, users
from popi.serving.store.database import page
from popi.serving.store.tables import summaries
from popi.serving.store.tables import users as users_table

MOST_AT_ONCE = 500
"""Users of one query."""
VERSIONS_KEPT, VERSIONS_BYTES = 100, 4 * 2**20
"""A user's newest versions, at least two, and their bytes; older ones are removed."""
TEXTS = ("text", "clauses", "forbidden")
"""Columns that make up a version's size."""


@dataclass(frozen=True)
class Version:
    """A summary as it stood from `created_at` (seconds since 1970) on."""

    version: int
    text: str
    clauses: tuple[StoredClause, ...]
    author: Author
    model: str | None
    created_at: float
    forbidden: tuple[Forbidden, ...] = ()


class VersionConflict(Exception):
    """The current version is another than the one expected; `current` is 0 where there is none."""

    def __init__(self, current: int) -> None:
        super().__init__(f"the current version is {current}")
        self.current = current


# Made once: to put a query together takes as long as to run it.
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
    """What the proxy puts in: one look-up in two indexes. Nothing while personalisation is paused."""
    row = connection.execute(_CURRENT_TEXT, {"of_tenant": tenant, "of_user": user_id}).first()
    return _shown(row)


def current_texts(connection: Connection, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], StoredSummary]:
    """The same of several users at once, named by tenant and id; those for whom there is nothing are left out."""
    if len(wanted) == 1:
        ((tenant, user_id),) = wanted
        found = current_text(connection, tenant, user_id)
        return {} if found is None else {(tenant, user_id): found}
    ids: dict[str, list[str]] = {}
    for tenant, user_id in wanted:
        ids.setdefault(tenant, []).append(user_id)
    shown = {}
    for tenant, of_tenant in ids.items():
        for at in range(0, len(of_tenant), MOST_AT_ONCE):
            some = {"of_tenant": tenant, "of_users": of_tenant[at : at + MOST_AT_ONCE]}
            for row in connection.execute(_CURRENT_TEXTS, some):
                if (summary := _shown(row)) is not None:
                    shown[tenant, row.user_id] = summary
    return shown


def _shown(row: Any) -> StoredSummary | None:
    return None if row is None or not row.text or row.paused else StoredSummary(row.text, row.version)


def current(connection: Connection, tenant: str, user_id: str) -> Version | None:
    """The current version."""
    found = versions(connection, tenant, user_id, limit=1)
    return found[0] if found else None


def versions(
    connection: Connection,
    tenant: str,
    user_id: str,
    limit: int = MOST_AT_ONCE,
    below: int = 2**62,
    most: int = VERSIONS_BYTES,
) -> list[Version]:
    """A user's versions below a number, newest first, up to `limit` and about `most` characters."""
    mine = (summaries.c.tenant == tenant, summaries.c.user_id == user_id, summaries.c.version < below)
    query = select(summaries).where(*mine).order_by(summaries.c.version.desc()).limit(limit)
    return [_version(row) for row in page(connection, query, *TEXTS, most=most)]


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
    """What any of the versions that are kept forbids."""
    query = select(summaries.c.forbidden).where(summaries.c.tenant == tenant, summaries.c.user_id == user_id).distinct()
    listed = [json.loads(text) for text in connection.execute(query).scalars()]
    return [Forbidden.model_validate(one) for each in listed for one in each]


def below(connection: Connection, tenant: str, user_id: str, version: int) -> Version | None:
    """The newest version that is older than this one, if any is kept."""
    found = versions(connection, tenant, user_id, limit=1, below=version)
    return found[0] if found else None


def find(connection: Connection, tenant: str, user_id: str, version: int) -> Version | None:
    """One version, if it is kept."""
    query = select(summaries).where(
        summaries.c.tenant == tenant, summaries.c.user_id == user_id, summaries.c.version == version
    )
    row = connection.execute(query).first()
    return None if row is None else _version(row)


def by_hand(connection: Connection, tenant: str, user_id: str) -> bool:
    """Whether a person wrote any of the versions that are kept."""
    mine = (summaries.c.tenant == tenant, summaries.c.user_id == user_id)
    query = select(summaries.c.version).where(*mine, summaries.c.author != "model").limit(1)
    return connection.execute(query).first() is not None


def count(connection: Connection, tenant: str, user_id: str) -> int:
    """How many versions of a user's summary are kept."""
    mine = (summaries.c.tenant == tenant, summaries.c.user_id == user_id)
    return int(connection.execute(select(func.count()).select_from(summaries).where(*mine)).scalar_one())


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
    """Write the next version; makes the user if need be.

    Args:
        connection: a transaction that writes.
        tenant: whose user.
        user_id: the user.
        text: the summary.
        clauses: the same in parts.
        author: who wrote it.
        now: seconds since 1970.
        expected: the current version as the author saw it, 0 for none; None writes whatever stands there.
        model: of a model's version, the inference model's name.
        forbidden: what it must not say again; None: what the current version has.
        restores: of an undo or redo, the version whose content this is (store.undo).
        keep: how many versions stay, and their bytes.

    Raises:
        VersionConflict: the current version is not `expected`.
    """
    users.lock(connection, tenant, user_id, now)
    mine = (summaries.c.tenant == tenant, summaries.c.user_id == user_id)
    latest = select(summaries.c.version, summaries.c.forbidden).where(*mine)
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
    outbox.add(connection, tenant, user_id, "summary.changed", now, version=written.version)
    length = func.length
    size = length(summaries.c.text) + length(summaries.c.clauses) + length(summaries.c.forbidden)
    sizes = select(summaries.c.version, size).where(*mine)
    total, kept = 0, 0
    for version, length in connection.execute(sizes.order_by(summaries.c.version.desc())).all():
        total, kept = total + length, kept + 1
        if kept > keep[0] or (kept > 2 and total > keep[1]):
            connection.execute(delete(summaries).where(*mine, summaries.c.version <= version))
            break
    return written
