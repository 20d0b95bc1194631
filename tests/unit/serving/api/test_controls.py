"""The two switches: set before anything is known, and what each of them stops, over the profile API."""

from typing import Any

from serving_client import People, whole_store

from popi.serving.api.commands import rebuild
from popi.serving.store import answers, jobs, summaries, users
from popi.serving.store.answers import StoredAnswer

TEA = {"signals": [{"type": "statement", "text": "i like tea"}]}


def put(people: People, user: str = "ada", **switches: bool) -> Any:
    reply = people.ask("PUT", f"/users/{user}/controls", json=switches)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_both_are_on_for_somebody_unknown_and_asking_makes_nobody(people: People) -> None:
    assert people.ask("GET", "/users/eve/controls").json() == {"use": True, "learn": True}
    assert people.ask("GET", "/users/eve").status_code == 404
    for body in ({}, {"use": None}, {"use": 1}, {"use": True, "more": 1}):
        assert people.ask("PUT", "/users/eve/controls", json=body).status_code == 422
    assert people.ask("GET", "/users/eve").status_code == 404


def test_one_may_be_set_without_the_other(people: People) -> None:
    assert put(people, use=False) == {"use": False, "learn": True}
    assert put(people, learn=False) == {"use": False, "learn": False}
    assert put(people, use=True) == {"use": True, "learn": False}
    user = people.ask("GET", "/users/ada").json()
    assert user["controls"] == {"use": True, "learn": False} and user["paused"] is False
    assert people.ask("PUT", "/users/ada/paused", json={"paused": True}).json() == {"paused": True}
    whole = people.ask("GET", "/users/ada/export").json()
    assert whole["controls"] == {"use": False, "learn": False} and whole["paused"] is True


def test_an_opt_out_of_somebody_unknown_holds_for_all_that_comes(people: People) -> None:
    put(people, "eve", learn=False)
    assert people.ask("POST", "/users/eve/signals", json=TEA).json() == {
        "ids": [],
        "added": 0,
        "duplicates": 0,
        "ignored": 1,
    }
    imported = {"users": [{"user_id": one, **TEA, "summary": {"text": "Likes tea."}} for one in ("eve", "bo")]}
    told = people.ask("POST", "/users/import", json=imported).json()
    assert told == {"users": 2, "added": 1, "duplicates": 0, "summaries": 1, "ignored_users": 1}
    database = people.gateway.store.database
    captured = [StoredAnswer("a", "ask", "answer", 0)]
    assert (
        database.write(lambda c: answers.put(c, "acme", "eve", captured, database.now(c), database.now(c), 60.0)) == 0
    )
    told = people.ask("POST", "/users/eve/feedback", json={"answer": "a", "thumbs": "up"}).json()
    assert told == {"ids": [], "added": 0, "duplicates": 0, "ignored": 1}
    user = people.ask("GET", "/users/eve").json()
    assert (user["signals"], user["summary"], user["renewal"]) == (0, None, None)
    assert database.read(users.list_ids, "acme") == ["bo", "eve"]


def test_off_takes_back_what_was_under_way_and_on_reads_what_was_not_read(people: People) -> None:
    database = people.gateway.store.database
    people.ask("POST", "/users/ada/signals", json=TEA)
    job = database.write(jobs.claim, 1e12, 60.0)
    assert job is not None
    put(people, learn=False)
    assert not database.write(jobs.finish, job)  # what the worker writes counts no more
    assert people.ask("GET", "/users/ada").json()["renewal"] is None
    refused = people.ask("POST", "/users/ada/summary/rebuild")
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "learning_off"
    refused = people.ask("GET", "/users/ada/export?format=jsonl")  # to train on
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "learning_off"
    put(people, use=False)
    assert people.ask("GET", "/users/ada").json()["renewal"] is None
    put(people, learn=True)
    assert people.ask("GET", "/users/ada").json()["renewal"]["state"] == "waiting"
    database.write(rebuild, "acme", "ada", database.now)


def test_what_they_write_themselves_is_theirs_to_write(people: People) -> None:
    put(people, use=False, learn=False)
    assert people.ask("PUT", "/users/ada/summary", json={"text": "Likes tea."}).status_code == 200
    read = people.gateway.store.database.read
    assert read(summaries.current_text, "acme", "ada") is None
    put(people, use=True)
    found = read(summaries.current_text, "acme", "ada")
    assert found is not None and found.text == "Likes tea."


def test_a_user_key_sets_its_own(people: People) -> None:
    assert people.ask("PUT", "/users/ada/controls", "ada", json={"learn": False}).status_code == 200
    assert people.ask("PUT", "/users/bo/controls", "ada", json={"learn": False}).status_code == 403
    assert people.ask("GET", "/users/bo/controls", "ada").status_code == 403
    assert people.ask("GET", "/users/ada/controls", "ada").json()["learn"] is False


def test_what_is_off_stays_off_after_an_erasure_and_no_id_is_kept_for_it(people: People) -> None:
    name = "eve-who-opted-out"
    put(people, name, learn=False)
    put(people, "bo", use=True)
    for user in (name, "bo"):
        assert people.ask("DELETE", f"/users/{user}").json()["removed"]["users"] == 1
    database = people.gateway.store.database
    assert name not in whole_store(database) and people.ask("GET", f"/users/{name}").status_code == 404
    assert people.ask("GET", f"/users/{name}/controls").json() == {"use": True, "learn": False}
    assert people.ask("GET", "/users/bo/controls").json() == {"use": True, "learn": True}
    assert people.ask("DELETE", f"/users/{name}").json()["removed"]["users"] == 0  # again: it stays off
    imported = {"users": [{"user_id": name, **TEA, "summary": {"text": "Likes tea."}}]}
    assert people.ask("POST", "/users/import", json=imported).json()["ignored_users"] == 1
    assert people.ask("GET", f"/users/{name}").json()["summary"] is None
    assert people.ask("POST", f"/users/{name}/signals", json=TEA).json()["ignored"] == 1
    put(people, name, learn=True)
    assert people.ask("POST", f"/users/{name}/signals", json=TEA).json()["added"] == 1
    people.ask("DELETE", f"/users/{name}")
    assert people.ask("GET", f"/users/{name}/controls").json() == {"use": True, "learn": True}


def test_after_an_erasure_a_chat_is_not_captured_either(people: People) -> None:
    put(people, "eve", learn=False)
    people.ask("DELETE", "/users/eve")
    database = people.gateway.store.database
    one, began = [StoredAnswer("a", "ask", "answer", 0)], database.read(database.now) + 60.0
    assert database.write(lambda c: answers.put(c, "acme", "eve", one, began, began, 60.0)) == 0
    assert people.ask("GET", "/users/eve/controls").json()["learn"] is False
