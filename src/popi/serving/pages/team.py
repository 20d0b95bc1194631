"""The team's pages: users, tenants, renewals and the audit log."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize
from urllib.parse import urlencode

from sqlalchemy import Connection, Row
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from popi.errors import DataError
from popi.profiles.user_id import normal_user_id
from popi.serving.api.access import audit_entry
from popi.serving.api.stored import NotFound
from popi.serving.pages.render import Renderer
from popi.serving.pages.sessions import Session
from popi.serving.pages.strings import say
from popi.serving.pages.subject import admin_path
from popi.serving.reads import Reads
from popi.serving.settings import RenewalSettings
from popi.serving.store import audit, jobs, keys, overview, users
from popi.serving.store.overview import TenantCounts
from popi.serving.store.threads import Store
from popi.serving.store.usage import DAY, TENANT_DAYS

ROWS_SHOWN = 50
PERIODS = (1, 7, 30, TENANT_DAYS)
"""Periods to choose from on the tenants' page, in days."""
Page = Callable[[Request, Session], Awaitable[Response]]
Action = Callable[[Request, Session, dict[str, str]], Awaitable[Response]]


@dataclass(frozen=True)
class RenewalRow:
    """A renewal as shown on the page; `at`: when it failed or is due (seconds since 1970)."""

    user_id: str
    path: str
    reason: str
    attempts: int
    at: float
    can_retry: bool


