"""What the routes of the profile API are given, as FastAPI dependencies: who asks, about whom, and the body.

FastAPI would parse and validate a body in the event loop, before it asks who sent it. So a body is a dependency here:
it is read once the caller may send it, within bounds, and parsed and validated in a thread.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Header, Path, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ValidationError

from popi.data.jsonl import explain
from popi.errors import DataError
from popi.profiles.answers import ErrorAnswer, InferenceHealth
from popi.profiles.fields import ANY_ID, Author, Scope
from popi.profiles.requests import Import, ImportedUser
from popi.profiles.user_id import normal_user_id
from popi.serving.api.service import Profiles
from popi.serving.interfaces import Caller
from popi.serving.keys import KeyRing
from popi.serving.proxy.body import read_whole
from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.strict_json import has_more_values
from popi.signals.types import User

SHOWN = 10
"""How many things wrong with a body a message names."""
MOST_FIELDS = 64
"""Fields of one JSON object; no object of ours has as many."""
QUICK = 2**18
"""Bytes of a body up to which any number may be parsed and stored at once."""
JSONL = "application/jsonl"
JSONL_TYPES = (JSONL, "application/x-ndjson", "application/x-jsonlines")
EVERYONE: tuple[Scope, ...] = ("admin", "app", "user")
EVERY, WITH_BODY = (400, 401, 403, 405, 422, 429, 500, 503), (408, 413, 415)

Body = TypeVar("Body", bound=BaseModel)
Answer = TypeVar("Answer")
Headers = dict[str, str]
BODIES: set[type[BaseModel]] = {User}
"""Models that the OpenAPI document describes as they are sent."""


@dataclass(frozen=True)
class Services:
    """What the routes work with; `request.state.services`.

    Attributes:
        profiles: the users of all tenants.
        keys: those of this process.
        link: makes a link to a user's page: tenant, user id, the request's headers.
        inference: how the LLM that writes summaries does; None: this process has none behind an API.
        ending: whether the process ends soon.
        heavy: for requests with a body above `QUICK`, from its parsing to their end: what it becomes takes 30 times its
            size in the worst case.
    """

    profiles: Profiles
    keys: KeyRing
    link: Callable[[str, str, Headers], Any] | None
    inference: Callable[[], InferenceHealth | None]
    ending: Callable[[], bool] = lambda: False
    heavy: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))


@dataclass(frozen=True)
class Call:
    """A request that may be served.

    Attributes:
        services: what it works with.
        caller: whose key it came with.
        tenant: whose user it is about.
        user_id: the user; empty where the path names none.
    """

    services: Services
    caller: Caller
    tenant: str
    user_id: str = ""

    @property
    def profiles(self) -> Profiles:
        return self.services.profiles

    @property
    def author(self) -> Author:
        """Who writes: an app speaks for its user."""
        return "admin" if self.caller.scope == "admin" else "user"

    def saw(self, action: str, answer: Answer) -> Answer:
        """Note in the audit log that the user was read; returns the answer."""
        self.profiles.reads.saw(action, self.tenant, self.user_id)
        return answer


def route(
    *refusals: int,
    scopes: tuple[Scope, ...] = EVERYONE,
    body: type[BaseModel] | None = None,
    query: str = "",
    answer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a decorator of FastAPI is to know of a route of ours: who may call, and what the document says.

    Args:
        refusals: statuses beyond those that every route may answer.
        scopes: of the keys that may call.
        body: what it takes.
        query: names of its parameters; others are refused.
        answer: what the document says of the answer beside its model.
    """

    async def allowed(request: Request) -> None:
        if request.state.caller.scope not in scopes:
            raise Refusal(403, "not_allowed", f"this takes a key of scope {' or '.join(scopes)}")
        if not request.query_params.keys() <= set(query.split()):
            raise Refusal(400, "query", f"this path has no parameter of that name; it takes: {query or 'none'}")

    extra: dict[str, Any] = {"x-scopes": list(scopes)}
    if body is not None:
        BODIES.add(body)
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}-Input"}}}
        if body is Import:
            content[JSONL] = {"schema": {"type": "string"}}  # type: ignore[dict-item]
        extra["requestBody"] = {"required": True, "content": content}
    statuses = {*EVERY, *refusals, *(WITH_BODY if body is not None else ())}
    responses = {status: {"model": ErrorAnswer} for status in sorted(statuses)} | ({200: answer} if answer else {})
    return {"dependencies": [Depends(allowed)], "responses": responses, "openapi_extra": extra}


