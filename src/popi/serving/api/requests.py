"""The profile API's FastAPI dependencies: the caller, the user and the body.

FastAPI itself would parse and validate a body in the event loop, before checking who sent it. Here the body is a
dependency instead: it is read only after the caller is authorised, within limits, and processed in a thread.
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

MAX_PROBLEMS = 10
"""Maximum problems with a body to list in an error message."""
MAX_FIELDS = 64
"""Maximum fields of one JSON object; valid objects have fewer."""
LIGHT_BYTES = 2**18
"""Bodies up to this size may be processed concurrently without a limit."""
JSONL = "application/jsonl"
JSONL_TYPES = (JSONL, "application/x-ndjson", "application/x-jsonlines")
ALL_SCOPES: tuple[Scope, ...] = ("admin", "app", "user")
COMMON_STATUSES, BODY_STATUSES = (400, 401, 403, 405, 422, 429, 500, 503), (408, 413, 415)

Body = TypeVar("Body", bound=BaseModel)
Answer = TypeVar("Answer")
Headers = dict[str, str]
BODY_MODELS: set[type[BaseModel]] = {User}
"""Models that the OpenAPI document describes in their input form."""


@dataclass(frozen=True)
class Services:
    """What the routes work with, as `request.state.services`.

    Attributes:
        profiles: the users of all tenants.
        keys: this process's key ring.
        link: makes a link to a user's page, from the tenant, the user id and the request's headers; None without pages.
        inference: the health of the LLM that writes summaries; returns None if this process uses none over an API.
        ending: whether the process is about to shut down.
        heavy: limits concurrent requests with bodies above `LIGHT_BYTES`, which may take 30 times their size in memory.
    """

    profiles: Profiles
    keys: KeyRing
    link: Callable[[str, str, Headers], Any] | None
    inference: Callable[[], InferenceHealth | None]
    ending: Callable[[], bool] = lambda: False
    heavy: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))


@dataclass(frozen=True)
class Call:
    """An authorised request.

    Attributes:
        services: what the routes work with.
        caller: the key's owner.
        tenant: the tenant that the request is about.
        user_id: the user in the path; empty if the path has none.
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
        """The author of changes; an app acts for its user."""
        return "admin" if self.caller.scope == "admin" else "user"

    def record_read(self, action: str, answer: Answer) -> Answer:
        """Record in the audit log that the user's data was read; returns `answer`."""
        self.profiles.reads.record(action, self.tenant, self.user_id)
        return answer