class Team:
    """Handlers of GET and POST requests, by path.

    Args:
        store: the store.
        render: renders pages.
        settings: prices of renewals.
        reads: records in the audit log that users were listed.
    """

    def __init__(self, store: Store, render: Renderer, settings: RenewalSettings, reads: Reads) -> None:
        self._store, self._render, self._settings, self._reads = store, render, settings, reads
        self.pages: dict[str, Page] = {
            "/admin": self._people,
            "/admin/tenants": self._tenants,
            "/admin/renewals": self._renewals,
        }
        self.pages |= {"/admin/activity": self._activity, "/admin/activity/export": self._export}
        self.actions: dict[str, Action] = {"/admin/renewals/retry": self._retry}

    async def _people(self, request: Request, session: Session) -> Response:
        """List a tenant's users whose ids begin with the search text; redirect to the user on a single exact match."""
        query = request.query_params
        names, tenant = await self._chosen(request, session)
        prefix = normalize("NFC", query.get("user", "").strip().replace("\x00", ""))
        after = query.get("after") or None
        ids = await self._store.read(users.list_ids, tenant, after, ROWS_SHOWN + 1, prefix)
        self._reads.record("list", tenant)
        if prefix and ids == [prefix] and after is None:
            return RedirectResponse(admin_path(tenant, prefix), 303)
        return self._render.page(
            request,
            "people.html",
            session=session,
            tenants=names,
            tenant=tenant,
            people=[(one, admin_path(tenant, one)) for one in ids[:ROWS_SHOWN]],
            more=ids[ROWS_SHOWN - 1] if len(ids) > ROWS_SHOWN else None,
            wanted=prefix,
        )

    async def _tenants(self, request: Request, session: Session) -> Response:
        """Show the counts, tokens and cost of every tenant."""
        value = request.query_params.get("days", "")
        days = next((one for one in PERIODS if str(one) == value), 30)

        def read(connection: Connection) -> list[TenantCounts]:
            now = self._store.database.now(connection)
            return overview.of_tenants(connection, now - now % DAY - (days - 1) * DAY)

        counts = await self._store.read(read)
        if len(counts) > 1:
            numbers = [list(vars(one).values())[1:] for one in counts]
            counts.append(TenantCounts("", *map(sum, zip(*numbers, strict=True))))
        prices = self._settings.input_price, self._settings.output_price
        return self._render.page(
            request,
            "tenants.html",
            session=session,
            tenant=None,
            rows=[(one, one.cost(*prices)) for one in counts],
            priced=any(prices),
            periods=PERIODS,
            days=days,
        )

    async def _renewals(self, request: Request, session: Session) -> Response:
        """List a tenant's failed or waiting renewals, with the reasons."""
        query = request.query_params
        names, tenant = await self._chosen(request, session)
        state: overview.State = "waiting" if query.get("state") == "waiting" else "failed"
        after = query.get("after", "").replace("\x00", "")
        rows = await self._store.read(overview.renewals, tenant, state, after, ROWS_SHOWN + 1)
        return self._render.page(
            request,
            "renewals.html",
            session=session,
            tenants=names,
            tenant=tenant,
            state=state,
            rows=[_renewal(one) for one in rows[:ROWS_SHOWN]],
            more=rows[ROWS_SHOWN - 1].user_id if len(rows) > ROWS_SHOWN else None,
        )

    async def _retry(self, request: Request, session: Session, form: dict[str, str]) -> Response:
        """Retry failed renewals of one user or of a whole tenant."""
        tenant, user_id = form.get("tenant", ""), form.get("user")
        if not await self._store.read(keys.tenant_exists, tenant):
            raise NotFound("no_tenant", "there is no such tenant")

        def write(connection: Connection) -> int:
            now = self._store.database.now(connection)
            retried = jobs.retry(connection, now, tenant, user_id)
            if retried and user_id is not None:
                audit.note_unlocked(connection, now, "retry", tenant, user_id)
            elif retried:
                audit.note(connection, now, "retry", tenant)
            return retried

        saying = "retried" if await self._store.write(write) else "nothing_to_retry"
        return RedirectResponse(f"/admin/renewals?{urlencode({'tenant': tenant, 'said': saying})}", 303)

    async def _activity(self, request: Request, session: Session) -> Response:
        """Show the audit log: who read or changed which user's data."""
        names, tenant, user_id = await self._log_filter(request)
        after = request.query_params.get("after") or None
        rows = await self._store.read(audit.list_entries, tenant, user_id, after, ROWS_SHOWN + 1)
        return self._render.page(
            request,
            "activity.html",
            session=session,
            tenants=["", *names],
            tenant=tenant or "",
            wanted=user_id or "",
            rows=[(one, admin_path(one.tenant, one.user_id) if one.user_id else None) for one in rows[:ROWS_SHOWN]],
            more=rows[ROWS_SHOWN - 1].entry if len(rows) > ROWS_SHOWN else None,
        )

    async def _export(self, request: Request, session: Session) -> Response:
        """Export the whole audit log as JSONL."""
        _, tenant, user_id = await self._log_filter(request)
        pages = audit.pages(self._store.database.read, tenant, user_id)
        lines = ("".join(audit_entry(row).model_dump_json() + "\n" for row in rows) for rows in pages)
        headers = {"content-disposition": 'attachment; filename="audit.jsonl"'}
        return StreamingResponse(self._store.stream(lines), headers=headers, media_type="application/jsonl")

    async def _log_filter(self, request: Request) -> tuple[list[str], str | None, str | None]:
        names = await self._store.read(keys.list_tenants)
        tenant = request.query_params.get("tenant", "")
        try:
            user_id = normal_user_id(request.query_params.get("user", ""))
        except DataError:
            user_id = None
        return (names, tenant, user_id) if tenant in names else (names, None, None)

    async def _chosen(self, request: Request, session: Session) -> tuple[list[str], str]:
        """All tenants, and the requested one or, by default, the session's own."""
        names = await self._store.read(keys.list_tenants)
        tenant = request.query_params.get("tenant", "")
        if tenant not in names:
            tenant = session.tenant if session.tenant in names else names[0]
        return names, tenant


def _renewal(row: Row[Any]) -> RenewalRow:
    failed = row.failed_at is not None
    running = row.lease is not None and not failed and row.lease_until > time.time()
    if running:
        reason = say("renewals_running")
    elif row.held_by is not None:
        reason = say(f"renewals_{row.held_by}")
    elif row.error is not None:
        reason = say("renewals_error", error=row.error)
    else:
        reason = say("renewals_new")
    can_retry = failed or (row.attempts > 0 and not running and row.held_by is None)
    at = row.failed_at if failed else row.due_at
    return RenewalRow(row.user_id, admin_path(row.tenant, row.user_id), reason, row.attempts, at, can_retry)
