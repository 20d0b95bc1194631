"""Keys and tenants. The store holds only a key's SHA-256: 256 random bits need no slow hash."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select, tuple_, update

from popi.errors import DataError
from popi.profiles.fields import Scope
from popi.serving.store import changes
from popi.serving.store.database import upsert
from popi.serving.store.tables import keys, tenants


@dataclass(frozen=True)
class KeyRecord:
    """A key as stored; times are seconds since 1970."""

    key_id: str
    key_hash: str
    scope: Scope
    tenant: str
    user_id: str | None
    created_at: float
    revoked_at: float | None = None


def ensure_tenant(connection: Connection, tenant: str, now: float) -> bool:
    """Create a tenant if it does not exist; returns whether it is new."""
    once = upsert(connection, tenants).values(tenant=tenant, created_at=now).on_conflict_do_nothing()
    # PostgreSQL's driver reports no row count for such an INSERT.
    return connection.execute(once.returning(tenants.c.tenant)).first() is not None


def tenant_exists(connection: Connection, tenant: str) -> bool:
    """Whether the tenant exists."""
    return connection.execute(select(tenants.c.tenant).where(tenants.c.tenant == tenant)).first() is not None


def add(connection: Connection, record: KeyRecord) -> bool:
    """Store a key; returns whether its tenant is new."""
    new = ensure_tenant(connection, record.tenant, record.created_at)
    connection.execute(keys.insert().values(**record.__dict__))
    return new


def add_first_admin(connection: Connection, record: KeyRecord) -> bool:
    """Store an admin key unless there is one already; returns whether it was stored."""
    # Lock the tenant's row first, so that only one of two processes that start together adds a key.
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


def list_keys(
    connection: Connection, tenant: str | None, after: str | None = None, limit: int | None = None
) -> list[KeyRecord]:
    """The keys of a tenant, or of all if `None`, oldest first, starting after the key `after`."""
    query = select(keys).order_by(keys.c.created_at, keys.c.key_id).limit(limit)
    if tenant is not None:
        query = query.where(keys.c.tenant == tenant)
    if after is not None and (last := find(connection, after)) is not None:
        query = query.where(tuple_(keys.c.created_at, keys.c.key_id) > tuple_(last.created_at, last.key_id))
    return [KeyRecord(**row._mapping) for row in connection.execute(query)]


def list_tenants(connection: Connection, after: str = "", limit: int | None = None) -> list[str]:
    """Tenant names in order, starting after `after`."""
    query = select(tenants.c.tenant).where(tenants.c.tenant > after).order_by(tenants.c.tenant).limit(limit)
    return list(connection.execute(query).scalars())


def revoke(connection: Connection, key_id: str, now: float) -> KeyRecord:
    """Revoke a key. Revoking it again changes nothing.

    Raises:
        DataError: there is no such key.
    """
    connection.execute(update(keys).where(keys.c.key_id == key_id, keys.c.revoked_at.is_(None)).values(revoked_at=now))
    changes.add_keys(connection, [key_id])
    record = find(connection, key_id)
    if record is None:
        raise DataError(f"there is no key {key_id!r}; list key ids with `popi keys list` or GET /keys")
    return record
