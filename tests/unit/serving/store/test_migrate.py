import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_client import STORES, empty_store
from sqlalchemy import Connection, inspect, text

from popi.errors import StoreError
from popi.serving.store import answers, controls, expiry, forbidden, keys, summaries, users
from popi.serving.store import migrate as module
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.migrate import Migration, known
from popi.serving.store.tables import metadata


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a store without tables."""
    with empty_store(request.param, tmp_path, schema=False) as url:
        yield url


def test_numbers_follow_each_other_and_no_step_is_changed() -> None:
    """A released step is never edited: what was applied must stay what is there. A new one gets a line here."""
    assert [(one.number, one.name, one.sha256[:12]) for one in known()] == [
        (1, "start", SHA_1),
        (2, "settings", SHA_2),
        (3, "people", SHA_3),
        (4, "renewals", SHA_4),
        (5, "bases", SHA_5),
        (6, "quotas", SHA_6),
        (7, "statistics", SHA_7),
        (8, "ids", SHA_8),
        (9, "answers", SHA_9),
        (10, "controls", SHA_10),
        (11, "forbidden", SHA_11),
        (12, "opt_outs", SHA_12),
        (13, "webhooks", SHA_13),
        (14, "webhook_statistics", SHA_14),
        (15, "undo", SHA_15),
        (16, "audit", SHA_16),
        (17, "changes", SHA_17),
    ]


SHA_1 = "0ba59f65332e"
SHA_2 = "4d13625c4153"
SHA_3 = "03be42aef026"
SHA_4 = "20080515daf5"
SHA_5 = "987a5a514d00"
SHA_6 = "6e57bfeffcd6"
SHA_7 = "3bb008f67063"
SHA_8 = "d13f9873d2f5"
SHA_9 = "d4e2c0cb0780"
SHA_10 = "d3230ddf93cb"
SHA_11 = "ebdc8eaeb4f0"
SHA_12 = "1b48f0ff962f"
SHA_13 = "beb2e53eb987"
SHA_14 = "84b416528b33"
SHA_15 = "811a610f69d5"
SHA_16 = "3a2d00f759dd"
SHA_17 = "27c840c26f4c"


def test_schema_is_what_the_queries_expect(store_url: str) -> None:
    database = Database.open(store_url)
    found = inspect(database._engine)
    assert set(found.get_table_names()) == set(metadata.tables)
    for name, table in metadata.tables.items():
        there = {column["name"]: column for column in found.get_columns(name)}
        assert set(there) == set(table.columns.keys())
        for column in table.columns:
            kinds = there[column.name]["type"], column.type
            assert kinds[0]._type_affinity is kinds[1]._type_affinity, f"{name}.{column.name}"
            if not column.primary_key:
                assert there[column.name]["nullable"] == column.nullable, f"{name}.{column.name}"
        assert found.get_pk_constraint(name)["constrained_columns"] == [one.name for one in table.primary_key]
    database.close()


def test_applied_once(store_url: str) -> None:
    Database.open(store_url).close()
    database = Database.open(store_url)
    assert database.read(lambda c: c.execute(text("SELECT count(*) FROM popi_migrations")).scalar()) == len(known())
    assert database.write(lambda c: module.migrate(c, 0.0)) == []
    database.close()


def test_many_may_start_together(store_url: str) -> None:
    errors: list[Exception] = []
    gate = threading.Barrier(6)

    def start() -> None:
        try:
            gate.wait()
            Database.open(store_url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_new_step_is_applied_to_an_old_store(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Database.open(store_url).close()
    new = Migration(
        known()[-1].number + 1, "mood", "-- a comment; with a semicolon\nALTER TABLE users ADD COLUMN mood TEXT;\n"
    )
    monkeypatch.setattr(module, "known", lambda: [*known(), new])
    database = Database.open(store_url)
    assert "mood" in {column["name"] for column in inspect(database._engine).get_columns("users")}
    database.close()


def test_who_was_there_before_the_switches(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who had paused is not learned from; who was captured alone goes with the answers, and these keep their id."""
    all_steps = known()
    monkeypatch.setattr(module, "known", lambda: [one for one in all_steps if one.number < 9])
    database = Database.open(store_url, clock=lambda: 100.0)
    database.write(keys.ensure_tenant, "t", 0.0)
    columns = "tenant, user_id, created_at, next_position, paused, resumed_at"
    row = f"INSERT INTO users ({columns}) VALUES ('t', '{{}}', 0, 0, {{}}, 0)"
    answer = "INSERT INTO answers VALUES ('t', '{}', 'chatcmpl-1', 'ask', 'told', 0, 150)"
    summary = (
        "INSERT INTO summaries VALUES ('t', 'wrote', 1, 'Tea.', '[]', 'user', NULL, 0, "
        '\'[{"id": "f", "text": "Has diabetes."}]\')'
    )
    statements = [row.format("paused", 1), row.format("captured", 0), answer.format("captured"), row.format("wrote", 0)]
    for statement in (*statements, summary):
        database.write(lambda c, statement=statement: c.exec_driver_sql(statement) and None)
    database.close()
    monkeypatch.undo()
    database = Database.open(store_url, clock=lambda: 100.0)
    assert database.read(controls.find, "t", "paused") == controls.Switches(use=False, learn=False)
    assert database.read(controls.find, "t", "captured") == controls.Switches()
    found = database.read(answers.find, "t", "captured", "chatcmpl-1", 100.0)
    assert found is not None and found.answer_id == found.upstream_id == "chatcmpl-1"
    version = database.read(summaries.current, "t", "wrote")
    assert version is not None
    rules = database.read(forbidden.rules, "t", "wrote", version.forbidden)
    assert rules.bans.hit("has diabetes") and rules.disclosed == () and rules.private.hit("has diabetes")
    for now, there in ((100.0, ["captured", "paused", "wrote"]), (150.0, ["paused", "wrote"])):
        database.write(expiry.expire, now)
        assert database.read(users.list_ids, "t") == there
    database.close()


