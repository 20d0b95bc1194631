"""The audit log in the store: what an entry names, before an erasure and after it."""

from collections.abc import Iterator
from typing import Any

import pytest
from serving_client import whole_store

from popi.serving.store import answers, audit, controls, erasure, expiry, users
from popi.serving.store.answers import StoredAnswer
from popi.serving.store.audit import ACTOR, Actor, Seen
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.merging import merge

TEAM = Actor("key:0123", "admin", "api")


@pytest.fixture(autouse=True)
def acting() -> Iterator[None]:
    token = ACTOR.set(TEAM)
    yield
    ACTOR.reset(token)


def make(database: Database, *user_ids: str, tenant: str = "t") -> None:
    for one in user_ids:
        database.write(controls.put, tenant, one, 1.0, Debounce(), use=True)


def seen(database: Database, now: float, *user_ids: str, tenant: str = "t") -> None:
    database.write(audit.note_seen, now, [Seen(TEAM, "read", tenant, one) for one in user_ids])


def told(database: Database, *of: Any) -> list[tuple[str, str | None]]:
    return [(row.action, row.user_id) for row in database.read(audit.list_entries, *of)]


def test_entries_are_listed_newest_first_by_tenant_and_user(database: Database) -> None:
    make(database, "a", "b")
    make(database, "a", tenant="other")
    seen(database, 10.0, "a", "b")
    seen(database, 11.0, "a", tenant="other")
    database.write(audit.note, 12.0, "edit_summary", "t", ["a"])
    assert told(database)[0] == ("edit_summary", "a")
    assert sorted(told(database, "t")) == [("edit_summary", "a"), ("read", "a"), ("read", "b")]
    assert told(database, "t", "a") == [("edit_summary", "a"), ("read", "a")]
    assert told(database, "other", "b") == []
    rows = database.read(audit.list_entries)
    assert [row.at for row in rows] == [12.0, 11.0, 10.0, 10.0]
    assert [row.entry for row in database.read(audit.list_entries, None, None, rows[1].entry)] == [
        r.entry for r in rows[2:]
    ]
    assert [len(page) for page in audit.pages(database.read)] == [4]
    assert (rows[0].actor, rows[0].role, rows[0].way) == ("key:0123", "admin", "api")


def test_nobody_acting_notes_nothing(database: Database) -> None:
    ACTOR.set(None)
    database.write(audit.note, 1.0, "edit_summary", "t", ["a"])
    assert told(database) == []


def test_a_change_that_fails_is_not_noted(database: Database) -> None:
    def write(connection: Any) -> None:
        audit.note(connection, 1.0, "edit_summary", "t", ["a"])
        raise ValueError

    with pytest.raises(ValueError):
        database.write(write)
    assert told(database) == []


def test_of_an_erased_user_a_hash_stays(database: Database) -> None:
    make(database, "someone@example.org", "b")
    seen(database, 10.0, "someone@example.org", "b")
    hashes = {row.user_id: row.user_hash for row in database.read(audit.list_entries)}
    database.write(erasure.erase, "t", "someone@example.org", 11.0)
    seen(database, 12.0, "someone@example.org")  # what was under way, and anybody's guess
    about = database.read(audit.list_entries, "t", "someone@example.org")
    assert [(row.action, row.user_id) for row in about] == [("read", None), ("erase", None), ("read", None)]
    assert {row.user_hash for row in about} == {hashes["someone@example.org"]}
    assert ("read", "b") in told(database)
    if database.kind == "sqlite":
        assert database.scrub()
    assert "someone@example.org" not in whole_store(database)


def test_of_a_user_who_was_merged_away_or_expired_a_hash_stays(database: Database) -> None:
    make(database, "new", "old")
    seen(database, 10.0, "old")
    database.write(merge, "t", "new", "old", 11.0, Debounce())
    assert told(database, "t", "old") == [("merge_away", None), ("read", None)]
    assert told(database, "t", "new") == [("merge", "new")]
    database.write(answers.put, "t", "guest", [StoredAnswer("a", "ask", "answer", 0)], 20.0, 20.0, 10.0)
    seen(database, 21.0, "guest")
    assert told(database, "t", "guest") == [("read", "guest")]
    database.write(expiry.expire, 31.0)
    assert database.read(users.find, "t", "guest") is None and told(database, "t", "guest") == [("read", None)]


def test_entries_go_when_their_time_is_over(database: Database) -> None:
    make(database, "a")
    for now in (100.0, 200.0):
        seen(database, now, "a")
    assert not database.read(audit.any_older, 100.0) and database.read(audit.any_older, 101.0)
    assert database.write(audit.expire, 200.0) == 1
    assert [row.at for row in database.read(audit.list_entries)] == [200.0]


def test_the_hash_is_keyed_by_the_store(database: Database) -> None:
    from hashlib import sha256

    make(database, "a")
    seen(database, 10.0, "a")
    (row,) = database.read(audit.list_entries)
    assert row.user_hash != sha256(b"1:t:a").hexdigest() and len(row.user_hash) == 64
