"""The team's list of users."""

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from popi.errors import DataError
from popi.profiles.user_id import normal_user_id
from popi.serving.pages.render import Renderer
from popi.serving.pages.sessions import Session
from popi.serving.pages.subject import admin_path
from popi.serving.store import users
from popi.serving.store.tables import tenants
from popi.serving.store.threads import Store

USERS_SHOWN = 50


class Team:
    """`/admin`.

    Args:
        store: of all tenants.
        render: makes pages.
    """

    def __init__(self, store: Store, render: Renderer) -> None:
        self._store, self._render = store, render

    async def people(self, request: Request, session: Session) -> Response:
        """Users of a tenant in order of their ids, or the one that was asked for."""
        asked = request.query_params
        names = await self._store.read(_tenants)
        tenant = asked.get("tenant", "")
        if tenant not in names:
            tenant = session.tenant if session.tenant in names else names[0]
        wanted = asked.get("user", "").strip()
        if wanted and await self._there(tenant, wanted):
            return RedirectResponse(admin_path(tenant, wanted), 303)
        listed = await self._store.read(users.listed, tenant, asked.get("after") or None, USERS_SHOWN + 1)
        return self._render.page(
            request,
            "people.html",
            session=session,
            tenants=names,
            tenant=tenant,
            people=[(one, admin_path(tenant, one)) for one in listed[:USERS_SHOWN]],
            more=listed[USERS_SHOWN - 1] if len(listed) > USERS_SHOWN else None,
            wanted=wanted,
        )

    async def _there(self, tenant: str, user_id: str) -> bool:
        try:
            return await self._store.read(users.find, tenant, normal_user_id(user_id)) is not None
        except DataError:
            return False


def _tenants(connection: Connection) -> list[str]:
    return sorted(connection.execute(tenants.select().with_only_columns(tenants.c.tenant)).scalars())
