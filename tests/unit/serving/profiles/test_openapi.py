import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from serving_client import People

from popi.serving.profiles.openapi import document
from popi.serving.profiles.routes import ROUTES


def test_every_route_is_in_it() -> None:
    paths = document()["paths"]
    listed = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    assert listed == {(route.path, route.method) for route in ROUTES} | {("/healthz", "GET"), ("/readyz", "GET")}


def test_its_references_lead_somewhere() -> None:
    whole = document()
    names = set(re.findall(r"#/components/schemas/([^'\"]+)", str(whole)))
    assert names and names <= set(whole["components"]["schemas"])


def validated(answer: Any, path: str, method: str, status: int) -> None:
    whole = document()
    schema = whole["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
    Draft202012Validator(schema | {"components": whole["components"]}).validate(answer)


def test_answers_are_what_it_says(people: People) -> None:
    sent = {
        "signals": [{"type": "statement", "text": "a"}, {"type": "pair", "prompt": "p", "chosen": "a", "rejected": "b"}]
    }
    steps: list[tuple[str, str, int, dict[str, Any]]] = [
        ("post", "/users/{id}/signals", 200, {"json": sent}),
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
        ("post", "/users/import", 200, {"json": {"users": [{"user_id": "z"}]}}),
        ("delete", "/users/{id}", 200, {}),
        ("get", "/users/{id}", 404, {}),
        ("get", "/healthz", 200, {}),
        ("get", "/readyz", 200, {}),
    ]
    for method, path, status, more in steps:
        reply = people.ask(method.upper(), path.replace("{id}", "ada"), **more)
        assert reply.status_code == status, (method, path, reply.text)
        validated(reply.json(), path, method, status)
    assert people.ask("GET", "/openapi.json", None).json() == document()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_refusals_that_it_lists(people: People, route: Any) -> None:
    path = route.path.replace("{id}", "ada")
    reply = people.ask(route.method, path, None)
    validated(reply.json(), route.path, route.method.lower(), 401)
