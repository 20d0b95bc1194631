"""The profile API as an ASGI application: FastAPI routes behind one check of keys and limits."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

import popi
from popi.errors import AuthError, PopiError, StoreError
from popi.profiles.answers import ErrorAnswer, ErrorDetail, Health, InferenceHealth, LinkAnswer, Ready
from popi.serving.api import access, routes
from popi.serving.api.requests import BODY_MODELS, Headers, Services
from popi.serving.api.service import Profiles
from popi.serving.api.stored import NotFound, OverBound
from popi.serving.interfaces import Caller
from popi.serving.keys import KeyRing
from popi.serving.proxy.body import ClientGone
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.logs import log_fault
from popi.serving.proxy.refusals import Refusal, not_authenticated
from popi.serving.settings import AuditSettings
from popi.serving.store.answers import AmbiguousAnswer
from popi.serving.store.audit import ACTOR, Actor
from popi.serving.store.summaries import VersionConflict

log = logging.getLogger("popi.gateway.profiles")

NEEDS_KEY = ("/users/", "/keys/", "/tenants/", "/audit/")
READY_SECONDS = 2.0
SINGLE_VALUED = ("authorization", "x-api-key", "x-popi-key", "x-popi-tenant", "if-match")
"""Headers that must not be sent twice with different values."""


class ProfileApi:
    """The ASGI application of `/users`, `/keys`, `/tenants`, `/audit`, `/healthz`, `/readyz` and `/openapi.json`.

    Args:
        profiles: the service.
        keys: authenticates callers.
        limits: limits per key.
        link: makes a link to a user's page, from the tenant, the user id and the request's headers.
        log_requests: log one line per request.
        inference, ending: see Services.
        audit: whose reads and changes the audit log records.
    """

    def __init__(
        self,
        profiles: Profiles,
        keys: KeyRing,
        limits: Limits,
        link: Callable[[str, str, Headers], Awaitable[LinkAnswer]] | None = None,
        log_requests: bool = True,
        inference: Callable[[], InferenceHealth | None] = lambda: None,
        ending: Callable[[], bool] = lambda: False,
        audit: AuditSettings | None = None,
    ) -> None:
        self._keys, self._limits, self._log_requests = keys, limits, log_requests
        self._audit = audit or AuditSettings()
        self._services = Services(profiles, keys, link, inference, ending)
        document()  # builds the routes' models now and not with the first request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The raw path: a slash within a user id stays %2F and separates nothing.
        path = (scope.get("raw_path") or scope["path"].encode()).split(b"?", 1)[0].decode("latin-1")
        scope = {**scope, "path": path, "state": {"services": self._services}}
        if not f"{path}/".startswith(NEEDS_KEY):
            await APP(scope, receive, send)
            return
        began, status, caller, held_bytes = time.perf_counter(), 0, None, 0

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"cache-control", b"no-store")]
            await send(message)

        def hold(size: int) -> None:
            nonlocal held_bytes
            assert caller is not None
            self._limits.hold(caller.key_id, size)
            held_bytes += size

        try:
            caller = await self._caller(scope["headers"])
            audited = self._audit.retention_days > 0 and caller.scope in self._audit.roles
            ACTOR.set(Actor(f"key:{caller.key_id}", caller.scope, "api") if audited else None)
            self._limits.enter(caller.key_id)
            scope["state"] |= {"caller": caller, "hold": hold}
            try:
                await APP(scope, receive, send_noting_status)
            finally:
                self._limits.leave(caller.key_id, held_bytes)
        except Refusal as refusal:
            response = await _error_response(Request(scope), refusal)
            await response(scope, receive, send_noting_status)
        except Exception as error:  # FastAPI has responded, unless a response had already started
            log_fault("a profile request failed", error)
        if self._log_requests:
            fields = {"route": getattr(scope.get("route"), "name", "profiles"), "method": scope["method"]}
            if caller is not None:
                fields |= {"key_id": caller.key_id, "tenant": caller.tenant}
            total_ms = (time.perf_counter() - began) * 1e3
            log.info("request", extra={"fields": {**fields, "status": status, "total_ms": total_ms}})

    async def _caller(self, raw: list[tuple[bytes, bytes]]) -> Caller:
        headers: Headers = {}
        for name, value in ((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw):
            if headers.setdefault(name, value) != value and name in SINGLE_VALUED:
                raise Refusal(400, "ambiguous_header", f"the header {name} was sent twice; send it once")
        authorization = headers.get("authorization", "")
        bearer = authorization[7:].strip() if authorization[:7].lower() == "bearer " else None
        try:
            return await self._keys.authenticate(headers.get("x-popi-key") or bearer or headers.get("x-api-key"))
        except AuthError as error:
            raise not_authenticated(error) from None


class _Documented(FastAPI):
    """Adds what FastAPI can't see to the OpenAPI document: keys, and bodies read by `requests.body_of`."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            reference = "#/components/schemas/{model}-Input"
            _, schemas = models_json_schema([(one, "validation") for one in BODY_MODELS], ref_template=reference)
            components = document["components"]
            components["schemas"] |= {f"{name}-Input": schema for name, schema in schemas["$defs"].items()}
            about = "Create keys with `popi keys create` or POST /keys."
            components["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer", "description": about},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
            document["security"] = [{"key": []}, {"apiKey": []}]
        return super().openapi()


