"""Who read or changed whom, as the profile API, the pages and the command line note it."""

import json
import re
import time
from typing import Any

import pytest
from serving_client import ADMIN, People, gateway_client
from typer.testing import CliRunner

from popi.cli import app
from popi.serving.keys import create
from popi.serving.settings import AuditSettings
from popi.serving.store import audit
from popi.serving.store.database import Database


def entries(people: People, query: str = "", least: int = 0) -> list[dict[str, Any]]:
    """The log, oldest first, once it has so many entries: reads are noted a moment later."""
    give_up = time.monotonic() + 30
    while True:
        reply = people.ask("GET", f"/audit?limit=1000{query}", "admin")
        assert reply.status_code == 200, reply.text
        if len(reply.json()["items"]) >= least:
            return list(reversed(reply.json()["items"]))
        assert time.monotonic() < give_up, reply.text
        time.sleep(0.05)


def actions(found: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    return [(one["role"], one["action"], one["user_id"]) for one in found]


def test_what_apps_users_and_the_team_do_by_the_api(people: People) -> None:
    say = {"signals": [{"type": "statement", "text": "I like tea", "id": "s"}]}
    acme = {"x-popi-tenant": "acme"}
    assert people.ask("POST", "/users/ada/signals", json=say).status_code == 200
    assert people.ask("PUT", "/users/ada/summary", "ada", json={"text": "Likes tea."}).status_code == 200
    assert people.ask("PUT", "/users/ada/summary", "ada", json={"text": "x"}).status_code == 428  # not done, not noted
    assert people.ask("PUT", "/users/ada/controls", "admin", json={"learn": True}, headers=acme).status_code == 200
    assert people.ask("DELETE", "/users/ada/signals/s", "ada").status_code == 200
    assert people.ask("POST", "/users/import", json={"users": [{"user_id": "ben", **say}]}).status_code == 200
    for _ in range(5):
        assert people.ask("GET", "/users/ben").status_code == 200  # not of ada: a read after a deletion counts
    assert people.ask("GET", "/users/ada/export", "ada").status_code == 200
    assert people.ask("GET", "/users/nobody", "ada").status_code == 403
    assert people.ask("GET", "/users/nobody").status_code == 404
    found = entries(people, least=7)
    assert actions(found)[:5] == [
        ("app", "add_signals", "ada"),
        ("user", "edit_summary", "ada"),
        ("admin", "set_controls", "ada"),
        ("user", "delete_signal", "ada"),
        ("app", "import", "ben"),
    ]
    assert sorted(actions(found)[5:]) == [("app", "read", "ben"), ("user", "export", "ada")]  # five reads are one
    assert {one["channel"] for one in found} == {"api"} and found[2]["actor"] == "key:env"
    assert found[0]["actor"] == "key:" + people.app.split("_")[1]


def test_the_log_is_for_admin_keys_and_paged(people: People) -> None:
    for user in ("a", "b", "c"):
        people.ask("PUT", f"/users/{user}/controls", json={"use": True})
    for key in ("app", "ada"):
        assert people.ask("GET", "/audit", key).status_code == 403
    assert people.ask("GET", "/audit", None).status_code == 401
    first = people.ask("GET", "/audit?limit=2", "admin").json()
    rest = people.ask("GET", f"/audit?limit=2&after={first['next']}", "admin").json()
    assert [one["user_id"] for one in first["items"] + rest["items"]] == ["c", "b", "a"] and rest["next"] is None
    assert [one["user_id"] for one in entries(people, "&tenant=acme&user=b")] == ["b"]
    assert entries(people, "&tenant=other") == []
    assert people.ask("GET", "/audit?user=b", "admin").json()["error"]["code"] == "query"
    assert people.ask("GET", "/audit?tenant=acme&user=%20", "admin").json()["error"]["code"] == "user_id"


def test_an_erasure_leaves_a_hash(people: People) -> None:
    people.ask("PUT", "/users/ada%40example.org/controls", json={"use": False})
    people.ask("GET", "/users/ada%40example.org")
    entries(people, least=2)
    assert people.ask("DELETE", "/users/ada%40example.org", "app").status_code == 200
    assert "ada@example.org" not in json.dumps(entries(people))
    about = entries(people, "&tenant=acme&user=ada%40example.org")
    assert [(one["action"], one["user_id"]) for one in about] == [
        ("set_controls", None),
        ("read", None),
        ("erase", None),
    ]
    assert len({one["user_hash"] for one in about}) == 1


def test_a_read_under_way_as_its_user_is_erased_names_nobody(people: People) -> None:
    people.ask("PUT", "/users/eve/controls", json={"use": True})
    people.ask("GET", "/users/eve")
    people.ask("DELETE", "/users/eve")
    about = entries(people, "&tenant=acme&user=eve", least=3)
    assert sorted(one["action"] for one in about) == ["erase", "read", "set_controls"]
    assert {one["user_id"] for one in about} == {None}


def test_pages_note_the_user_and_the_team(people: People) -> None:
    people.ask("PUT", "/users/ada/summary", json={"text": "Likes tea."})
    url = people.ask("POST", "/users/ada/link").json()["url"]
    people.client.get("/me?" + url.split("?")[1])
    people.client.post("/admin/sign-in", data={"key": ADMIN})
    text = people.client.get("/admin/users/acme/ada").text
    form = dict(re.findall(r'name="(csrf|version)" value="([^"]*)"', text)) | {"text": "Likes cake."}
    people.client.post("/admin/users/acme/ada/add", data=form, follow_redirects=False)
    people.client.get("/admin?tenant=acme")
    found = [one for one in entries(people, least=6) if one["channel"] == "page"]
    assert sorted({(one["actor"], one["role"], one["action"], one["user_id"]) for one in found}, key=str) == [
        ("key:env", "admin", "edit_summary", "ada"),
        ("key:env", "admin", "list", None),
        ("key:env", "admin", "read", "ada"),
        ("page", "user", "read", "ada"),
    ]
    assert {"app link", "app edit_summary"} <= {f"{one['role']} {one['action']}" for one in entries(people)}

    # The team reads it, and takes it along.
    page = people.client.get("/admin/activity?tenant=acme&user=ada").text
    assert page.count("edit summary") == 2 and "/admin/users/acme/ada" in page
    assert "Nothing is noted." in people.client.get("/admin/activity?tenant=other").text
    export = people.client.get("/admin/activity/export?tenant=acme&user=ada")
    lines = [json.loads(line) for line in export.text.splitlines()]
    assert lines == list(reversed(entries(people, "&tenant=acme&user=ada"))) and len(lines) >= 5
    assert "attachment" in export.headers["content-disposition"]


def test_the_command_line_notes_what_it_does_and_prints_the_log(people: People, store_url: str) -> None:
    people.ask("PUT", "/users/ada/summary", json={"text": "Likes tea."})
    run = CliRunner()

    def popi(*words: str) -> str:
        done = run.invoke(app, [*words, "--store", store_url], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    acme = ("--tenant", "acme")
    for words in (
        ("users", "list", *acme),
        ("users", "show", "ada", *acme),
        ("users", "export", *acme, "--targets", "0"),
        ("users", "controls", "ada", *acme, "--no-use"),
        ("users", "rebuild", "ada", *acme),
        ("users", "delete", "ada", *acme, "--version", "1"),
        ("users", "merge", "ada", "--into", "new", *acme),
        ("users", "erase", "new", *acme),
    ):
        popi(*words)
    lines = [json.loads(line) for line in popi("audit", *acme).splitlines()]
    mine = [one for one in reversed(lines) if one["channel"] == "cli"]
    done = ["list", "read", "export", "set_controls", "rebuild", "delete_version", "merge", "merge_away", "erase"]
    assert sorted(one["action"] for one in mine) == sorted(done)
    assert {one["role"] for one in mine} == {"operator"} and all(one["actor"].startswith("cli:") for one in mine)
    assert "ada" not in {one["user_id"] for one in lines}  # merged away, and erased with the other
    about = popi("audit", *acme, "--user", "ada").splitlines()
    assert len(about) == 7


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        (AuditSettings(retention_days=0), []),
        (AuditSettings(roles=("admin",)), ["admin"]),
        (AuditSettings(), ["app", "admin"]),
    ],
)
def test_what_is_noted_is_a_setting(
    given: AuditSettings, noted: list[str], store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POPI_ADMIN_KEY", ADMIN)
    with gateway_client(Database.open(store_url), audit=given) as people:
        for key in ("app", "admin"):
            header = {"x-popi-tenant": "acme"}
            assert people.ask("PUT", "/users/ada/controls", key, json={"use": True}, headers=header).status_code == 200
        assert [one["role"] for one in entries(people)] == noted


def test_old_entries_go(people: People) -> None:
    database = people.gateway.store.database
    key = create(database, "admin")[0]
    people.ask("PUT", "/users/ada/controls", key, json={"use": True})
    assert len(entries(people)) == 1
    portal = people.client.portal
    assert portal is not None
    portal.call(people.gateway.profiles.expire_audit, 30.0)
    assert len(entries(people)) == 1
    portal.call(people.gateway.profiles.expire_audit, 0.0)
    assert entries(people) == [] and not database.read(audit.any_older, 1e12)
