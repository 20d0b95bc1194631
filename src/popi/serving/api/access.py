"""Keys, tenants and the audit log over HTTP. Only admin keys may use these routes."""

import time
from typing import Annotated, Any

from fastapi import APIRouter
from sqlalchemy import Row

from popi.errors import DataError
from popi.profiles.answers import AuditEntry, KeyAnswer, NewKeyAnswer, Page, moment
from popi.profiles.fields import Tenant
from popi.profiles.requests import NewKey
from popi.profiles.user_id import normal_user_id
from popi.serving.api.requests import AnyCall, body_of, route
from popi.serving.api.routes import Limit, Text, split_page
from popi.serving.keys import log_revoked, new_key
from popi.serving.proxy.refusals import Refusal
from popi.serving.store import audit, keys

router = APIRouter()


@router.post("/keys", status_code=201, **route(scopes=("admin",), body=NewKey))
async def make_key(call: AnyCall, body: Annotated[NewKey, body_of(NewKey)]) -> NewKeyAnswer:
    """Create a key, and its tenant if that is new. Only this response shows the key's text."""
    key, record = new_key(body.scope, body.tenant or call.tenant, body.user_id, time.time())
    await call.profiles.store.write(keys.add, record)
    return NewKeyAnswer(key=key, **_key_answer(record).model_dump())


@router.get("/keys", **route(scopes=("admin",), query="tenant after limit"))
async def list_keys(
    call: AnyCall, tenant: Tenant | None = None, after: Text = "", limit: Limit = 100
) -> Page[KeyAnswer]:
    """List the keys of a tenant or of all tenants, oldest first, paginated, including revoked ones."""
    rows = await call.profiles.store.read(keys.list_keys, tenant, after or None, limit + 1)
    page, last = split_page(rows, limit)
    return Page(items=[_key_answer(one) for one in page], next=last and last.key_id)


@router.delete("/keys/{key_id}", **route(404, scopes=("admin",)))
async def revoke_key(call: AnyCall, key_id: str) -> KeyAnswer:
    """Revoke a key. When the response arrives, no process on the store accepts it any more."""
    store = call.profiles.store
    try:
        record = await store.write(keys.revoke, key_id, time.time())
    except DataError:
        raise Refusal(404, "no_key", "there is no key with this id; GET /keys lists all keys") from None
    call.services.keys.revoked(key_id)
    log_revoked(record)
    await call.profiles.everyone()
    return _key_answer(record)


@router.get("/tenants", **route(scopes=("admin",), query="after limit"))
async def list_tenants(call: AnyCall, after: Text = "", limit: Limit = 100) -> Page[str]:
    """List the names of all tenants, sorted and paginated."""
    page, last = split_page(await call.profiles.store.read(keys.list_tenants, after, limit + 1), limit)
    return Page(items=page, next=last)


@router.get("/audit", **route(scopes=("admin",), query="tenant user after limit"))
async def list_audit(
    call: AnyCall, tenant: Tenant | None = None, user: Text = "", after: Text = "", limit: Limit = 100
) -> Page[AuditEntry]:
    """List who read or changed which user's data, newest first, paginated: for all tenants, one tenant or one user,
    even an erased one."""
    if user and tenant is None:
        raise Refusal(400, "query", "a query for a user must also name the tenant")
    user_id = checked_id(user) if user else None
    rows = await call.profiles.store.read(audit.list_entries, tenant, user_id, after or None, limit + 1)
    page, last = split_page(list(rows), limit)
    return Page(items=[audit_entry(one) for one in page], next=last and last.entry)


def checked_id(user: str) -> str:
    """Normalise a user id from a query.

    Raises:
        Refusal: it is not a valid user id.
    """
    try:
        return normal_user_id(user)
    except DataError as error:
        raise Refusal(400, "user_id", str(error)) from None


def audit_entry(row: Row[Any]) -> AuditEntry:
    """A row of the audit log as an API response."""
    values = dict(row._mapping) | {"id": row.entry, "channel": row.way}
    return AuditEntry.model_validate(values | {"at": moment(row.at), "user_hash": row.user_hash or None})


def _key_answer(record: keys.KeyRecord) -> KeyAnswer:
    revoked = None if record.revoked_at is None else moment(record.revoked_at)
    return KeyAnswer.model_validate(record.__dict__ | {"created_at": moment(record.created_at), "revoked_at": revoked})
