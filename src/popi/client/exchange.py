"""One call of the profile API without I/O: a request, its retries and the parsed reply."""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from popi.errors import DataError, GatewayError
from popi.models.remote.retries import Retries, retry_after

PASSING = (429, 502, 503, 504)
"""Transient statuses, worth a retry. With the last three, the request may have succeeded nevertheless."""
SHOWN = 300
"""Maximum characters of an unparsed error to show."""
Answer = TypeVar("Answer", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A request to the gateway; `path` includes the query and is percent-encoded."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None


@dataclass(frozen=True)
class Reply:
    """The gateway's reply."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Wait:
    """Sleep for this many seconds."""

    seconds: float


class NotReached(Exception):
    """There was no complete reply; whether the request succeeded is unknown."""


Flow = Generator[Request | Wait, Reply | None, T]


def checked(model: type[Answer], **values: object) -> Answer:
    """A request body, validated before it is sent.

    Raises:
        DataError: it is invalid.
    """
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{where}: {message}" if where else message) from None


def exchange(retries: Retries, request: Request, *, repeatable: bool = True) -> Flow[tuple[Reply, bool]]:
    """The final reply, and whether an earlier try may have succeeded as well.

    Requests that are not `repeatable` are given up once they may have succeeded.
    """
    may_have_succeeded, retry = False, 0
    while True:
        try:
            reply = yield request
        except NotReached as error:
            may_have_succeeded, problem, status, requested_wait, code = True, str(error), None, None, None
        else:
            assert reply is not None
            if reply.status not in PASSING:
                return reply, may_have_succeeded
            may_have_succeeded = may_have_succeeded or reply.status != 429
            status, requested_wait = reply.status, retry_after(reply.headers)
            code, words = error_of(reply)
            problem = f"{status}: {words}"
        if may_have_succeeded and not repeatable:
            words = f"{_named(request)}: {problem}; it may have succeeded nevertheless, so it is not retried"
            raise GatewayError(words, status=status, code=code)
        wait = retries.wait(retry, requested_wait)
        if wait is None:
            end = f"given up after {retry + 1} {'try' if retry == 0 else 'tries'}"
            if requested_wait is not None and requested_wait > retries.max_wait_s:
                end = f"the gateway asks to wait {requested_wait:g} seconds, longer than {retries.max_wait_s:g}"
            raise GatewayError(f"{_named(request)}: {problem}; {end}", status=status, code=code)
        yield Wait(wait)
        retry += 1


def call(retries: Retries, request: Request, model: type[Answer]) -> Flow[Answer]:
    """Send a request and parse its reply. Raises as `read`."""
    reply, _ = yield from exchange(retries, request)
    return read(request, reply, model)


def read(request: Request, reply: Reply, model: type[Answer]) -> Answer:
    """Parse a reply.

    Raises:
        GatewayError: it is an error, or not a `model`.
    """
    if not 200 <= reply.status < 300:
        code, words = error_of(reply)
        hint = "; check that the key is valid for this gateway" if reply.status == 401 else ""
        raise GatewayError(f"{_named(request)}: {reply.status}: {words}{hint}", status=reply.status, code=code)
    try:
        return model.model_validate_json(reply.body)
    except ValidationError:
        raise GatewayError(
            f"{_named(request)}: answered with something other than a {model.__name__}; is this the URL of a popi "
            "gateway (http://HOST:8600, without /v1)?",
            status=reply.status,
        ) from None


def error_of(reply: Reply) -> tuple[str | None, str]:
    """The code and message of an error. Proxies between us and the gateway may reply in another form."""
    try:
        error = json.loads(reply.body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = " ".join(reply.body.decode("utf-8", "replace").split())[:SHOWN]
        return None, text or "(no message)"


def _named(request: Request) -> str:
    return f"{request.method} {request.path}"
