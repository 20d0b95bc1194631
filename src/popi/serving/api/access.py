"""Keys, tenants and the audit log over HTTP, for admin keys: no other key can make, see or revoke any."""

import time
from typing import Annotated, Any

from fastapi import APIRouter
from sqlalchemy import Row

from popi.errors import DataError
from popi.profiles.answers import AuditEntry, KeyAnswer, NewKeyAnswer, Page, moment
from popi.profiles.fields import Tenant
from popi.profiles.requests import NewKey
from popi.profiles.user_id import normal_user_id
from popi.serving.api.requests import Anybody, body_of, route
from popi.serving.api.routes import Limit, Text, paged
from popi.serving.keys import log_revoked, new_key
from popi.serving.proxy.refusals import Refusal
from popi.serving.store import audit, keys

router = APIRouter()


@router.post("/keys", status_code=201, **route(scopes=("admin",), body=NewKey))
async def make_key(call: Anybody, body: Annotated[NewKey, body_of(NewKey)]) -> NewKeyAnswer:
    """Make a key, and its tenant if that is new. Its text is in this answer alone."""
    key, record = new_key(body.scope, body.tenant or call.tenant, body.user_id, time.time())
    await call.profiles.store.write(keys.add, record)
    return NewKeyAnswer(key=key, **_shown(record).model_dump())


@router.get("/keys", **route(scopes=("admin",), query="tenant after limit"))
async def list_keys(
    call: Anybody, tenant: Tenant | None = None, after: Text = "", limit: Limit = 100
) -> Page[KeyAnswer]:
    """The keys of a tenant, or of all, oldest first, page by page. Revoked ones are among them."""
    found = await call.profiles.store.read(keys.list_keys, tenant, after or None, limit + 1)
    page, last = paged(found, limit)
    return Page(items=[_shown(one) for one in page], next=last and last.key_id)


@router.delete("/keys/{key_id}", **route(404, scopes=("admin",)))
async def revoke_key(call: Anybody, key_id: str) -> KeyAnswer:
    """Revoke a key: this process refuses it at once, others on the store within seconds."""
    store = call.profiles.store
    try:
        record = await store.write(keys.revoke, key_id, time.time())
    except DataError:
        raise Refusal(404, "no_key", "there is no key of this id; GET /keys lists those that there are") from None
    call.services.keys.revoked(key_id)
    log_revoked(record)
    return _shown(record)


@router.get("/tenants", **route(scopes=("admin",), query="after limit"))
async def list_tenants(call: Anybody, after: Text = "", limit: Limit = 100) -> Page[str]:
    """The names of all tenants, in order, page by page."""
    page, last = paged(await call.profiles.store.read(keys.list_tenants, after, limit + 1), limit)
    return Page(items=page, next=last)


@router.get("/audit", **route(scopes=("admin",), query="tenant user after limit"))
async def list_audit(
    call: Anybody, tenant: Tenant | None = None, user: Text = "", after: Text = "", limit: Limit = 100
) -> Page[AuditEntry]:
    """Who read or changed whom, newest first, page by page: of all tenants, of one, or of one user of it, also of one
    who was erased."""
    if user and tenant is None:
        raise Refusal(400, "query", "name the user's tenant, too")
    user_id = checked_id(user) if user else None
    found = await call.profiles.store.read(audit.list_entries, tenant, user_id, after or None, limit + 1)
    page, last = paged(list(found), limit)
    return Page(items=[audit_entry(one) for one in page], next=last and last.entry)


def checked_id(user: str) -> str:
    """A user id of a query, in its normal form.

    Raises:
        Refusal: it is none.
    """
    try:
        return normal_user_id(user)
    except DataError as error:
        raise Refusal(400, "user_id", str(error)) from None


def audit_entry(row: Row[Any]) -> AuditEntry:
    """An entry of the audit log as it is answered."""
    values = dict(row._mapping)
    return AuditEntry.model_validate(values | {"at": moment(row.at), "user_hash": row.user_hash or None})


def _shown(record: keys.KeyRecord) -> KeyAnswer:
    revoked = None if record.revoked_at is None else moment(record.revoked_at)
    return KeyAnswer.model_validate(record.__dict__ | {"created_at": moment(record.created_at), "revoked_at": revoked})
