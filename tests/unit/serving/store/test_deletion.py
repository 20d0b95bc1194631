"""What is deleted is in no row any more, and nobody who works meanwhile brings it back."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from serving_client import Clock, whole_store

from popi.profiles.fields import Forbidden, StoredClause
from popi.profiles.requests import ForbiddenEdit, SummaryEdit
from popi.serving.api.service import Profiles
from popi.serving.settings import RenewalSettings
from popi.serving.store import answers, controls, erasure, forbidden, jobs, signals, summaries, users
from popi.serving.store.answers import StoredAnswer
from popi.serving.store.database import Database
from popi.serving.store.deletion import Deleter, Deletion
from popi.serving.store.jobs import Debounce
from popi.serving.store.summaries import Version
from popi.serving.store.threads import Store
from popi.serving.worker.renewal import Worker
from popi.signals.types import InteractionSignal, PairSignal, StatementSignal
from popi.summary import Summary

D = Debounce(10, 30)
WHO = ("t", "u")


def clause(name: str, text: str, *reasons: str, **more: Any) -> StoredClause:
    return StoredClause(id=name, text=text, signals=reasons, attribution="named", **more)


def put(database: Database, *clauses: StoredClause, author: str = "model", now: float = 10.0) -> int:
    text = " ".join(one.text for one in clauses)
    write = partial(summaries.put, forbidden=None, model="m")
    return int(database.write(write, *WHO, text, clauses, author, now, expected=None).version)  # type: ignore[arg-type]


def say(database: Database, now: float = 1.0, **texts: str) -> None:
    sent = [StatementSignal(id=name, text=text) for name, text in texts.items()]
    database.write(signals.add, *WHO, sent, now, D)


def delete(database: Database, what: Callable[[Deleter], bool], now: float = 100.0) -> Deletion:
    def write(connection: Any) -> Deletion:
        assert users.lock_existing(connection, *WHO)
        deleting = Deleter(connection, *WHO, now, D)
        assert what(deleting)
        return deleting.done

    done = database.write(write)
    assert database.read(erasure.scrub_due) == now  # the bytes are to be overwritten
    database.scrub()
    return done


def versions(database: Database) -> dict[int, list[str]]:
    found: list[Version] = database.read(summaries.versions, *WHO)
    for one in found:
        assert one.text == " ".join(each.text for each in one.clauses)
    return {one.version: [each.text for each in one.clauses] for one in found}


def gone(database: Database, *words: str) -> bool:
    text = whole_store(database)
    return not any(word in text for word in words)


def test_a_signal_goes_with_what_rests_on_it_in_every_version(database: Database) -> None:
    say(database, one="i grow marmalade trees", two="i like tea")
    put(database, clause("c1", "Grows marmalade.", "one"))
    put(database, clause("c1", "Grows marmalade.", "one"), clause("c2", "Likes tea.", "two"))
    put(database, clause("c3", "Loves marmalade, with tea.", "two", "one"), clause("c2", "Likes tea.", "two"))
    assert not gone(database, "marmalade")
    done = delete(database, lambda deleting: deleting.signal("one"))
    assert done == Deletion(signals=1, clauses=2, rewritten=3, version=4)
    assert versions(database) == {4: ["Likes tea."], 2: ["Likes tea."], 1: []}
    assert gone(database, "marmalade")
    with pytest.raises(AssertionError):  # it is not there any more
        delete(database, lambda deleting: deleting.signal("one"))


def test_what_a_person_wrote_or_keeps_stays_and_forgets_its_reason(database: Database) -> None:
    say(database, one="i grow trees", two="i like tea")
    mine = clause("c2", "Grows pears.", "one", author="user")
    put(database, clause("c1", "Grows trees.", "one", locked=True), mine, clause("c3", "Has trees.", "one"))
    delete(database, lambda deleting: deleting.signal("one"))
    current = database.read(summaries.current, *WHO)
    assert current is not None and [(one.text, one.signals) for one in current.clauses] == [
        ("Grows trees.", ()),
        ("Grows pears.", ()),
    ]


def test_of_what_nobody_found_the_reasons_what_is_older_than_the_signal_stays(database: Database) -> None:
    put(database, clause("c1", "Likes tea."), now=5.0)
    say(database, 7.0, one="i grow trees", two="i like tea")
    put(database, clause("c1", "Likes tea."), clause("c2", "Grows trees."), clause("c3", "Cooks.", "two"), now=9.0)
    delete(database, lambda deleting: deleting.signal("one"))
    assert versions(database) == {3: ["Likes tea.", "Cooks."], 1: ["Likes tea."]}


def test_what_was_kept_of_the_same_chat_goes_with_a_signal(database: Database) -> None:
    chat = StoredAnswer("popi-1", "how do trees grow?", "slowly, with marmalade", 0)
    other = StoredAnswer("popi-2", "how do trees grow?", "fast", 0)
    third = StoredAnswer("popi-3", "and pears?", "in spring", 0)
    database.write(answers.put, *WHO, [chat, other, third], 1.0, 1.0, 1000.0)
    thumb = InteractionSignal(id="thumb", prompt=chat.prompt, response=chat.answer, rating=1.0)
    pair = PairSignal(id="pair", prompt=third.prompt, chosen="x", rejected=third.answer)
    database.write(signals.add, *WHO, [thumb, pair], 1.0, D)
    assert delete(database, lambda deleting: deleting.signal("thumb")).answers == 1
    assert gone(database, "marmalade")
    assert delete(database, lambda deleting: deleting.signal("pair")).answers == 1
    assert [one.answer_id for one in database.read(answers.newest_page, *WHO, 2.0)] == ["popi-2"]


def test_a_statement_goes_from_every_row(database: Database) -> None:
    say(database, one="i like trees", two="i like tea")
    put(database, clause("c1", "Has marmalade.", "one"), clause("c2", "Likes tea.", "two"))
    put(database, clause("c1", "Has marmalade, and a cough.", "one"), clause("c2", "Likes tea.", "two"))
    put(database, clause("c9", "has MARMALADE!", "one"), author="user")
    kept = [StoredAnswer("a", "why?", "since she has marmalade", 0), StoredAnswer("b", "why?", "no", 0)]
    database.write(answers.put, *WHO, kept, 1.0, 1.0, 1000.0)
    ban(database, ForbiddenEdit(text="has marmalade"))
    done = delete(database, lambda deleting: deleting.clause("c1", "user"))
    assert (done.clauses, done.rewritten, done.answers, done.signals) == (2, 3, 1, 0)
    assert versions(database) == {4: [], 3: [], 2: ["Likes tea."], 1: ["Likes tea."]}
    assert gone(database, "marmalade", "MARMALADE", "cough") and len(database.read(signals.newest, *WHO)) == 2
    current = database.read(summaries.current, *WHO)
    assert current is not None and current.author == "user" and len(current.forbidden) == 1  # it is forbidden still


def test_a_statement_goes_with_what_it_rests_on(database: Database) -> None:
    say(database, one="marmalade trees", two="i like tea", three="more")
    put(database, clause("c1", "Has trees.", "one"), clause("c2", "Likes tea.", "two", "one"))
    done = delete(database, lambda deleting: deleting.clause("c1", "user", with_signals=True))
    assert (done.signals, done.clauses, done.version) == (1, 2, 3) and versions(database) == {3: []}
    assert gone(database, "marmalade", "Has trees")


def ban(database: Database, *edits: ForbiddenEdit) -> None:
    current = database.read(summaries.current, *WHO)
    service = Profiles(Store(database), D)
    write = SummaryEdit(forbidden=list(edits))
    database.write(service._put, *WHO, write, "user", current.version if current is not None else 0)


def test_a_statement_is_deleted_and_never_said_again(database: Database, clock: Clock) -> None:
    say(database, one="i like tea")
    put(database, clause("c1", "Has marmalade.", "one"), clause("c2", "Likes tea.", "one"))
    delete(database, lambda deleting: deleting.clause("c1", "user", ban=True))
    assert gone(database, "marmalade")
    current = database.read(summaries.current, *WHO)
    assert current is not None and current.text == "Likes tea." and len(current.forbidden) == 1
    assert database.read(forbidden.words, *WHO) == {}

    class Model:
        renews = False

        def renewable(self, summary: str) -> bool:
            return False

        def summarize(self, heard: Any, temperature: float = 0.0, *, previous: Any = None) -> Summary:
            return Summary("has marmalade. Likes cake.", 3, model="fake")

    say(database, clock.now, two="and cake")
    clock.now += 100
    assert Worker(database, Model(), RenewalSettings()).run_one() == "renewed"
    assert versions(database)[3] == ["Likes cake."]


def test_the_words_of_what_is_forbidden_go_and_it_stays_forbidden(database: Database) -> None:
    put(database, clause("c1", "Has marmalade."), clause("c2", "Likes tea."))
    ban(database, ForbiddenEdit(text="has marmalade", send_to_model=True), ForbiddenEdit(text="Dogs."))
    assert versions(database)[2] == ["Likes tea."] and not gone(database, "has marmalade")
    current = database.read(summaries.current, *WHO)
    assert current is not None
    one = current.forbidden[0]
    assert set(database.read(forbidden.words, *WHO).values()) == {"has marmalade", "Dogs."}
    delete(database, lambda deleting: deleting.words(one.id, "user"))
    assert gone(database, "marmalade") and versions(database) == {2: ["Likes tea."], 1: ["Likes tea."]}
    rules = database.read(forbidden.rules, *WHO, current.forbidden)
    assert rules.bans.hit("Has marmalade.") and rules.disclosed == () and rules.words == ("Dogs.",)


def test_words_go_with_the_last_version_that_forbids_them(database: Database) -> None:
    put(database, clause("c1", "Likes tea."))
    ban(database, ForbiddenEdit(text="has marmalade"))
    ban(database)  # allowed again; version 2 can still be gone back to
    assert list(database.read(forbidden.words, *WHO).values()) == ["has marmalade"]
    delete(database, lambda deleting: deleting.version(2, "user"))
    assert database.read(forbidden.words, *WHO) == {} and gone(database, "marmalade")
    ban(database, ForbiddenEdit(text="has marmalade"))
    database.write(erasure.erase, *WHO, 200.0)
    database.scrub()
    assert gone(database, "marmalade")


def test_what_versions_of_an_older_popi_forbid_goes_too(database: Database) -> None:
    old = [Forbidden(id="f", text="Has marmalade.")]
    database.write(summaries.put, *WHO, "Likes tea.", [], "user", 1.0, expected=0, forbidden=old)
    delete(database, lambda deleting: deleting.words("f", "user"))
    assert gone(database, "marmalade")
    current = database.read(summaries.current, *WHO)
    assert current is not None
    assert database.read(forbidden.rules, *WHO, current.forbidden).bans.hit("has marmalade")


def test_a_version_goes_and_the_one_before_it_is_current(database: Database) -> None:
    for text in ("One.", "Two marmalades.", "Three.", "Four marmalades."):
        put(database, clause(f"c{text[:3]}", text))
    delete(database, lambda deleting: deleting.version(2, "user"))
    assert versions(database) == {4: ["Four marmalades."], 3: ["Three."], 1: ["One."]}
    done = delete(database, lambda deleting: deleting.version(4, "user"))
    assert versions(database) == {5: ["Three."], 1: ["One."]} and done.version == 5
    assert gone(database, "marmalades")
    below = database.read(summaries.below, *WHO, 5)
    assert below is not None and below.version == 1  # what "Undo" goes back to
    delete(database, lambda deleting: deleting.version(1, "user"))
    assert delete(database, lambda deleting: deleting.version(5, "user")).version == 6
    assert versions(database) == {6: []} and gone(database, "Three")


def test_a_renewal_under_way_writes_nothing_and_begins_anew(database: Database) -> None:
    for what in (
        lambda deleting: deleting.signal("one"),
        lambda deleting: deleting.clause("c2", "user"),
        lambda deleting: deleting.version(1, "user"),
    ):
        database.write(erasure.erase, *WHO, 50.0)
        say(database, one="i grow trees", two="i like tea")
        put(database, clause("c2", "Likes tea.", "two"))
        job = database.write(jobs.claim, 1e9, 60.0)
        assert job is not None
        delete(database, what)
        assert not database.write(jobs.finish, job)
        assert database.read(jobs.state, *WHO, 100.0) is not None
    database.write(controls.put, *WHO, 100.0, D, learn=False)
    delete(database, lambda deleting: deleting.signal("two"))
    assert database.read(jobs.state, *WHO, 100.0) is None  # nothing may be learned


def test_a_signal_that_was_deleted_is_not_added_again(database: Database) -> None:
    say(database, one="i grow trees", two="i like tea")
    same = StatementSignal(text="by its content")
    [name], _ = database.write(signals.add, *WHO, [same], 1.0, D)
    for one in ("one", name):
        delete(database, lambda deleting, one=one: deleting.signal(one))
    say(database, one="i grow trees", three="more")
    assert database.write(signals.add, *WHO, [same], 1.0, D) == ([name], 0)
    assert [one.id for one in database.read(signals.newest, *WHO)] == ["two", "three"]
    assert gone(database, name, "grow trees")  # not even its id is kept
    database.write(signals.add, "t", "v", [same], 1.0, D)  # somebody else's own
    database.write(erasure.erase, *WHO, 200.0)
    say(database, one="a new life")
    assert [one.id for one in database.read(signals.newest, *WHO)] == ["one"]


def test_the_last_signal_leaves_nothing_to_renew(database: Database) -> None:
    say(database, one="i grow trees")
    put(database, clause("c1", "Grows trees.", "one"))
    assert delete(database, lambda deleting: deleting.signal("one")).version == 2
    assert database.read(jobs.state, *WHO, 100.0) is None and versions(database) == {2: []}