def test_a_step_that_fails_leaves_nothing(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Database.open(store_url).close()
    bad = Migration(known()[-1].number + 1, "bad", "CREATE TABLE half (a TEXT);\nCREATE NONSENSE;\n")
    with monkeypatch.context() as patched:
        patched.setattr(module, "known", lambda: [*known(), bad])
        with pytest.raises(StoreError):
            Database.open(store_url)
    database = Database.open(store_url)
    assert "half" not in inspect(database._engine).get_table_names()
    database.close()


def test_a_store_of_a_newer_popi_is_refused(store_url: str) -> None:
    database = Database.open(store_url)
    database.write(lambda c: c.execute(text("INSERT INTO popi_migrations VALUES (999, 'later', 'x', 0)")) and None)
    database.close()
    with pytest.raises(StoreError, match="newer popi.*999"):
        Database.open(store_url)


def test_another_history_is_refused(store_url: str) -> None:
    database = Database.open(store_url)
    database.write(lambda c: c.execute(text("UPDATE popi_migrations SET sha256 = 'x' WHERE number = 1")) and None)
    database.close()
    with pytest.raises(StoreError, match="another build"):
        Database.open(store_url)


def later(name: str, sql: str, works_with: int | None = None) -> Migration:
    """A step after the last one."""
    header = "" if works_with is None else f"-- works with: {works_with}\n"
    return Migration(known()[-1].number + 1, name, header + sql)


def test_an_earlier_popi_works_on_a_store_whose_later_steps_allow_it(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During an upgrade, a process of the old version may be restarted after the new one has migrated the store."""
    here = known()
    old = Database.open(store_url)
    with monkeypatch.context() as newer:
        step = later("mood", "ALTER TABLE users ADD COLUMN mood TEXT;\n", here[-1].number)
        newer.setattr(module, "known", lambda: [*here, step])
        Database.open(store_url).close()
    old.write(keys.ensure_tenant, "t", 0.0)  # it is still running
    old.write(controls.put, "t", "ada", 1.0, Debounce(), use=False)
    old.close()
    again = Database.open(store_url)
    assert again.read(controls.find, "t", "ada") == controls.Switches(use=False)
    again.close()
    with monkeypatch.context() as newer:
        last = Migration(here[-1].number + 2, "gone", "ALTER TABLE users DROP COLUMN mood;\n")
        newer.setattr(module, "known", lambda: [*here, step, last])
        Database.open(store_url).close()
    with pytest.raises(StoreError, match=f"newer popi.*{last.number}"):
        Database.open(store_url)


def test_a_step_gives_way_to_others(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that waits for a lock makes everybody behind it wait: not for longer than LOCK_SECONDS."""
    database = Database.open(store_url)
    if database.kind == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    database.write(keys.ensure_tenant, "t", 0.0)
    database.write(users.lock, "t", "ada", 1.0)
    holds, ends = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        users.lock(connection, "t", "ada", 1.0)
        holds.set()
        assert ends.wait(60)

    holder = threading.Thread(target=database.write, args=(hold,))
    holder.start()
    assert holds.wait(30)
    step = later("mood", "ALTER TABLE users ADD COLUMN mood TEXT;\n", known()[-1].number)
    here = known()
    monkeypatch.setattr(module, "known", lambda: [*here, step])
    migrated: list[Database] = []
    starting = threading.Thread(target=lambda: migrated.append(Database.open(store_url)))
    starting.start()
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'")
    give_up = time.monotonic() + 30
    while not database.read(lambda c: c.execute(waits).scalar()):
        assert time.monotonic() < give_up
    began = time.monotonic()
    assert database.read(users.list_ids, "t") == ["ada"]  # waits behind the step, which gives up
    assert time.monotonic() - began < 5
    assert not migrated
    ends.set()
    holder.join()
    starting.join()
    assert "mood" in {column["name"] for column in inspect(database._engine).get_columns("users")}
    migrated[0].close()
    database.close()


def test_each_step_is_a_transaction_of_its_own(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Database.open(store_url).close()
    here = known()
    good = later("good", "CREATE TABLE good (a TEXT);\n", here[-1].number)
    bad = Migration(good.number + 1, "bad", f"-- works with: {good.number}\nCREATE NONSENSE;\n")
    with monkeypatch.context() as patched:
        patched.setattr(module, "known", lambda: [*here, good, bad])
        with pytest.raises(StoreError):
            Database.open(store_url)
        patched.setattr(module, "known", lambda: [*here, good])
        database = Database.open(store_url)
        assert "good" in inspect(database._engine).get_table_names()
        database.close()