health = APIRouter()


@health.get("/healthz", openapi_extra={"security": []})
@health.head("/healthz", include_in_schema=False)
async def healthz() -> Health:
    """The process is running."""
    return Health()


@health.get("/readyz", openapi_extra={"security": []}, responses={503: {"model": ErrorAnswer}})
@health.head("/readyz", include_in_schema=False)
async def readyz(request: Request) -> Ready:
    """The store responds too, and the process is not shutting down."""
    services: Services = request.state.services
    if services.ending():
        raise Refusal(503, "shutting_down", "the gateway is shutting down; send new requests elsewhere")
    with suppress(TimeoutError):
        if await asyncio.wait_for(services.profiles.ready(), READY_SECONDS):
            return Ready(inference=services.inference())
    raise Refusal(503, "store", "the store does not respond")


@health.get("/openapi.json", include_in_schema=False)
@health.head("/openapi.json", include_in_schema=False)
async def openapi() -> Response:
    """The OpenAPI document."""
    return Response(document(), media_type="application/json")


async def _error_response(request: Request, error: Exception) -> Response:
    """The response to a request that raised an exception."""
    refusal = _refusal(request, error)
    headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status == 405:
        headers["allow"] = _allowed(request.scope)
    body = ErrorAnswer(error=ErrorDetail(code=refusal.code, message=str(refusal))).model_dump_json()
    return Response(body, refusal.status, headers, "application/json")


def _refusal(request: Request, error: Exception) -> Refusal:
    match error:
        case Refusal():
            return error
        case HTTPException(status_code=405):
            return Refusal(405, "no_such_method", f"this path accepts {_allowed(request.scope)}")
        case HTTPException():
            return Refusal(404, "no_such_path", "there is no such path; /openapi.json lists all paths")
        case RequestValidationError():
            problems = [f"{one['loc'][-1]}: {one['msg'].replace('Input should', 'must')}" for one in error.errors()]
            return Refusal(400, "query", "; ".join(problems))
        case NotFound():
            return Refusal(404, error.code, str(error))
        case VersionConflict(current=version) if "if-match" in request.headers:
            message = f"the summary is now at version {version}; read it again and repeat the change"
            return Refusal(412, "version_conflict", message)
        case VersionConflict(current=version):
            message = f'there is a summary already (version {version}); read it and send If-Match: "{version}"'
            return Refusal(428, "if_match_required", message)
        case AmbiguousAnswer():
            message = "several answers have this upstream id; use the id in the answer's x-popi-answer-id header"
            return Refusal(409, "ambiguous_answer", message)
        case StoreError():
            log_fault("the store failed", error)
            return Refusal(503, "store", str(error), retry_after=1)
        case OverBound():
            return Refusal(error.status, error.code, str(error))
        case PopiError():
            return Refusal(422, "not_valid", str(error))
        case ClientGone():
            return Refusal(499, "client_disconnected", "")
    return Refusal(500, "fault", "internal error in the gateway; see its log")


def _allowed(scope: Scope) -> str:
    """The methods that a path accepts."""
    matching = [one for router in ROUTERS for one in router.routes if one.matches(scope)[0] != Match.NONE]
    return ", ".join(sorted({method for one in matching if isinstance(one, APIRoute) for method in one.methods or ()}))


ROUTERS = (routes.router, access.router, health)
APP = _Documented(
    title="popi gateway",
    version=popi.__version__,
    description="Profiles of end users. The proxied model APIs (/v1/…) are documented by their vendors.",
    openapi_url=None,
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
    generate_unique_id_function=lambda route: route.name,
)
for router in ROUTERS:
    APP.include_router(router)
for error in (
    Refusal,
    HTTPException,
    RequestValidationError,
    NotFound,
    VersionConflict,
    AmbiguousAnswer,
    PopiError,
    ClientGone,
    Exception,
):
    APP.add_exception_handler(error, _error_response)


@cache
def document() -> bytes:
    """The OpenAPI document."""
    return json.dumps(APP.openapi()).encode()
