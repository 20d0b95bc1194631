"""A store from before user ids had one form: everybody stays reachable, and nobody becomes somebody else."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from serving_client import STORES, empty_store
from sqlalchemy import Connection, delete, select

from popi.profiles.fields import StoredClause
from popi.profiles.user_id import normal_user_id
from popi.serving.keys import new_key
from popi.serving.store import keys, migrate, sessions, signals, summaries, users
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.sessions import SessionRecord
from popi.serving.store.tables import jobs as jobs_table
from popi.signals.types import StatementSignal

CLAUDE = "user_d1_account_c1_session_"
IDS = {
    "ann": "ann",
    " ann": "ann",
    "Bea@Shop.example": "bea@shop.example",
    "Jose\u0301": "Jos\u00e9",
    f"{CLAUDE}1": "c1",
    f"{CLAUDE}2": "c1",
    f"{CLAUDE}3": "c1",
    "ab": "ab",
    "a%09b": "a%09b",
    "a\tb": "a%09b~2",
}
"""What was stored, and what it is now. The last three are three people: none becomes one of the others."""


def fill(connection: Connection, n: int, user: str) -> None:
    """A signal, a summary that has read it, and a key."""
    signals.add(connection, "t", user, [StatementSignal(text=f"said by {user}", id=f"s{n}")], float(n), Debounce())
    clauses = [StoredClause(id="c", text=f"Summary {n}.")]
    summaries.put(connection, "t", user, f"Summary {n}.", clauses, "model", n, expected=None, model="m")
    users.set_signals_read(connection, "t", user, 1)
    connection.execute(delete(jobs_table))
    _, record = new_key("user", "t", "x", 0.0)
    keys.add(connection, replace(record, user_id=user, key_id=f"k{n}"))


@pytest.fixture(params=STORES)
def old_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As the popi before left it; the later in `IDS`, the newer."""
    with empty_store(request.param, tmp_path, schema=False) as url:
        filled(url, monkeypatch)
        yield url


def filled(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        before = [one for one in migrate.known() if one.name != "ids"]  # later ones, too: the queries need them
        patched.setattr(migrate, "known", lambda: before)
        database = Database.open(store_url)
    for tenant in ("t", "other"):
        database.write(keys.ensure_tenant, tenant, 0.0)
    for n, user in enumerate(IDS):
        database.write(fill, n, user)
    _, record = new_key("user", "other", "x", 0.0)
    database.write(keys.add, replace(record, user_id="Only@A.key", key_id="alone"))
    database.write(sessions.add, SessionRecord("hash", "t", " ann", None, None, 1e12))
    database.close()


def test_everybody_is_reachable_by_the_form_of_their_id(old_store: str) -> None:
    database = Database.open(old_store)
    listed = database.read(users.list_ids, "t")
    assert sorted(listed) == sorted(set(IDS.values()))
    for n, now in enumerate(IDS.values()):
        assert normal_user_id(now) == now
        ids = [one.id for one in database.read(signals.newest, "t", now)]
        assert ids == [f"s{m}" for m, other in enumerate(IDS.values()) if other == now] and f"s{n}" in ids
        key = database.read(keys.find, f"k{n}")
        assert key is not None and key.user_id == now
    alone = database.read(keys.find, "alone")
    assert alone is not None and alone.user_id == "only@a.key"
    assert database.read(users.list_ids, "other") == []
    assert database.read(sessions.find, "hash", 0.0) is None
    newest = {user: database.read(summaries.current, "t", user) for user in listed}
    assert {user: one.text for user, one in newest.items() if one} == {
        now: f"Summary {max(n for n, other in enumerate(IDS.values()) if other == now)}." for now in IDS.values()
    }
    # Who has another id alone is not renewed for it; who became one of several is.
    due = select(jobs_table.c.user_id, jobs_table.c.bulk)
    assert sorted(map(tuple, database.read(lambda c: c.execute(due).all()))) == [("ann", 1), ("c1", 1)]
    database.close()
    again = Database.open(old_store)
    assert again.read(users.list_ids, "t") == listed
    again.close()
