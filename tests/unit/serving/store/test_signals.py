import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popi.serving.store import erasure, jobs, signals, users
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.signals.types import PairSignal, Signal, StatementSignal

D = Debounce()


def said(text: str, name: str | None = None, time: float | None = None) -> StatementSignal:
    return StatementSignal(text=text, id=name, time=time)


def texts(found: list[Signal]) -> list[str]:
    return [one.text for one in found if isinstance(one, StatementSignal)]


def test_added_in_order_and_once(database: Database) -> None:
    given, new = database.write(signals.add, "t", "u", [said("b", "1"), said("a", "2")], 1.0, D)
    assert (given, new) == (["1", "2"], 2)
    given, new = database.write(signals.add, "t", "u", [said("a", "2"), said("c", "3"), said("d", "3")], 2.0, D)
    assert (given, new) == (["2", "3", "3"], 1)
    assert texts(database.read(signals.newest, "t", "u")) == ["b", "a", "c"]
    assert texts(database.read(signals.newest, "t", "u", 2)) == ["a", "c"]


def test_without_an_id_the_content_is_the_id(database: Database) -> None:
    same = [said("x", time=1.0), said("x", time=1.0), said("x", time=2.0), said("x")]
    given, new = database.write(signals.add, "t", "u", same, 1.0, D)
    assert new == 3 and given[0] == given[1] and len(set(given)) == 3
    assert database.write(signals.add, "t", "u", same, 2.0, D) == (given, 0)


def test_signals_keep_what_they_were(database: Database) -> None:
    signal = PairSignal(id="p", time="2026-01-31T08:00:00Z", prompt="NUL \x00, ünï", chosen="💚", rejected="é")
    database.write(signals.add, "t", "u", [signal], 1.0, D)
    assert database.read(signals.newest, "t", "u") == [signal]


def test_tenants_and_users_are_apart(database: Database) -> None:
    for tenant, user, text in (("t", "u", "mine"), ("t", "v", "theirs"), ("other", "u", "elsewhere")):
        database.write(signals.add, tenant, user, [said(text, "same id")], 1.0, D)
    assert texts(database.read(signals.newest, "t", "u")) == ["mine"]
    assert texts(database.read(signals.newest, "other", "u")) == ["elsewhere"]
    assert database.read(signals.newest, "other", "v") == []
    assert database.read(users.list_ids, "t") == ["u", "v"]
    assert database.read(users.list_ids, "t", "u") == ["v"]


def test_only_new_signals_call_for_a_renewal(database: Database) -> None:
    database.write(signals.add, "t", "u", [said("a", "1")], 1.0, D)
    job = database.write(jobs.claim, 1000.0, 10.0)
    assert job is not None and database.write(jobs.finish, job)
    database.write(signals.add, "t", "u", [said("a", "1")], 2.0, D)
    assert database.read(jobs.state, "t", "u", 2.0) is None


@pytest.mark.parametrize("many", [1200])
def test_many_at_once(database: Database, many: int) -> None:
    sent = [said(f"s{n}", f"id{n}") for n in range(many)]
    assert database.write(signals.add, "t", "u", sent, 1.0, D)[1] == many
    assert database.write(signals.add, "t", "u", sent, 1.0, D)[1] == 0


UPLOADS = st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.text("xyz", min_size=1)), max_size=6), max_size=6)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(uploads=UPLOADS, repeats=st.data())
def test_repeating_uploads_changes_nothing(database: Database, uploads: Any, repeats: Any) -> None:
    """However uploads are repeated, the user has the first signal of each id, in order of first sight."""
    database.write(erasure.erase, "t", "h", 0.0)
    expected: dict[str, str] = {}
    added = 0
    for number, upload in enumerate(uploads):
        sent = [said(text, name) for name, text in upload]
        again = repeats.draw(st.integers(0, number))
        for batch in (sent, [said(text, name) for name, text in uploads[again]]):
            added += database.write(signals.add, "t", "h", batch, 1.0, D)[1]
        for name, text in upload:
            expected.setdefault(name, text)
        for name, text in uploads[again]:
            expected.setdefault(name, text)
    found = database.read(signals.newest, "t", "h")
    assert [(one.id, json.loads(one.model_dump_json())["text"]) for one in found] == list(expected.items())
    assert added == len(expected)