def route(
    *refusals: int,
    scopes: tuple[Scope, ...] = ALL_SCOPES,
    body: type[BaseModel] | None = None,
    query: str = "",
    answer: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments for a FastAPI route decorator: check who may call, and describe the route in the OpenAPI document.

    Args:
        refusals: error statuses beyond those that every route may return.
        scopes: scopes of the keys that may call it.
        body: the model of its body.
        query: names of its query parameters, separated by spaces; others are refused.
        answer: what the document says about the response besides its model.
    """

    async def allowed(request: Request) -> None:
        if request.state.caller.scope not in scopes:
            raise Refusal(403, "not_allowed", f"this needs a key with scope {' or '.join(scopes)}")
        if not request.query_params.keys() <= set(query.split()):
            raise Refusal(400, "query", f"unknown query parameter; this path accepts: {query or 'none'}")

    extra: dict[str, Any] = {"x-scopes": list(scopes)}
    if body is not None:
        BODY_MODELS.add(body)
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}-Input"}}}
        if body is Import:
            content[JSONL] = {"schema": {"type": "string"}}  # type: ignore[dict-item]
        extra["requestBody"] = {"required": True, "content": content}
    statuses = {*COMMON_STATUSES, *refusals, *(BODY_STATUSES if body is not None else ())}
    responses = {status: {"model": ErrorAnswer} for status in sorted(statuses)} | ({200: answer} if answer else {})
    return {"dependencies": [Depends(allowed)], "responses": responses, "openapi_extra": extra}


async def _call(
    request: Request,
    x_popi_tenant: Annotated[
        str | None,
        Header(
            description="For admin keys: a tenant other than the key's own.",
            json_schema_extra={"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
        ),
    ] = None,
) -> Call:
    services, caller = request.state.services, request.state.caller
    tenant = caller.tenant if x_popi_tenant is None else x_popi_tenant
    if tenant != caller.tenant:
        if caller.scope != "admin":
            raise Refusal(403, "not_allowed", "x-popi-tenant names a tenant that this key does not belong to")
        if not await services.profiles.tenant_exists(tenant):
            message = "x-popi-tenant names an unknown tenant; create it with `popi keys create` or POST /keys"
            raise Refusal(422, "no_tenant", message)
    return Call(services, caller, tenant)


async def _user_call(
    call: "AnyCall",
    id: Annotated[
        str,
        Path(description="The user id: any text, percent-encoded (a slash is %2F).", json_schema_extra=dict(ANY_ID)),
    ],
) -> Call:
    try:
        user_id = normal_user_id(unquote_to_bytes(id).decode())
    except UnicodeDecodeError:
        raise Refusal(400, "user_id", "the user id in the path is not percent-encoded UTF-8") from None
    except DataError as error:
        raise Refusal(400, "user_id", str(error)) from None
    if call.caller.scope == "user" and call.caller.user_id != user_id:
        raise Refusal(403, "not_allowed", "a user key can only access its own user's profile")
    return replace(call, user_id=user_id)


async def _seen_version(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description='The version that you read, from its ETag: "3"; "0" if there was no summary.',
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
        raise Refusal(400, "if_match", 'If-Match must be the version of the summary that you read, such as "3"')
    return int(text)


AnyCall = Annotated[Call, Depends(_call)]
UserCall = Annotated[Call, Depends(_user_call)]
SeenVersion = Annotated[int | None, Depends(_seen_version)]
"""The version in the If-Match header, sent as ``"3"`` or ``3``; None without the header."""


def body_of(model: type[BaseModel]) -> Any:
    """A dependency that reads the request's body and validates it against `model`.

    Raises:
        Refusal: 415 if it is not JSON or is compressed; 400, 408, 413 or 422 if it is invalid.
        ClientGone: the client hung up before the body was complete.
    """

    async def read(request: Request, call: AnyCall) -> AsyncIterator[BaseModel]:  # `call` authorises the caller first
        bounds, headers = call.profiles.bounds, request.headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "content_encoding", "send the body uncompressed, without content-encoding")
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        is_jsonl = model is Import and kind in JSONL_TYPES
        if kind != "application/json" and not is_jsonl:
            also = f" or {JSONL}" if model is Import else ""
            raise Refusal(415, "content_type", f"send the body as application/json{also}")
        length = headers.get("content-length", "")
        max_bytes = bounds.import_bytes if model is Import else bounds.body_bytes
        announced = int(length) if length.isdigit() else None
        raw = await read_whole(request.receive, announced, max_bytes, bounds.body_timeout_s, request.state.hold)
        async with call.services.heavy if len(raw) > LIGHT_BYTES else nullcontext():
            yield await run_in_threadpool(_parse_body, model, raw, bounds.body_values, is_jsonl)

    return Depends(read, scope="function")


def _parse_body(model: type[BaseModel], raw: bytes, max_values: int, is_jsonl: bool) -> BaseModel:
    if has_more_values(raw, max_values):
        message = f"the JSON of this request may hold at most {max_values:,} values ([profiles] body_values)"
        raise Refusal(413, "body_too_many_values", message)
    if not is_jsonl:
        return _validate(model, raw, "")
    if raw.count(b"\n") > max_values:
        message = f"an import may have at most {max_values:,} lines ([profiles] body_values)"
        raise Refusal(413, "body_too_many_values", message)
    numbered = enumerate(io.BytesIO(raw.removeprefix(b"\xef\xbb\xbf")), start=1)
    users = [_validate(ImportedUser, line, f"line {number}: ") for number, line in numbered if line.strip()]
    try:
        return Import(users=users)
    except ValidationError:
        raise Refusal(422, "not_valid", "the body has no users, or too many") from None


def _validate(model: type[Body], raw: bytes, where: str) -> Body:
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise Refusal(400, "not_json", f"{where}the body is not a single JSON value in UTF-8") from None
    try:
        return model.model_validate(value, strict=True)
    except ValidationError as error:
        errors = explain(error, 0, raw, value, model)
    problems = [f"{one.field}: {one.message}" if one.field else one.message for one in errors]
    more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
    raise Refusal(422, "not_valid", where + "; ".join(problems[:MAX_PROBLEMS]) + more)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refusal(400, "not_json", "the body has an object that repeats a field")
    if len(members) > MAX_FIELDS:
        raise Refusal(422, "not_valid", f"the body has an object with more than {MAX_FIELDS} fields")
    return members
