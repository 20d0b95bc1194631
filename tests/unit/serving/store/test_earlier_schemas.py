"""A store of every earlier schema step is brought to today's, with everything in it, and works.

The rows are written as each step's tables took them; today's gateway answers from them, by the key that was handed out
at the time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_client import ADMIN, STORES, empty_store
from sqlalchemy import Connection, insert, inspect, select, text
from starlette.testclient import TestClient

from popi.serving.app import Gateway
from popi.serving.keys import digest
from popi.serving.settings import read
from popi.serving.store import migrate as module
from popi.serving.store.database import Database
from popi.serving.store.migrate import known
from popi.serving.store.tables import metadata

LATEST = known()[-1].number
KEY = "popi_0123456789ab_" + "k" * 43
CLAUSE = '[{"id": "c1", "text": "Likes tea.", "support": [], "found": null}]'
OF_ADA = {"tenant": "acme", "user_id": "ada"}
JOB = {"revision": 1, "first_at": 4e12, "due_at": 4e12, "attempts": 0, "key_id": "0123456789ab", "bulk": 0}

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("tenants", {"tenant": "acme", "created_at": 1.0, "served_at": 2.0, "held_until": 0.0}),
    ("keys", {"key_id": "0123456789ab", "key_hash": digest(KEY), "scope": "app", "tenant": "acme", "created_at": 1.0}),
    (
        "users",
        OF_ADA
        | {"created_at": 2.0, "next_position": 2, "paused": 0, "learn_off": 0, "resumed_at": 0.0}
        | {"signals_read": 1, "base_version": 1, "base_read": 1, "rebuilt_at": 3.0, "expires_at": None},
    ),
    ("users", {"tenant": "acme", "user_id": "bob", "created_at": 2.0, "next_position": 0, "paused": 1, "learn_off": 1}),
    *(
        ("signals", OF_ADA | {"signal_id": f"s{n}", "position": n, "added_at": 3.0 + n, "signal": signal})
        for n, signal in enumerate(
            (
                '{"type": "statement", "text": "I drink tea.", "id": "s0"}',
                '{"type": "post", "text": "Tea \\u2013 again.", "id": "s1", "time": 5.0}',
            )
        )
    ),
    (
        "summaries",
        OF_ADA
        | {"version": 1, "text": "Likes tea.", "clauses": CLAUSE, "author": "model", "model": "m", "created_at": 4.0}
        | {"forbidden": "[]", "restores": None},
    ),
    (
        "summaries",
        OF_ADA
        | {"version": 2, "text": "Likes green tea.", "clauses": CLAUSE.replace("tea", "green tea"), "author": "user"}
        | {"model": None, "created_at": 5.0, "forbidden": '[{"id": "f1", "text": "Is ill."}]', "restores": None},
    ),
    ("jobs", OF_ADA | JOB),
    ("chores", {"chore": "rewrite", "due_at": 4e12}),
    (
        "answers",
        OF_ADA
        | {"answer_id": "chatcmpl-1", "prompt": "What?", "answer": "This.", "version": 2, "expires_at": 4e12}
        | {"upstream_id": "chatcmpl-1"},
    ),
    ("opened_links", {"link_hash": "a" * 64, "expires_at": 4e12}),
    (
        "sessions",
        OF_ADA | {"session_hash": "b" * 64, "key_id": None, "key_hash": None, "expires_at": 4e12, "member": None},
    ),
    (
        "usage",
        OF_ADA
        | {"key_id": "", "seconds": 86400, "began_at": 0.0, "renewals": 3, "calls": 4, "input_tokens": 5}
        | {"output_tokens": 6, "expires_at": 4e12},
    ),
    ("forbidden_words", OF_ADA | {"hash": "c" * 64, "words": "is ill"}),
    ("deleted_signals", OF_ADA | {"hash": "d" * 64}),
    ("opt_outs", {"hash": "e" * 64, "paused": 1, "learn_off": 0}),
    ("webhooks", {"name": "crm", "events": "summary.updated", "seconds": 60.0, "expires_at": 4e12}),
    (
        "outbox",
        OF_ADA
        | {"endpoint": "crm", "event_id": "e1", "event": "summary.updated", "position": 1, "version": 2}
        | {"merged_into": None, "happened_at": 5.0, "due_at": 4e12, "attempts": 0, "expires_at": 4e12},
    ),
    ("changes", {"position": 1, "kind": "user", "subject": "f" * 64}),
]
"""What a busy store holds, in today's columns; an earlier step takes those that it has."""


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a store without tables."""
    with empty_store(request.param, tmp_path, schema=False) as url:
        yield url


def fill_at(store_url: str, step: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Make a store as the popi of that step left it; returns the rows in it."""
    steps = [one for one in known() if one.number <= step]
    written = []
    with monkeypatch.context() as patched:
        patched.setattr(module, "known", lambda: steps)
        patched.setattr(module, "_then", lambda *_: None)  # an empty store has no user ids to rename
        database = Database.open(store_url)

    def write(connection: Connection) -> None:
        there = inspect(connection)
        columns = {name: {one["name"] for one in there.get_columns(name)} for name in there.get_table_names()}
        for table, row in ROWS:
            if table in columns:
                old = {name: value for name, value in row.items() if name in columns[table]}
                connection.execute(insert(metadata.tables[table]).values(**old))
                written.append((table, old))

    database.write(write)
    database.close()
    return written


