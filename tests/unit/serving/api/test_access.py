"""Keys, users and tenants over HTTP: who may do what, and what comes of it."""

from typing import Any

import pytest
from fastapi.routing import APIRoute
from serving_client import ADMIN, People

from popi.serving.api.access import router
from popi.serving.keys import create

ROUTES = [one for one in router.routes if isinstance(one, APIRoute)]


def made(people: People, **body: Any) -> Any:
    return people.ask("POST", "/keys", "admin", json=body)


def test_an_admin_makes_keys_of_every_scope(people: People) -> None:
    for body in ({"scope": "admin"}, {"scope": "app"}, {"scope": "user", "user_id": "a/b"}):
        reply = made(people, **body, tenant="acme")
        assert reply.status_code == 201, reply.text
        answer = reply.json()
        assert (answer["scope"], answer["tenant"], answer["user_id"]) == (body["scope"], "acme", body.get("user_id"))
        assert answer["key"].startswith(f"popi_{answer['key_id']}_") and answer["revoked_at"] is None
        path = "/users/a%2Fb" if body["scope"] == "user" else "/users/nobody"
        assert people.ask("GET", path, answer["key"]).status_code == 404  # it may ask


def test_a_tenant_is_made_with_its_first_key(people: People) -> None:
    header = {"x-popi-tenant": "new"}
    assert people.ask("GET", "/users", "admin", headers=header).json()["error"]["code"] == "no_tenant"
    assert made(people, scope="app", tenant="new").status_code == 201
    assert people.ask("GET", "/users", "admin", headers=header).json() == {"items": [], "next": None}
    assert people.ask("GET", "/tenants", "admin").json()["items"] == ["acme", "new", "other"]
    named = people.ask("POST", "/keys", "admin", headers=header, json={"scope": "app"}).json()
    own = people.ask("POST", "/keys", "admin", json={"scope": "app"}).json()
    assert (named["tenant"], own["tenant"]) == ("new", "default")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scope": "root"},
        {"scope": "user"},
        {"scope": "app", "user_id": "a"},
        {"scope": "user", "user_id": " "},
        {"scope": "app", "tenant": "-a"},
        {"scope": "app", "tenant": "a b"},
        {"scope": "app", "tenant": ""},
        {"scope": "app", "key": "popi_0"},
    ],
)
def test_what_is_no_key(people: People, body: dict[str, Any]) -> None:
    reply = made(people, **body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "not_valid")
    assert len(people.ask("GET", "/keys", "admin").json()["items"]) == 3


def test_keys_are_listed_page_by_page_without_their_text(people: People) -> None:
    keys = [people.app, people.other_app, people.ada, *(made(people, scope="app").json()["key"] for _ in range(3))]
    listed: list[Any] = []
    after = ""
    while True:
        reply = people.ask("GET", f"/keys?limit=4&after={after}", "admin")
        assert not any(key in reply.text for key in keys)
        listed += reply.json()["items"]
        after = reply.json()["next"]
        if after is None:
            break
    assert [one["key_id"] for one in listed] == [key.split("_")[1] for key in keys]
    assert [one["scope"] for one in listed[:3]] == ["app", "app", "user"] and listed[2]["user_id"] == "ada"
    of_acme = people.ask("GET", "/keys?tenant=acme", "admin").json()["items"]
    assert [one["key_id"] for one in of_acme] == [people.app.split("_")[1], people.ada.split("_")[1]]


def test_a_revoked_key_is_refused_at_once(people: People) -> None:
    assert people.ask("GET", "/users").status_code == 200  # it is known now
    key_id = people.app.split("_")[1]
    reply = people.ask("DELETE", f"/keys/{key_id}", "admin")
    assert reply.status_code == 200 and reply.json()["revoked_at"] is not None and people.app not in reply.text
    assert people.ask("GET", "/users").status_code == 401
    again = people.ask("DELETE", f"/keys/{key_id}", "admin")
    assert again.json() == reply.json()
    for other in ("env", "0" * 12, "%2F", "a%00b"):
        gone = people.ask("DELETE", f"/keys/{other}", "admin")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "no_key")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_only_admin_keys_reach_keys_and_tenants(people: People, route: APIRoute) -> None:
    (method,) = route.methods or ()
    path = route.path.replace("{key_id}", people.app.split("_")[1])
    body = {"json": {"scope": "user", "user_id": "ada", "tenant": "acme"}} if method == "POST" else {}
    before = people.ask("GET", "/keys", "admin").json()
    for key, status in ((None, 401), ("popi_0", 401), ("ada", 403), ("app", 403), ("other_app", 403)):
        reply = people.ask(method, path, key, **body)
        assert reply.status_code == status and "popi_" not in reply.text.replace("popi_…", "")
    assert people.ask("GET", "/keys", "admin").json() == before
    made_admin = create(people.gateway.store.database, "admin", "acme")[0]
    assert people.ask(method, path, made_admin, **body).status_code in (200, 201)


def test_users_are_listed_within_a_tenant(people: People) -> None:
    names = ["Ab", "ab", "ab/c", "abc", "b", "é"]
    for name in names:
        people.gateway.profiles.store.database.write(_add, "acme", name)
    people.gateway.profiles.store.database.write(_add, "other", "abz")

    def listed(query: str = "", key: str = "app", **more: Any) -> Any:
        return people.ask("GET", f"/users{query}", key, **more).json()

    assert sorted(listed()["items"]) == sorted(names) and listed()["next"] is None
    assert listed("?prefix=ab")["items"] == ["ab", "ab/c", "abc"]
    assert listed("?prefix=ab%2F")["items"] == ["ab/c"] and listed("?prefix=%25")["items"] == []
    first = listed("?prefix=ab&limit=2")
    assert first == {"items": ["ab", "ab/c"], "next": "ab/c"}
    assert listed("?prefix=ab&limit=2&after=ab%2Fc") == {"items": ["abc"], "next": None}
    assert listed(key="other_app")["items"] == ["abz"]
    assert listed(key="admin", headers={"x-popi-tenant": "other"})["items"] == ["abz"]
    assert people.ask("GET", "/users", "app", headers={"x-popi-tenant": "other"}).status_code == 403
    assert people.ask("GET", "/users", "ada").status_code == 403
    for query in ("limit=0", "limit=1001", "limit=x", "after=%00", "prefix=" + "x" * 201, "page=2"):
        reply = people.ask("GET", f"/users?{query}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "query"), query
    assert people.ask("GET", "/users", ADMIN).json() == {"items": [], "next": None}  # of `default`


def _add(connection: Any, tenant: str, name: str) -> None:
    from popi.serving.store import users

    users.lock(connection, tenant, name, 1.0)
