"""Keys and tenants. Of a key the store holds its SHA-256 alone: 256 random bits need no slow hash."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select, tuple_, update

from popi.errors import DataError
from popi.profiles.fields import Scope
from popi.serving.store.database import upsert
from popi.serving.store.tables import keys, tenants


@dataclass(frozen=True)
class KeyRecord:
    """A key as the store knows it; times are seconds since 1970."""

    key_id: str
    key_hash: str
    scope: Scope
    tenant: str
    user_id: str | None
    created_at: float
    revoked_at: float | None = None


def ensure_tenant(connection: Connection, tenant: str, now: float) -> bool:
    """Make a tenant; says whether it is new."""
    once = upsert(connection, tenants).values(tenant=tenant, created_at=now).on_conflict_do_nothing()
    # Not by the count of rows: PostgreSQL's driver has none for such an INSERT.
    return connection.execute(once.returning(tenants.c.tenant)).first() is not None


def tenant_exists(connection: Connection, tenant: str) -> bool:
    """Whether there is this tenant."""
    return connection.execute(select(tenants.c.tenant).where(tenants.c.tenant == tenant)).first() is not None


def add(connection: Connection, record: KeyRecord) -> bool:
    """Store a key; says whether its tenant is new."""
    new = ensure_tenant(connection, record.tenant, record.created_at)
    connection.execute(keys.insert().values(**record.__dict__))
    return new


def add_first_admin(connection: Connection, record: KeyRecord) -> bool:
    """Store an admin key where there is no admin key yet; says whether it was stored."""
    # The row of the tenant is locked first, so that of two processes that start together one adds a key.
    ensure_tenant(connection, record.tenant, record.created_at)
    connection.execute(update(tenants).where(tenants.c.tenant == record.tenant).values(tenant=record.tenant))
    admins = select(func.count()).select_from(keys).where(keys.c.scope == "admin", keys.c.revoked_at.is_(None))
    if connection.execute(admins).scalar_one():
        return False
    add(connection, record)
    return True


def find(connection: Connection, key_id: str) -> KeyRecord | None:
    """A key by its public id."""
    row = connection.execute(select(keys).where(keys.c.key_id == key_id)).first()
    return None if row is None else KeyRecord(**row._mapping)


def listed(
    connection: Connection, tenant: str | None, after: str | None = None, limit: int | None = None
) -> list[KeyRecord]:
    """The keys of a tenant, or (None) of all, oldest first; those behind the key `after`, if there is one."""
    query = select(keys).order_by(keys.c.created_at, keys.c.key_id).limit(limit)
    if tenant is not None:
        query = query.where(keys.c.tenant == tenant)
    if after is not None and (last := find(connection, after)) is not None:
        query = query.where(tuple_(keys.c.created_at, keys.c.key_id) > tuple_(last.created_at, last.key_id))
    return [KeyRecord(**row._mapping) for row in connection.execute(query)]


def tenants_listed(connection: Connection, after: str = "", limit: int | None = None) -> list[str]:
    """Names of tenants in order, those behind `after`."""
    query = select(tenants.c.tenant).where(tenants.c.tenant > after).order_by(tenants.c.tenant).limit(limit)
    return list(connection.execute(query).scalars())


def revoke(connection: Connection, key_id: str, now: float) -> KeyRecord:
    """Mark a key as revoked; one that is already stays as it was.

    Raises:
        DataError: there is no such key.
    """
    connection.execute(update(keys).where(keys.c.key_id == key_id, keys.c.revoked_at.is_(None)).values(revoked_at=now))
    found = find(connection, key_id)
    if found is None:
        raise DataError(f"there is no key {key_id!r}; `popi keys list` or GET /keys shows their ids")
    return found
