"""What a person decides over the profile API: forbid, pause, and a page to do it on."""

from typing import Any

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
