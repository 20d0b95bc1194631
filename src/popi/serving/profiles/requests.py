"""What a request of the profile API asks for: its route, user, parameters and body, checked."""

import asyncio
import json
from typing import TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope

from popi.errors import DataError
from popi.serving.profiles.models import Import, ImportedUser, checked_user_id
from popi.serving.profiles.routes import ROUTES, Route
from popi.serving.proxy.body import read_whole
from popi.serving.proxy.refusals import Refusal
from popi.signals.jsonl import explain

BODY_SECONDS = 60.0
SHOWN = 10
"""How many things wrong with a body a message tells."""
JSONL = b"application/jsonl"
JSONL_TYPES = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")

Body = TypeVar("Body", bound=BaseModel)
Headers = dict[str, str]


class MethodRefusal(Refusal):
    """405; `allow` names the methods that there are."""

    def __init__(self, allow: str) -> None:
        super().__init__(405, "no_such_method", f"this path takes {allow}")
        self.allow = allow


def matched(scope: Scope) -> tuple[Route, str]:
    """The route of a request and the user that its path names.

    Raises:
        Refusal: 404 no such path; 405; 400 a user id that is none.
    """
    # As it was sent: a slash inside of a user id is %2F there, and no border.
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    parts = tuple(raw.split(b"?", 1)[0].removeprefix(b"/users/").split(b"/"))
    allowed = []
    for route in ROUTES:
        if len(route.parts) != len(parts):
            continue
        pairs = list(zip(route.parts, parts, strict=True))
        if all(name == "{id}" or name.encode() == part for name, part in pairs):
            if route.method != scope["method"]:
                allowed.append(route.method)
                continue
            return route, _user_id(parts[0]) if "{id}" in route.parts else ""
    if allowed:
        raise MethodRefusal(", ".join(sorted(set(allowed))))
    raise Refusal(404, "no_such_path", "there is no such path; /openapi.json lists those that there are")


def _user_id(part: bytes) -> str:
    try:
        return checked_user_id(unquote_to_bytes(part).decode())
    except UnicodeDecodeError:
        raise Refusal(400, "user_id", "the user id in the path is not UTF-8 text, percent-encoded") from None
    except DataError as error:
        raise Refusal(400, "user_id", str(error)) from None


def checked_query(scope: Scope, route: Route) -> dict[str, str]:
    """The parameters of a request, with the route's defaults for those not given.

    Raises:
        Refusal: 400 one that the route does not take.
    """
    given = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    query = {name: values[0] for name, values in route.query.items()}
    for name, value in given:
        if name not in route.query:
            known = ", ".join(route.query) or "none"
            raise Refusal(400, "query", f"this path has no parameter of that name; it takes: {known}")
        if value not in route.query[name]:
            raise Refusal(400, "query", f"{name} must be one of {', '.join(route.query[name])}")
        query[name] = value
    return query


def if_match(headers: Headers) -> int | None:
    """The version that If-Match names, as ``"3"`` or ``3``; None without the header.

    Raises:
        Refusal: 400 it is none.
    """
    given = headers.get("if-match")
    if given is None:
        return None
    text = given.strip().removeprefix("W/")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Refusal(400, "if_match", 'If-Match must be the version as the summary shows it, like "3"')
    return int(text)


async def read_body(route: Route, headers: Headers, receive: Receive) -> BaseModel:
    """The body, as the route's model.

    Raises:
        Refusal: 415 not JSON, or encoded; 400, 408, 413 or 422 what is wrong with it.
        ClientGone: the client went before it was whole.
    """
    assert route.body is not None
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "content_encoding", "send the body without a content-encoding")
    length = headers.get("content-length", "")
    raw = await read_whole(receive, int(length) if length.isdigit() else None, route.most, BODY_SECONDS)
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if route.name == "import_users" and kind in JSONL_TYPES:
        return await _lines(raw)
    if kind != "application/json":
        also = f" or {JSONL.decode()}" if route.name == "import_users" else ""
        raise Refusal(415, "content_type", f"send the body as application/json{also}")
    return _checked(route.body, raw, "")


async def _lines(raw: bytes) -> Import:
    users = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            users.append(_checked(ImportedUser, line.strip(), f"line {number}: "))
            await asyncio.sleep(0)  # chats go by the same event loop
    try:
        return Import(users=users)
    except ValidationError:
        raise Refusal(422, "not_valid", "no users in this body, or too many") from None


def _checked(model: type[Body], raw: bytes, where: str) -> Body:
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        wrong = error
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refusal(400, "not_json", f"{where}the body is not JSON in UTF-8") from None
    problems = [
        f"{one.field}: {one.message}" if one.field else one.message for one in explain(wrong, 0, raw, value, model)
    ]
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    raise Refusal(422, "not_valid", where + "; ".join(problems[:SHOWN]) + more)