def ask(database: Database, step: int) -> None:
    """The profile API of today, on what the store holds."""
    settings = read(None, upstream="http://127.0.0.1:9")
    with TestClient(Gateway(database, settings), headers={"authorization": f"Bearer {KEY}"}) as client:
        signals = client.get("/users/ada/signals").json()["items"]
        assert [(one["id"], one["text"]) for one in signals] == [("s1", "Tea \u2013 again."), ("s0", "I drink tea.")]
        current = client.get("/users/ada/summary").json()
        assert (current["version"], current["text"]) == (2, "Likes green tea.")
        versions = client.get("/users/ada/summary/versions").json()["versions"]
        assert [(one["version"], one["author"]) for one in versions] == [(2, "user"), (1, "model")]
        assert client.get("/users/ada/controls").json()["use"] is True
        assert client.get("/users/bob/controls").json()["learn"] is (step < 3)
        edited = client.put("/users/ada/summary", json={"text": "Likes tea most."}, headers={"if-match": '"2"'})
        assert edited.json()["version"] == 3
        assert client.post("/users/ada/signals", json={"signals": [{"type": "post", "text": "More."}]}).json()["added"]
        assert client.delete("/users/ada").status_code == 200


@pytest.mark.parametrize("step", range(1, LATEST + 1))
def test_a_store_of_an_earlier_step(step: int, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = fill_at(store_url, step, monkeypatch)
    monkeypatch.setenv("POPI_ADMIN_KEY", ADMIN)
    database = Database.open(store_url)
    assert database.read(lambda c: [row.number for row in c.execute(select(module.migrations))]) == [
        one.number for one in known()
    ]
    now = {
        name: [dict(row._mapping) for row in database.read(lambda c, table=table: list(c.execute(select(table))))]
        for name, table in metadata.tables.items()
    }
    for table, row in written:
        assert any(row.items() <= there.items() for there in now[table]), (table, row, now[table])
    bob = next(one for one in now["users"] if one["user_id"] == "bob")
    assert (bob["paused"], bob["learn_off"]) == ((1, 1) if step >= 3 else (0, 0))

    if step in (1, 8, LATEST):  # the rows are the same after every step, as was just seen
        ask(database, step)
    database.close()


def test_rows_stand_in_every_table_that_keeps_something(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that a later step brings gets a row above: otherwise its steps would be tested empty."""
    fill_at(store_url, LATEST, monkeypatch)
    database = Database.open(store_url)
    own = {"popi_migrations", "settings", "erasures", "audit", "processes", "fences"}  # written by popi itself
    names = set(metadata.tables) - own
    empty = [
        name
        for name in sorted(names)
        if not database.read(lambda c, name=name: c.execute(text(f"SELECT count(*) FROM {name}")).scalar())
    ]
    database.close()
    assert empty == []
