"""The OpenAPI 3.1 document of our own routes, made of the table of routes and the models that check the bodies."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

import popi
from popi.serving.profiles.models import LONGEST_ID, ErrorAnswer, Health, ImportedUser, Ready
from popi.serving.profiles.routes import EVERY, ROUTES, Route
from popi.signals.types import User

REASONS = {
    400: "The request is not one: not JSON, a bad header, user id or parameter",
    401: "No key, or one that is unknown or revoked",
    403: "The key may not do that",
    404: "There is no such user, summary or version",
    405: "The path takes other methods",
    408: "The body did not arrive in time",
    412: "The summary is at another version than If-Match says",
    413: "The body is too long",
    415: "The body has another content type or encoding",
    422: "The body is JSON, but not what the route takes",
    428: "There is a summary, and If-Match is missing",
    429: "Too many requests with this key; Retry-After says when",
    500: "The gateway failed",
    503: "The store does not answer",
}
WITH_BODY = (408, 413, 415, 422)
_REF = "#/components/schemas/{model}"


def document() -> dict[str, Any]:
    """The whole document."""
    asked: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ErrorAnswer, "serialization"), (Health, "serialization")]
    asked.append((Ready, "serialization"))
    asked += [(route.body, "validation") for route in ROUTES if route.body is not None]
    asked += [(route.answer, "serialization") for route in ROUTES]
    asked += [(ImportedUser, "validation"), (User, "serialization")]
    references, definitions = models_json_schema(list(dict.fromkeys(asked)), ref_template=_REF)

    def schema(model: type[BaseModel], mode: JsonSchemaMode) -> dict[str, Any]:
        return dict(references[(model, mode)])

    paths: dict[str, Any] = {}
    for route in ROUTES:
        operation: dict[str, Any] = {
            "operationId": route.name,
            "summary": route.about,
            "parameters": _parameters(route),
            "responses": _responses(route, schema),
        }
        if route.body is not None:
            content = {"application/json": {"schema": schema(route.body, "validation")}}
            if route.name == "import_users":
                content["application/jsonl"] = {"schema": {"type": "string"}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    for path, about in (("/healthz", "The process is up."), ("/readyz", "The store answers, too.")):
        answers = {"200": _json("It is.", schema(Ready if path == "/readyz" else Health, "serialization"))}
        if path == "/readyz":
            answers["503"] = _json(REASONS[503], schema(ErrorAnswer, "serialization"))
        paths[path] = {"get": {"operationId": path[1:], "summary": about, "security": [], "responses": answers}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "popi gateway",
            "version": popi.__version__,
            "description": "Profiles of end users. Model APIs that are passed through (/v1/…) are their vendors' own.",
        },
        "security": [{"key": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "`popi keys create` makes keys."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    if "{id}" in route.path:
        text = {"type": "string", "minLength": 1, "maxLength": LONGEST_ID, "pattern": r"^[^\x00]*\S[^\x00]*$"}
        about = "The user: any text, percent-encoded (a slash is %2F)."
        parameters.append({"name": "id", "in": "path", "required": True, "schema": text, "description": about})
    for name, values in route.query.items():
        choice = {"type": "string", "enum": list(values), "default": values[0]}
        parameters.append({"name": name, "in": "query", "required": False, "schema": choice})
    if route.if_match is not None:
        version = {"type": "string", "pattern": r'^"[0-9]{1,18}"$'}
        about = 'The version that was seen, as the ETag gives it: "3"; "0" for none.'
        parameters.append(
            {"name": "If-Match", "in": "header", "required": False, "schema": version, "description": about}
        )
    tenant = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}
    about = "Of an admin key: another tenant than its own."
    parameters.append(
        {"name": "x-popi-tenant", "in": "header", "required": False, "schema": tenant, "description": about}
    )
    return parameters


def _responses(route: Route, schema: Any) -> dict[str, Any]:
    answer = _json("Done.", schema(route.answer, "serialization"))
    if route.answer.__name__ == "SummaryAnswer":
        answer["headers"] = {"ETag": {"schema": {"type": "string"}, "description": "The version, for If-Match."}}
    if route.name == "export":
        answer["content"]["application/jsonl"] = {"schema": schema(User, "serialization")}
    responses = {"200": answer}
    # x-popi-tenant can be wrong on every route, so 422 can come without a body, too.
    refused = {*EVERY, *route.refusals, 405, *(WITH_BODY if route.body is not None else (422,))}
    refused -= set(() if route.body is not None else (408, 413))
    for status in sorted(refused):
        responses[str(status)] = _json(REASONS[status], schema(ErrorAnswer, "serialization"))
    return responses


def _json(about: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}
