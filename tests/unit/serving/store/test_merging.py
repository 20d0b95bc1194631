"""Two users become one: every row, the order of signals, what renewals read next, and many who do it at once."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import select

from popi.profiles.fields import Forbidden, StoredClause
from popi.profiles.forbidden import ban
from popi.serving.keys import create
from popi.serving.store import (
    answers,
    controls,
    erasure,
    forbidden,
    jobs,
    keys,
    sessions,
    signals,
    summaries,
    tables,
    usage,
    users,
)
from popi.serving.store.answers import StoredAnswer
from popi.serving.store.controls import Switches
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.merging import Moved, merge
from popi.serving.store.sessions import SessionRecord
from popi.serving.store.tables import metadata
from popi.serving.store.usage import DAY, Quota
from popi.signals.types import StatementSignal

D = Debounce(quiet_s=10, max_wait_s=25)


def say(database: Database, user: str, at: float, *ids: str) -> None:
    database.write(signals.add, "t", user, [StatementSignal(text=f"{user} {one}", id=one) for one in ids], at, D)


def put(database: Database, user: str, at: float, text: str, author: str = "model", locked: bool = False) -> None:
    clauses = [StoredClause(id="c", text=text, locked=locked, author=author)]  # type: ignore[arg-type]
    database.write(summaries.put, "t", user, text, clauses, author, at, expected=None, model="m")


def ids(database: Database, user: str) -> list[str | None]:
    return [one.id for one in database.read(signals.newest, "t", user)]


def texts(database: Database, user: str) -> list[str]:
    return [one.text for one in database.read(summaries.versions, "t", user)]


def test_every_row_moves_and_none_stays(database: Database) -> None:
    say(database, "old", 1.0, "a", "b")
    say(database, "new", 2.0, "b", "c")
    put(database, "old", 3.0, "Old.")
    kept = [StoredAnswer("r1", "q", "of old", 1), StoredAnswer("r2", "q", "of old", 0)]
    database.write(answers.put, "t", "old", kept, 3.0, 3.0, 1e9)
    database.write(answers.put, "t", "new", [StoredAnswer("r2", "q", "of new", 0)], 3.0, 3.0, 1e9)
    _, key, _ = create(database, "user", "t", "old")
    database.write(sessions.add, SessionRecord("hash", "t", "old", None, None, 1e12))
    for user, times in (("old", 2), ("new", 3)):
        for _ in range(times):
            database.write(usage.charge, [Quota("user_quota", ("t", user, ""), DAY)], 5.0)
    database.write(users.lock, "t", "bystander", 1.0)
    say(database, "bystander", 1.0, "a")

    assert database.write(merge, "t", "new", "old", 6.0, D) == Moved(1, 1, 1, 1, 1)
    assert ids(database, "new") == ["a", "b", "c"]
    assert [one.text for one in database.read(signals.newest, "t", "new")][1:] == ["new b", "new c"]
    assert texts(database, "new") == ["Old."]
    found = {one: database.read(answers.find, "t", "new", one, 6.0) for one in ("r1", "r2")}
    assert {one: kept.answer for one, kept in found.items() if kept} == {"r1": "of old", "r2": "of new"}
    moved = database.read(keys.find, key.key_id)
    assert moved is not None and moved.user_id == "new"
    counted = select(usage.usage.c.user_id, usage.usage.c.renewals)
    assert database.read(lambda c: [tuple(row) for row in c.execute(counted)]) == [("new", 5)]
    person = database.read(users.find, "t", "new")
    assert person is not None and person.created_at == 1.0
    assert database.read(users.find, "t", "bystander") is not None and ids(database, "bystander") == ["a"]
    for table in metadata.tables.values():  # no row of theirs, in whatever table
        if "user_id" in table.c:
            left = select(table).where(table.c.user_id == "old")
            assert database.read(lambda c, left=left: c.execute(left).all()) == [], table.name
    assert database.read(erasure.erased_since, "t", "old", 5.0)
    assert database.write(merge, "t", "new", "old", 7.0, D) is None


def test_into_nobody_is_another_name(database: Database) -> None:
    """Nothing has changed that a renewal would have to read again."""
    say(database, "old", 1.0, "a")
    put(database, "old", 2.0, "Old.", "user")
    database.write(users.set_signals_read, "t", "old", 1)
    database.write(users.set_base, "t", "old", 1, 1)
    job = database.write(jobs.claim, 20.0, 60.0)
    assert job is not None
    database.write(lambda c: jobs.postpone(c, job, 99.0, now=2.0, error="no"))
    assert database.write(merge, "t", "new", "old", 3.0, D) == Moved(1, 0, 1, 0, 0)
    current = database.read(summaries.current, "t", "new")
    assert current is not None and (current.version, current.author, current.created_at) == (1, "user", 2.0)
    assert ids(database, "new") == ["a"]
    assert database.read(users.reading, "t", "new") == users.Reading(1, 1, 1, 1)
    state = database.read(jobs.state, "t", "new", 30.0)
    assert state is not None and (state.due_at, state.attempts, state.running) == (99.0, 1, False)
    say(database, "new", 4.0, "b")
    assert ids(database, "new") == ["a", "b"]


@pytest.mark.parametrize(("old_at", "first"), [(1.0, "New."), (9.0, "Old.")])
def test_the_newer_summary_stays_current_and_the_other_is_history(
    database: Database, old_at: float, first: str
) -> None:
    put(database, "new", 2.0, "Before.")
    put(database, "new", 3.0, "New.")
    put(database, "old", old_at, "Old.")
    forbidden = [Forbidden(id="f", text="Lives in Bonn.")]
    database.write(summaries.put, "t", "old", "Old.", [], "user", old_at, expected=1, forbidden=forbidden)
    database.write(answers.put, "t", "old", [StoredAnswer("r", "q", "a", 1)], 3.0, 3.0, 1e9)
    database.write(merge, "t", "new", "old", 10.0, D)
    assert texts(database, "new") == [first, "Old.", "Old.", "New.", "Before."]
    current = database.read(summaries.current, "t", "new")
    assert current is not None and [one.text for one in current.forbidden] == ["Lives in Bonn."]
    kept = database.read(answers.find, "t", "new", "r", 3.0)
    assert kept is not None
    seen = database.read(summaries.find, "t", "new", kept.version)
    assert seen is not None and seen.text == "Old."  # the version that the model saw, under its new number


@pytest.mark.parametrize("off", ["old", "new"])
def test_the_stricter_consent_holds(database: Database, off: str) -> None:
    for user in ("old", "new"):
        say(database, user, 1.0, user)
        put(database, user, 2.0, f"{user}.")
    database.write(controls.put, "t", off, 3.0, D, use=False)
    database.write(merge, "t", "new", "old", 10.0, D)
    assert database.read(summaries.current_text, "t", "new") is None
    assert database.read(controls.find, "t", "new") == Switches(use=False, learn=True)
    assert database.read(jobs.state, "t", "new", 10.0) is not None


@pytest.mark.parametrize("off", ["old", "new"])
def test_one_who_is_not_learned_from_keeps_no_answer_and_no_renewal(database: Database, off: str) -> None:
    for user in ("old", "new"):
        say(database, user, 1.0, user)
        database.write(answers.put, "t", user, [StoredAnswer(f"r of {user}", "q", "a", 0)], 1.0, 1.0, 1e9)
    database.write(controls.put, "t", off, 3.0, D, learn=False)
    assert database.write(merge, "t", "new", "old", 10.0, D) == Moved(1, 0, 0, 0, 0)
    assert database.read(controls.find, "t", "new") == Switches(use=True, learn=False)
    assert database.read(jobs.state, "t", "new", 10.0) is None
    assert all(database.read(answers.find, "t", "new", f"r of {user}", 10.0) is None for user in ("old", "new"))


def test_words_of_what_is_forbidden_and_deleted_signals_move_along(database: Database) -> None:
    secret = database.write(forbidden.ensure_secret)
    bans = {text: ban(text, secret, name="f") for text in ("of old", "of both", "Of both.", "of new")}
    for user, texts_, at in (("old", ("of old", "of both"), 2.0), ("new", ("of new", "Of both."), 3.0)):
        say(database, user, 1.0, user, f"deleted by {user}")
        listed = [bans[text].model_copy(update={"id": f"f{n}"}) for n, text in enumerate(texts_)]
        database.write(summaries.put, "t", user, "Tea.", [], "user", at, expected=None, model="m", forbidden=listed)
        database.write(forbidden.store_words, "t", user, {bans[text].hash: text for text in texts_})
        database.write(signals.delete_for_good, "t", user, f"deleted by {user}")
    database.write(merge, "t", "new", "old", 10.0, D)
    version = database.read(summaries.current, "t", "new")
    assert version is not None and len(version.forbidden) == 3
    rules = database.read(forbidden.rules, "t", "new", version.forbidden)
    assert sorted(rules.words) == ["Of both.", "of new", "of old"]
    say(database, "new", 11.0, "deleted by old", "deleted by new")  # an upload that is sent again
    assert sorted(map(str, ids(database, "new"))) == ["new", "old"]


def test_one_with_captured_answers_alone_goes_with_them_whoever_they_are_merged_into(database: Database) -> None:
    def until(user: str) -> float | None:
        found = select(tables.users.c.expires_at).where(tables.users.c.tenant == "t", tables.users.c.user_id == user)
        return database.read(lambda connection: connection.execute(found).scalar_one())

    for user, at in (("old", 1.0), ("other", 2.0)):
        database.write(users.lock_for_capture, "t", user, at, at + 100)
        database.write(answers.put, "t", user, [StoredAnswer(f"r of {user}", "q", "a", 0)], at, at, 100.0)
    database.write(merge, "t", "new", "old", 10.0, D)
    assert until("new") == 101.0
    database.write(merge, "t", "new", "other", 11.0, D)
    assert until("new") == 102.0
    say(database, "known", 1.0, "a")
    database.write(merge, "t", "known", "new", 12.0, D)
    assert until("known") is None


def test_signals_stand_in_the_order_of_their_time(database: Database) -> None:
    for n in range(6):
        say(database, ("old", "new")[n % 2], float(n), f"s{n}")
    database.write(users.set_signals_read, "t", "new", 3)
    database.write(merge, "t", "new", "old", 10.0, D)
    assert ids(database, "new") == [f"s{n}" for n in range(6)]
    assert database.read(users.reading, "t", "new") == users.Reading(6, None, None, None)  # the next renewal reads all


@pytest.mark.parametrize("writer", ["old", "new"])
def test_what_a_person_edited_is_not_read_again(database: Database, writer: str) -> None:
    """Else signals that were read before would say again what the person took out."""
    for n in range(6):
        say(database, ("old", "new")[n % 2], float(n), f"s{n}")
    read = {"old": ["s0", "s2"], "new": ["s1", "s3"]}[writer]
    database.write(users.set_signals_read, "t", writer, 2)
    put(database, writer, 8.0, "As I want it.", "user")
    database.write(merge, "t", "new", "old", 10.0, D)
    rest = [one for one in (f"s{n}" for n in range(6)) if one not in read]
    assert ids(database, "new") == [*read, *rest]
    assert database.read(users.reading, "t", "new") == users.Reading(6, 2, None, None)


def test_a_renewal_under_way_counts_for_nothing_and_a_new_one_is_due(database: Database) -> None:
    for user in ("old", "new"):
        say(database, user, 1.0, user)
    leases = [database.write(jobs.claim, 100.0, 60.0) for _ in range(2)]
    database.write(merge, "t", "new", "old", 110.0, D)
    assert [database.write(jobs.finish, one) for one in leases if one] == [False, False]
    state = database.read(jobs.state, "t", "new", 110.0)
    assert state is not None and (state.due_at, state.running) == (120.0, False)
    assert database.read(jobs.state, "t", "old", 110.0) is None


def test_export_and_erasure_find_all_of_both(database: Database) -> None:
    for user in ("old", "new"):
        say(database, user, 1.0, f"of {user}")
        put(database, user, 2.0, f"{user}.")
    database.write(merge, "t", "new", "old", 3.0, D)
    assert database.write(erasure.erase, "t", "old", 4.0) == erasure.Removed()
    assert ids(database, "new") == ["of new", "of old"]
    removed = database.write(erasure.erase, "t", "new", 5.0)
    assert (removed.users, removed.signals, removed.summary_versions) == (1, 2, 3)
    assert database.write(erasure.erase, "t", "new", 6.0) == erasure.Removed()


def at_once(*work: Callable[[], object]) -> list[Exception]:
    errors: list[Exception] = []

    def run(one: Callable[[], object]) -> None:
        try:
            one()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_merges_in_a_circle_beside_writers_lose_nothing(database: Database) -> None:
    """Everybody writes for everybody while three users are merged round and round; every signal is somewhere, once."""
    names = ("a", "b", "c")
    for one in names:
        say(database, one, 0.0, f"{one}-first")

    def writer(user: str) -> Callable[[], object]:
        return lambda: [say(database, user, float(n), f"{user}-{n}") for n in range(8)]

    def editor(user: str) -> Callable[[], object]:
        return lambda: [put(database, user, float(n), f"{user} {n}.", "user") for n in range(4)]

    def merger(user: str, source: str) -> Callable[[], object]:
        def rounds() -> None:
            for _ in range(4):
                database.write(lambda c: merge(c, "t", user, source, 9.0, D) or c.rollback())

        return rounds

    circle = [merger(*pair) for pair in (("a", "b"), ("b", "c"), ("c", "a"), ("b", "a"))]
    assert at_once(*circle, *map(writer, names), *map(editor, names)) == []
    for source in ("b", "c"):
        database.write(lambda c, source=source: merge(c, "t", "a", source, 20.0, D) or c.rollback())
    expected = {f"{one}-{n}" for one in names for n in ["first", *range(8)]}
    there = ids(database, "a")
    assert set(there) == expected and len(there) == len(expected)
    upto = database.read(users.reading, "t", "a").next_position
    positions = [row.position for row in database.read(signals.page_after, "t", "a")]
    assert positions == list(range(len(expected))) and upto == len(expected)
    said = texts(database, "a")
    assert {f"{one} {n}." for one in names for n in range(4)} <= set(said)
