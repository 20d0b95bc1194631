import threading

import pytest

from popi.profiles.fields import StoredClause
from popi.serving.interfaces import StoredSummary
from popi.serving.store import controls, summaries
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.summaries import VersionConflict


def put(database: Database, text: str, expected: int | None, user: str = "u", tenant: str = "t") -> int:
    clauses = [StoredClause(id="c", text=text, locked=True, signals=("s",), author="user")]
    return database.write(summaries.put, tenant, user, text, clauses, "user", 5.0, expected=expected).version


def test_versions_count_up(database: Database) -> None:
    assert database.read(summaries.current_text, "t", "u") is None
    assert [put(database, "a", 0), put(database, "b", 1), put(database, "c", None)] == [1, 2, 3]
    assert database.read(summaries.current_text, "t", "u") == StoredSummary("c", 3)
    current = database.read(summaries.current, "t", "u")
    assert current is not None and current.clauses == (
        StoredClause(id="c", text="c", locked=True, signals=("s",), author="user"),
    )
    assert [one.version for one in database.read(summaries.versions, "t", "u")] == [3, 2, 1]


def test_another_version_is_a_conflict_and_writes_nothing(database: Database) -> None:
    put(database, "a", 0)
    for expected in (0, 2):
        with pytest.raises(VersionConflict) as caught:
            put(database, "b", expected)
        assert caught.value.current == 1
    assert database.read(summaries.current_text, "t", "u") == StoredSummary("a", 1)


def test_tenants_are_apart(database: Database) -> None:
    put(database, "a", 0)
    assert put(database, "b", 0, tenant="other") == 1
    assert database.read(summaries.current_text, "t", "u") == StoredSummary("a", 1)


def test_an_empty_summary_personalises_nothing(database: Database) -> None:
    put(database, "a", 0)
    put(database, "", 1)
    assert database.read(summaries.current_text, "t", "u") is None


def test_of_many_at_once_each_gets_what_one_by_one_gets(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "USERS_PER_QUERY", 2)
    put(database, "a", 0)
    put(database, "a again", 1)
    put(database, "of another tenant", 0, tenant="other")
    for user, texts in (("empty", ("x", "")), ("paused", ("x",)), ("v", ("x", "y", "z"))):
        for version, text in enumerate(texts):
            put(database, text, version, user=user)
    database.write(controls.put, "t", "paused", 1.0, Debounce(), use=False)
    wanted = {("t", user) for user in ("u", "empty", "paused", "v", "nobody")} | {("other", "u"), ("none", "u")}
    one_by_one = {key: found for key in wanted if (found := database.read(summaries.current_text, *key)) is not None}
    assert database.read(summaries.current_texts, wanted) == one_by_one
    assert one_by_one == {
        ("t", "u"): StoredSummary("a again", 2),
        ("t", "v"): StoredSummary("z", 3),
        ("other", "u"): StoredSummary("of another tenant", 1),
    }
    assert database.read(summaries.current_texts, [("t", "u")]) == {("t", "u"): StoredSummary("a again", 2)}
    assert database.read(summaries.current_texts, [("t", "paused")]) == {}


@pytest.mark.parametrize(("keep", "left"), [((4, 10**6), [7, 6, 5, 4]), ((100, 320), [7, 6, 5]), ((100, 1), [7, 6])])
def test_old_versions_go(database: Database, keep: tuple[int, int], left: list[int]) -> None:
    for n in range(7):
        database.write(summaries.put, "t", "u", "x" * 100, [], "model", 1.0, expected=n, keep=keep)
    kept = database.read(summaries.versions, "t", "u")
    assert [one.version for one in kept] == left


def test_versions_are_read_in_pages(database: Database) -> None:
    for n in range(7):
        database.write(summaries.put, "t", "u", "x" * 100, [], "model", 1.0, expected=n)
    first = database.read(summaries.versions, "t", "u", max_characters=250)
    assert [one.version for one in first] == [7, 6, 5]
    assert [one.version for one in database.read(summaries.versions, "t", "u", below=5, limit=2)] == [4, 3]


def test_of_two_who_saw_the_same_version_one_writes(database: Database) -> None:
    put(database, "start", 0)
    won: list[str] = []
    gate = threading.Barrier(8)

    def edit(name: str) -> None:
        gate.wait()
        try:
            put(database, name, 1)
            won.append(name)
        except VersionConflict:
            pass

    threads = [threading.Thread(target=edit, args=(f"e{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert database.read(summaries.current_text, "t", "u") == StoredSummary(won[0], 2)
