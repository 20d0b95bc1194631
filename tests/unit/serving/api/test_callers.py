"""Every route with every kind of wrong caller: refused, and no byte of another user or tenant comes back."""

from typing import Any

import pytest
from fastapi.routing import APIRoute
from serving_client import ADMIN, People

from popi.serving.api.routes import router
from popi.serving.keys import create
from popi.serving.store import keys

ROUTES = [one for one in router.routes if isinstance(one, APIRoute)]
SECRET = "SECRET-WORDS-OF-BEN"
NOT_FOR_USERS = ("list_users", "import_users", "make_link", "merge_users")
BODIES: dict[str, Any] = {
    "add_signals": {"signals": [{"type": "statement", "text": "by an intruder"}]},
    "put_summary": {"text": "By an intruder."},
    "rollback": {"version": 1},
    "pause": {"paused": True},
    "merge_users": {"source": "nobody"},
    "set_controls": {"learn": False},
    "feedback": {"answer": "chatcmpl-1", "thumbs": "up"},
    "import_users": {"users": [{"user_id": "ben", "signals": [{"type": "statement", "text": "by an intruder"}]}]},
}


@pytest.fixture
def ben(people: People) -> People:
    """Ben, of tenant acme, whom nobody here but acme's app and admins may see."""
    sent = {"signals": [{"type": "statement", "text": SECRET, "id": SECRET}]}
    assert people.ask("POST", "/users/ben/signals", json=sent).status_code == 200
    assert people.ask("PUT", "/users/ben/summary", json={"text": SECRET}).status_code == 200
    return people


def knock(people: People, route: APIRoute, key: str | None, headers: dict[str, str] | None = None) -> Any:
    path = route.path.replace("{id}", "ben").replace("{version}", "1")
    path = path.replace("{signal_id}", SECRET).replace("{clause_id}", "c1").replace("{forbidden_id}", "f1")
    more = {"json": BODIES[route.name]} if route.name in BODIES else {}
    return people.ask(next(iter(route.methods or ())), path, key, headers={"if-match": '"1"'} | (headers or {}), **more)


def untouched(people: People) -> None:
    whole = people.ask("GET", "/users/ben/export").json()
    assert [one["text"] for one in whole["signals"]] == [SECRET]
    assert [one["version"] for one in whole["versions"]] == [1]
    assert whole["controls"] == {"use": True, "learn": True}


WRONG = ["none", "unknown", "revoked", "other tenant", "other user", "other tenant by header", "user of other tenant"]


def wrong_caller(ben: People, route: APIRoute, who: str) -> tuple[str | None, dict[str, str], set[int]]:
    """The caller's key, what else they send, and what they may be answered."""
    database = ben.gateway.store.database
    if who == "unknown":
        return "popi_" + "0" * 12 + "_" + "x" * 43, {}, {401}
    if who == "revoked":
        key, record, _ = create(database, "app", "acme")
        database.write(keys.revoke, record.key_id, 1.0)
        return key, {}, {401}
    own = {200, 404, 412}  # a user of the same name in their own tenant, whom they may have
    if who == "other tenant":
        return ben.other_app, {}, own
    if who == "other user":
        return ben.ada, {}, {403}
    if who == "user of other tenant":
        return create(database, "user", "other", "ben")[0], {}, {403} if route.name in NOT_FOR_USERS else own
    if who == "other tenant by header":
        return ben.other_app, {"x-popi-tenant": "acme"}, {403}
    return None, {}, {401}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_wrong_callers(ben: People, route: APIRoute) -> None:
    for who in WRONG:
        key, headers, allowed = wrong_caller(ben, route, who)
        reply = knock(ben, route, key, headers)
        assert reply.status_code in allowed, (who, reply.text)
        assert SECRET not in reply.text and SECRET not in str(reply.headers), who
        untouched(ben)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_the_right_callers(ben: People, route: APIRoute) -> None:
    own = create(ben.gateway.store.database, "user", "acme", "ben")[0]
    for key, headers in ((own, {}), (ADMIN, {"x-popi-tenant": "acme"}), (ben.app, {"x-popi-tenant": "acme"})):
        wanted = 403 if key == own and route.name in NOT_FOR_USERS else 200
        if route.name in ("feedback", "merge_users") and wanted == 200:
            wanted = 404  # nobody opted in to capture here, nor is there anybody to merge
        if route.name in ("delete_clause", "delete_words"):
            wanted = 404  # there is none of that id
        if route.name in ("erase_user", "put_summary", "rollback", "delete_version", "delete_signal") and key != own:
            continue  # they change what the next would find
        assert knock(ben, route, key, headers).status_code == wanted


def test_an_admins_own_tenant_is_not_another(ben: People) -> None:
    reply = ben.ask("GET", "/users/ben", "admin")
    assert reply.status_code == 404 and SECRET not in reply.text
    assert ben.ask("GET", "/users/ben", "admin", headers={"x-popi-tenant": "typo"}).status_code == 422


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "x-popi-key"])
def test_where_a_key_may_stand(ben: People, header: str) -> None:
    value = f"Bearer {ben.app}" if header == "authorization" else ben.app
    assert ben.client.get("/users/ben", headers={header: value}).status_code == 200


def test_two_keys_in_one_header_are_refused(ben: People) -> None:
    both = [("authorization", f"Bearer {ben.ada}"), ("authorization", f"Bearer {ben.app}")]
    assert ben.client.get("/users/ben", headers=both).status_code == 400


def test_no_key_no_word_of_what_there_is(ben: People) -> None:
    """A stranger can't tell a user who is there from one who is not."""
    replies = [ben.ask("GET", path, None) for path in ("/users/ben", "/users/nobody", "/users/a/b/c")]
    assert len({(reply.status_code, reply.text) for reply in replies}) == 1
