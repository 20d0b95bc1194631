"""What a person decides over the profile API: forbid, pause, and a page to do it on."""

from typing import Any
from urllib.parse import quote

from serving_client import People

from popi.serving.store import summaries


def put(people: People, version: int, **body: Any) -> Any:
    reply = people.ask("PUT", "/users/ada/summary", json=body, headers={"if-match": f'"{version}"'})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_forbidding_alone_takes_out_what_says_it_and_is_not_locked(people: People) -> None:
    clauses = [
        {"text": "Wants concise answers!", "locked": True},
        {"text": "wants concise answers"},
        {"text": "Always wants concise answers, she says."},
        {"text": "Cooks at home."},
    ]
    put(people, 0, clauses=clauses)
    found = put(people, 1, forbidden=[{"text": "Wants concise answers."}])
    assert [one["text"] for one in found["clauses"]] == ["Wants concise answers!", "Cooks at home."]
    assert found["text"] == "Wants concise answers! Cooks at home."
    assert [one["text"] for one in found["forbidden"]] == ["Wants concise answers."]


def test_the_form_without_forbidden_leaves_it_as_it_is(people: People) -> None:
    first = put(people, 0, text="One. Two.", forbidden=[{"text": "Likes cats."}])
    again = put(people, 1, text="Three.")
    assert again["forbidden"] == first["forbidden"] and again["text"] == "Three."
    assert put(people, 2, clauses=[{"text": "Four."}])["forbidden"] == first["forbidden"]
    kept = put(people, 3, clauses=[], forbidden=[{"text": "likes CATS"}, {"text": "Likes dogs."}])["forbidden"]
    assert kept[0]["id"] == first["forbidden"][0]["id"] and len(kept) == 2
    assert put(people, 4, forbidden=[])["forbidden"] == []


def test_what_is_read_can_be_written_back(people: People) -> None:
    first = put(people, 0, text="One. Two.", forbidden=[{"text": "Three."}])
    again = put(people, 1, clauses=first["clauses"], forbidden=first["forbidden"])
    assert (again["clauses"], again["forbidden"]) == (first["clauses"], first["forbidden"])


def test_going_back_brings_back_what_was_forbidden_then(people: People) -> None:
    put(people, 0, text="Likes cats.")
    put(people, 1, clauses=[], forbidden=[{"text": "Likes cats."}])
    back = people.ask("POST", "/users/ada/summary/rollback", json={"version": 1}).json()
    assert back["text"] == "Likes cats." and back["forbidden"] == []
    back = people.ask("POST", "/users/ada/summary/rollback", json={"version": 2}).json()
    assert back["text"] == "" and [one["text"] for one in back["forbidden"]] == ["Likes cats."]


def test_paused_personalisation_shows_the_proxy_no_summary(people: People) -> None:
    put(people, 0, text="Likes cats.")
    database = people.gateway.store.database
    assert people.ask("GET", "/users/ada").json()["paused"] is False
    assert people.ask("PUT", "/users/ada/paused", "ada", json={"paused": True}).json() == {"paused": True}
    assert people.ask("GET", "/users/ada").json()["paused"] is True
    assert database.read(summaries.current_text, "acme", "ada") is None
    assert people.ask("GET", "/users/ada/summary").json()["text"] == "Likes cats."
    people.ask("PUT", "/users/ada/paused", json={"paused": False})
    assert database.read(summaries.current_text, "acme", "ada") is not None
    assert people.ask("GET", "/users/ada/controls").json() == {"use": True, "learn": True}


def say(people: People, user: str, *texts: str) -> None:
    signals = [{"type": "statement", "text": text, "id": text} for text in texts]
    assert people.ask("POST", f"/users/{user}/signals", json={"signals": signals}).status_code == 200


def test_two_users_become_one(people: People) -> None:
    say(people, "ada", "tea", "rain")
    say(people, "Ada@Shop.example", "rain", "snow")
    put(people, 0, text="Likes tea.")
    reply = people.ask("POST", "/users/Ada@Shop.example/merge", json={"source": " ada "})
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    user = answer.pop("user")
    assert answer == {"signals": 1, "duplicates": 1, "summary_versions": 1, "answers": 0, "keys": 1}
    assert (user["user_id"], user["signals"], user["summary"]["text"]) == ("ada@shop.example", 3, "Likes tea.")
    assert user["renewal"]["state"] == "waiting"
    assert people.ask("GET", "/users/ada").status_code == 404
    # Her own key is of the user who stays, in this process at once.
    assert people.ask("GET", "/users/ada@shop.example", "ada").status_code == 200
    assert people.ask("GET", "/users/ada", "ada").status_code == 403
    listed = people.ask("GET", "/keys", "admin", headers={"x-popi-tenant": "acme"}).json()["items"]
    assert [one["user_id"] for one in listed if one["scope"] == "user"] == ["ada@shop.example"]
    exported = people.ask("GET", "/users/ADA@SHOP.example/export").json()
    assert [one["text"] for one in exported["signals"]] == ["tea", "rain", "snow"]


def test_a_merge_that_is_refused_changes_nothing(people: People) -> None:
    say(people, "ada", "tea")
    path = "/users/bert/merge"
    for key, source, status, code in (
        ("ada", "ada", 403, "not_allowed"),
        (None, "ada", 401, "not_authenticated"),
        ("other_app", "ada", 404, "no_user"),
        ("app", "nobody", 404, "no_user"),
        ("app", " bert", 422, "not_valid"),
        ("app", "", 422, "not_valid"),
        ("app", "a\x00", 422, "not_valid"),
    ):
        reply = people.ask("POST", path, key, json={"source": source})
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), (key, source)
    assert people.ask("GET", "/users/bert").status_code == 404  # nor was the one who would stay made
    assert people.ask("GET", "/users/ada").json()["signals"] == 1


def test_every_spelling_of_an_id_is_one_user(people: People) -> None:
    session = '{"device_id":"d1","account_uuid":"c1","session_id":"s%d"}'
    for spelt, normal in (
        (["Jose\u0301", "Jos\u00e9", " Jos\u00e9\u00a0"], "Jos\u00e9"),
        (["Ann@Shop.Example", "ann@shop.example"], "ann@shop.example"),
        ([session % 1, session % 2, "user_d1_account_c1_session_s3"], "c1"),
    ):
        for n, one in enumerate(spelt):
            users = [{"user_id": one, "signals": [{"type": "statement", "text": f"said {n}"}]}]
            assert people.ask("POST", "/users/import", json={"users": users}).status_code == 200
            assert people.ask("GET", f"/users/{quote(one, safe='')}").json()["user_id"] == normal
        assert people.ask("GET", f"/users/{quote(normal)}").json()["signals"] == len(spelt)
        key = people.ask("POST", "/keys", "admin", json={"scope": "user", "tenant": "acme", "user_id": spelt[0]}).json()
        assert key["user_id"] == normal
        assert people.ask("GET", f"/users/{quote(spelt[-1], safe='')}", key["key"]).status_code == 200
    assert people.ask("GET", "/users?prefix=Jose%CC%81").json()["items"] == ["Jos\u00e9"]
    assert people.ask("GET", "/users/a%E2%80%8Bb").json()["error"]["message"].endswith("U+200B as character 2")
