"""Which key a renewal is charged to, and which renewals come last."""

from typing import Any

import pytest
from serving_client import People
from sqlalchemy import select

from popi.serving.store import answers
from popi.serving.store.answers import StoredAnswer
from popi.serving.store.tables import jobs

SIGNALS = {"signals": [{"type": "statement", "text": "i like tea."}]}


def job(people: People, user: str = "ada") -> Any:
    query = select(jobs).where(jobs.c.tenant == "acme", jobs.c.user_id == user)
    return people.gateway.store.database.read(lambda connection: connection.execute(query).one())


def key_id(people: People, key: str) -> str:
    return str(getattr(people, key)).split("_")[1]


@pytest.mark.parametrize("key", ["app", "ada"])
def test_signals_are_charged_to_their_key(people: People, key: str) -> None:
    assert people.ask("POST", "/users/ada/signals", key, json=SIGNALS).status_code == 200
    assert (job(people).key_id, job(people).bulk) == (key_id(people, key), 0)


def test_an_import_is_charged_to_its_key_and_comes_last(people: People) -> None:
    answer = people.ask("POST", "/users/import", json={"users": [{"user_id": "bo", **SIGNALS}]})
    assert answer.status_code == 200
    assert (job(people, "bo").key_id, job(people, "bo").bulk) == (key_id(people, "app"), 1)


def test_feedback_is_charged_to_its_key(people: People) -> None:
    people.ask("POST", "/users/ada/signals", json=SIGNALS)
    database = people.gateway.store.database
    database.write(lambda connection: connection.execute(jobs.delete()))
    kept = [StoredAnswer("a1", "ask", "answer", 0)]
    database.write(lambda c: answers.put(c, "acme", "ada", kept, database.now(c), database.now(c), 60.0))
    answer = people.ask("POST", "/users/ada/feedback", "ada", json={"answer": "a1", "thumbs": "up"})
    assert answer.status_code == 200 and job(people).key_id == key_id(people, "ada")


def test_rebuilds_are_charged_to_their_key_and_wait_for_the_one_before(people: People) -> None:
    people.ask("POST", "/users/ada/signals", "ada", json=SIGNALS)
    database = people.gateway.store.database
    dues = []
    for _ in range(3):
        database.write(lambda connection: connection.execute(jobs.delete()))  # as a worker does
        assert people.ask("POST", "/users/ada/summary/rebuild").json()["renewal"]["held_by"] is None
        dues.append(job(people).due_at)
    assert job(people).key_id == key_id(people, "app")
    assert dues[1] == dues[2] == pytest.approx(dues[0] + 300.0)