async def _call(
    request: Request,
    x_popi_tenant: Annotated[
        str | None,
        Header(
            description="Of an admin key: another tenant than its own.",
            json_schema_extra={"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        ),
    ] = None,
) -> Call:
    services, caller = request.state.services, request.state.caller
    tenant = caller.tenant if x_popi_tenant is None else x_popi_tenant
    if tenant != caller.tenant:
        if caller.scope != "admin":
            raise Refusal(403, "not_allowed", "this key belongs to another tenant than x-popi-tenant names")
        if not await services.profiles.tenant_exists(tenant):
            words = "there is no tenant of the name in x-popi-tenant; `popi keys create` or POST /keys makes one"
            raise Refusal(422, "no_tenant", words)
    return Call(services, caller, tenant)


async def _user_call(
    call: "Anybody",
    id: Annotated[
        str,
        Path(description="The user: any text, percent-encoded (a slash is %2F).", json_schema_extra=dict(ANY_ID)),
    ],
) -> Call:
    try:
        user_id = normal_user_id(unquote_to_bytes(id).decode())
    except UnicodeDecodeError:
        raise Refusal(400, "user_id", "the user id in the path is not UTF-8 text, percent-encoded") from None
    except DataError as error:
        raise Refusal(400, "user_id", str(error)) from None
    if call.caller.scope == "user" and call.caller.user_id != user_id:
        raise Refusal(403, "not_allowed", "a user key reaches its own profile alone")
    return replace(call, user_id=user_id)


async def _seen(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description='The version that was seen, as the ETag gives it: "3"; "0" for none.',
            json_schema_extra={"pattern": r'^"[0-9]{1,18}"$'},
        ),
    ] = None,
) -> int | None:
    if if_match is None:
        return None
    text = if_match.strip().removeprefix("W/")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Refusal(400, "if_match", 'If-Match must be the version as the summary shows it, like "3"')
    return int(text)


Anybody = Annotated[Call, Depends(_call)]
OfUser = Annotated[Call, Depends(_user_call)]
Seen = Annotated[int | None, Depends(_seen)]
"""The version that If-Match names, as ``"3"`` or ``3``; None without the header."""


def body_of(model: type[BaseModel]) -> Any:
    """The body of a request as a dependency, checked against `model`.

    Raises:
        Refusal: 415 not JSON, or encoded; 400, 408, 413 or 422 what is wrong with it.
        ClientGone: the client went before it was whole.
    """

    async def read(request: Request, call: Anybody) -> AsyncIterator[BaseModel]:  # who may not call is refused before
        bounds, headers = call.profiles.bounds, request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "content_encoding", "send the body without a content-encoding")
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        lines = model is Import and kind in JSONL_TYPES
        if kind != "application/json" and not lines:
            also = f" or {JSONL}" if model is Import else ""
            raise Refusal(415, "content_type", f"send the body as application/json{also}")
        length = headers.get("content-length", "")
        most = bounds.import_bytes if model is Import else bounds.body_bytes
        announced = int(length) if length.isdigit() else None
        raw = await read_whole(request.receive, announced, most, bounds.body_s, request.state.hold)
        async with call.services.heavy if len(raw) > QUICK else nullcontext():
            yield await run_in_threadpool(_checked, model, raw, bounds.body_values, lines)

    return Depends(read, scope="function")


def _checked(model: type[BaseModel], raw: bytes, most_values: int, lines: bool) -> BaseModel:
    if has_more_values(raw, most_values):
        words = f"the JSON of this request may hold {most_values:,} values ([profiles] body_values)"
        raise Refusal(413, "body_too_many_values", words)
    if not lines:
        return _valid(model, raw, "")
    if raw.count(b"\n") > most_values:
        raise Refusal(413, "body_too_many_values", f"an import may have {most_values:,} lines ([profiles] body_values)")
    numbered = enumerate(io.BytesIO(raw.removeprefix(b"\xef\xbb\xbf")), start=1)
    users = [_valid(ImportedUser, line, f"line {number}: ") for number, line in numbered if line.strip()]
    try:
        return Import(users=users)
    except ValidationError:
        raise Refusal(422, "not_valid", "no users in this body, or too many") from None


def _valid(model: type[Body], raw: bytes, where: str) -> Body:
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise Refusal(400, "not_json", f"{where}the body is not one JSON value in UTF-8") from None
    try:
        return model.model_validate(value, strict=True)
    except ValidationError as error:
        found = explain(error, 0, raw, value, model)
    problems = [f"{one.field}: {one.message}" if one.field else one.message for one in found]
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise Refusal(422, "not_valid", where + "; ".join(problems[:SHOWN]) + more)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refusal(400, "not_json", "the body has an object with the same name twice")
    if len(members) > MOST_FIELDS:
        raise Refusal(422, "not_valid", f"the body has an object of more than {MOST_FIELDS} fields")
    return members
