import re
from typing import Any

from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator
from serving_client import People

from popi.serving.api.app import ROUTERS

ROUTES = [one for router in ROUTERS for one in router.routes if isinstance(one, APIRoute) and one.include_in_schema]


def document(people: People) -> Any:
    return people.ask("GET", "/openapi.json", None).json()


def test_every_route_is_in_it(people: People) -> None:
    operations = {
        (path, method.upper()): operation
        for path, methods in document(people)["paths"].items()
        for method, operation in methods.items()
    }
    assert operations.keys() == {(route.path, method) for route in ROUTES for method in route.methods or ()}
    bodies = {name for name, operation in operations.items() if "requestBody" in operation}
    assert bodies == {name for name in operations if name[1] in ("POST", "PUT")} - {
        ("/users/{id}/summary/rebuild", "POST"),
        ("/users/{id}/link", "POST"),
    }
    for (path, _), operation in operations.items():
        scopes = operation.get("x-scopes")
        if path in ("/healthz", "/readyz"):
            assert scopes is None and operation["security"] == []
        else:
            assert scopes[0] == "admin" and ("user" in scopes) == (
                path.startswith("/users/{id}") and not path.endswith(("/link", "/merge"))
            )


def test_its_references_lead_somewhere(people: People) -> None:
    whole = document(people)
    names = set(re.findall(r"#/components/schemas/([^'\"]+)", str(whole)))
    assert names and names <= set(whole["components"]["schemas"])


def validated(whole: Any, answer: Any, path: str, method: str, status: int) -> None:
    schema = whole["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
    Draft202012Validator(schema | {"components": whole["components"]}).validate(answer)


def test_answers_are_what_it_says(people: People) -> None:
    sent = {
        "signals": [{"type": "statement", "text": "a"}, {"type": "pair", "prompt": "p", "chosen": "a", "rejected": "b"}]
    }
    steps: list[tuple[str, str, int, dict[str, Any]]] = [
        ("post", "/users/{id}/signals", 200, {"json": sent}),
        ("get", "/users/{id}/signals", 200, {}),
        ("get", "/users/{id}", 200, {}),
        ("get", "/users/{id}/summary", 404, {}),
        ("put", "/users/{id}/summary", 200, {"json": {"text": "One. Two."}}),
        ("put", "/users/{id}/summary", 428, {"json": {"text": "One. Two."}}),
        ("put", "/users/{id}/summary", 422, {"json": {}}),
        ("post", "/users/{id}/summary/rollback", 200, {"json": {"version": 1}}),
        ("post", "/users/{id}/summary/rebuild", 200, {}),
        ("get", "/users/{id}/summary/versions", 200, {}),
        ("get", "/users/{id}", 200, {}),
        ("get", "/users/{id}/export", 200, {}),
        ("get", "/users", 200, {}),
        ("get", "/keys", 403, {}),
        ("post", "/users/import", 200, {"json": {"users": [{"user_id": "z"}]}}),
        ("delete", "/users/{id}", 200, {}),
        ("get", "/users/{id}", 404, {}),
        ("get", "/healthz", 200, {}),
        ("get", "/readyz", 200, {}),
    ]
    for method, path, status, more in steps:
        reply = people.ask(method.upper(), path.replace("{id}", "ada"), **more)
        assert reply.status_code == status, (method, path, reply.text)
        validated(document(people), reply.json(), path, method, status)


def test_refusals_that_it_lists(people: People) -> None:
    whole = document(people)
    for route in ROUTES:
        (method,) = route.methods or ()
        if route.path not in ("/healthz", "/readyz"):
            reply = people.ask(method, route.path.replace("{id}", "ada"), None)
            validated(whole, reply.json(), route.path, method.lower(), 401)
