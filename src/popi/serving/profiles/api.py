"""From an HTTP request to a call of the service, and back. Who may call is settled before anything is read."""

import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from popi.errors import AuthError, PopiError, StoreError
from popi.serving.interfaces import Caller, Keys
from popi.serving.profiles.models import (
    ErrorAnswer,
    ErrorWords,
    Feedback,
    Import,
    LinkAnswer,
    Pause,
    Rollback,
    SignalsUpload,
    SummaryAnswer,
    SummaryEdit,
    checked_user_id,
)
from popi.serving.profiles.requests import (
    JSONL,
    Headers,
    MethodRefusal,
    checked_query,
    if_match,
    matched,
    read_body,
)
from popi.serving.profiles.routes import Name
from popi.serving.profiles.service import Profiles
from popi.serving.profiles.stored import NotFound
from popi.serving.proxy.body import ClientGone
from popi.serving.proxy.limits import Limits
from popi.serving.proxy.logs import log_fault
from popi.serving.proxy.refusals import Refusal, not_authenticated
from popi.serving.store.summaries import Author, VersionConflict

log = logging.getLogger("popi.gateway.profiles")

JSON = b"application/json"

Answer = tuple[int, bytes, Headers]


@dataclass(frozen=True)
class Call:
    """A request that may be served.

    Attributes:
        caller: whose key it came with.
        tenant: whose user it is about.
        user_id: the user; empty where the path names none.
        headers: by name in lower case.
        query: parameters, checked against the route's.
        body: the body, checked against the route's model.
    """

    caller: Caller
    tenant: str
    user_id: str
    headers: Headers
    query: dict[str, str]
    body: Any

    @property
    def author(self) -> Author:
        """Who writes: an app speaks for its user."""
        return "admin" if self.caller.scope == "admin" else "user"


class ProfileApi:
    """The ASGI application of everything under `/users/`.

    Args:
        profiles: the service.
        keys: who may call.
        limits: how much one key may ask for.
        links: makes links to a user's page: tenant, user id, the request's headers.
    """

    def __init__(
        self,
        profiles: Profiles,
        keys: Keys,
        limits: Limits,
        links: Callable[[str, str, Headers], Awaitable[LinkAnswer]] | None = None,
    ) -> None:
        self._profiles, self._keys, self._limits, self._links = profiles, keys, limits, links
        self._handlers: dict[Name, Callable[[Call], Awaitable[Answer]]] = {
            "add_signals": self._add_signals,
            "import_users": self._import_users,
            "get_user": self._get_user,
            "erase_user": self._erase_user,
            "get_summary": self._get_summary,
            "put_summary": self._put_summary,
            "get_versions": self._get_versions,
            "rollback": self._rollback,
            "rebuild": self._rebuild,
            "export": self._export,
            "pause": self._pause,
            "feedback": self._feedback,
            "make_link": self._make_link,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        told: dict[str, Any] = {"route": "profiles", "method": scope["method"]}
        try:
            status, body, headers = await self._serve(scope, receive, told)
        except ClientGone:
            return
        except Refusal as refusal:
            status, body, headers = _refused(refusal)
        except Exception as error:
            log_fault("a profile request failed", error)
            status, body, headers = _refused(Refusal(500, "fault", "the gateway failed; its log says where"))
        raw = [(b"content-type", JSON), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
        given = {name.encode(): value.encode() for name, value in headers.items()}
        raw = [(name, given.pop(name, value)) for name, value in raw] + list(given.items())
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        log.info(
            "request", extra={"fields": {**told, "status": status, "total_ms": (time.perf_counter() - began) * 1e3}}
        )

    async def _serve(self, scope: Scope, receive: Receive, told: dict[str, Any]) -> Answer:
        headers: Headers = {}
        for name, value in scope["headers"]:
            if headers.setdefault(name.decode("latin-1"), value.decode("latin-1")) != value.decode("latin-1"):
                if name in (b"authorization", b"x-api-key", b"x-popi-key", b"x-popi-tenant", b"if-match"):
                    raise Refusal(400, "ambiguous_header", f"the header {name.decode()} is there twice; send it once")
        caller = await self._caller(headers)
        told |= {"key_id": caller.key_id, "tenant": caller.tenant}
        self._limits.enter(caller.key_id)
        try:
            route, user_id = matched(scope)
            told["route"] = route.name
            tenant = await self._tenant(caller, headers)
            if caller.scope not in route.scopes or (caller.scope == "user" and caller.user_id != user_id):
                raise Refusal(403, "not_allowed", "this key may not do that: a user key reaches its own profile alone")
            query = checked_query(scope, route)
            body = await read_body(route, headers, receive) if route.body is not None else None
            call = Call(caller, tenant, user_id, headers, query, body)
            try:
                return await self._handlers[route.name](call)
            except NotFound as error:
                raise Refusal(404, error.code, str(error)) from None
            except VersionConflict as conflict:
                raise _conflict(conflict, headers) from None
            except StoreError as error:
                log_fault("the store failed", error)
                raise Refusal(503, "store", str(error), retry_after=1) from None
            except PopiError as error:
                raise Refusal(422, "not_valid", str(error)) from None
        finally:
            self._limits.leave(caller.key_id)

    async def _caller(self, headers: Headers) -> Caller:
        given = headers.get("authorization", "")
        bearer = given[7:].strip() if given[:7].lower() == "bearer " else None
        try:
            return await self._keys.authenticate(headers.get("x-popi-key") or bearer or headers.get("x-api-key"))
        except AuthError as error:
            raise not_authenticated(error) from None

    async def _tenant(self, caller: Caller, headers: Headers) -> str:
        """The tenant: the key's own; an admin may name another."""
        named = headers.get("x-popi-tenant", caller.tenant)
        if named == caller.tenant:
            return caller.tenant
        if caller.scope != "admin":
            raise Refusal(403, "not_allowed", "this key belongs to another tenant than x-popi-tenant names")
        try:
            if await self._profiles.tenant_exists(named):
                return named
        except StoreError as error:
            raise Refusal(503, "store", str(error), retry_after=1) from None
        raise Refusal(422, "no_tenant", "there is no tenant of the name in x-popi-tenant; `popi keys create` makes one")

    # -- the routes -----------------------------------------------------------------------------------------------

    async def _add_signals(self, call: Call) -> Answer:
        body: SignalsUpload = call.body
        return _answer(await self._profiles.add_signals(call.tenant, call.user_id, body.signals))

    async def _import_users(self, call: Call) -> Answer:
        body: Import = call.body
        for user in body.users:
            checked_user_id(user.user_id)
        return _answer(await self._profiles.import_users(call.tenant, body.users, call.author))

    async def _get_user(self, call: Call) -> Answer:
        return _answer(await self._profiles.user(call.tenant, call.user_id))

    async def _erase_user(self, call: Call) -> Answer:
        return _answer(await self._profiles.erase(call.tenant, call.user_id))

    async def _get_summary(self, call: Call) -> Answer:
        return _with_version(await self._profiles.summary(call.tenant, call.user_id))

    async def _put_summary(self, call: Call) -> Answer:
        body: SummaryEdit = call.body
        expected = if_match(call.headers)
        return _with_version(await self._profiles.put_summary(call.tenant, call.user_id, body, call.author, expected))

    async def _get_versions(self, call: Call) -> Answer:
        return _answer(await self._profiles.versions(call.tenant, call.user_id))

    async def _rollback(self, call: Call) -> Answer:
        body: Rollback = call.body
        expected = if_match(call.headers)
        return _with_version(
            await self._profiles.rollback(call.tenant, call.user_id, body.version, call.author, expected)
        )

    async def _rebuild(self, call: Call) -> Answer:
        return _answer(await self._profiles.rebuild(call.tenant, call.user_id))

    async def _export(self, call: Call) -> Answer:
        if call.query["format"] == "json":
            return _answer(await self._profiles.export(call.tenant, call.user_id))
        line = await self._profiles.training_line(call.tenant, call.user_id)
        text = json.dumps(line.model_dump(exclude_none=True), ensure_ascii=False) + "\n"
        return 200, text.encode(), {"content-type": JSONL.decode()}

    async def _pause(self, call: Call) -> Answer:
        body: Pause = call.body
        return _answer(await self._profiles.pause(call.tenant, call.user_id, body.paused))

    async def _feedback(self, call: Call) -> Answer:
        body: Feedback = call.body
        return _answer(await self._profiles.feedback(call.tenant, call.user_id, body))

    async def _make_link(self, call: Call) -> Answer:
        if self._links is None:
            raise Refusal(404, "no_pages", "this gateway serves no pages")
        return _answer(await self._links(call.tenant, call.user_id, call.headers))


def error_body(code: str, message: str) -> bytes:
    """What every refusal looks like."""
    return ErrorAnswer(error=ErrorWords(code=code, message=message)).model_dump_json().encode()


# -- answers --------------------------------------------------------------------------------------------------------


def _answer(answer: BaseModel) -> Answer:
    return 200, answer.model_dump_json().encode(), {}


def _with_version(answer: SummaryAnswer) -> Answer:
    status, body, headers = _answer(answer)
    return status, body, headers | {"etag": f'"{answer.version}"'}


def _refused(refusal: Refusal) -> Answer:
    headers: Headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(refusal, MethodRefusal):
        headers["allow"] = refusal.allow
    return refusal.status, error_body(refusal.code, str(refusal)), headers


def _conflict(conflict: VersionConflict, headers: Headers) -> Refusal:
    if "if-match" not in headers:
        return Refusal(
            428,
            "if_match_needed",
            f'there is a summary, version {conflict.current}: read it, and send If-Match: "{conflict.current}"',
        )
    return Refusal(
        412,
        "version_conflict",
        f"the summary is at version {conflict.current} now; read it again, and repeat the change on that",
    )
