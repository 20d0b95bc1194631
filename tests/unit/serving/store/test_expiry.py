"""What is kept for a stated time is gone after it."""

from sqlalchemy import Connection, func, select

from popi.serving.store import answers, controls, erasure, expiry, outbox, sessions, signals, summaries, usage, users
from popi.serving.store.answers import StoredAnswer
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.sessions import SessionRecord
from popi.serving.store.usage import HOUR, Quota
from popi.signals.types import StatementSignal


def rows(connection: Connection) -> dict[str, int]:
    return {
        table.name: connection.execute(select(func.count()).select_from(table)).scalar_one() for table in expiry.TABLES
    }


def test_each_table_in_its_time(database: Database) -> None:
    database.write(answers.put, "t", "u", [StoredAnswer("a", "ask", "answer", 0)], 100.0, 100.0, 10.0)
    database.write(sessions.add, SessionRecord("cookie", "t", "u", None, None, 120.0))
    assert database.write(sessions.take_link, "link", 130.0)
    database.write(erasure.erase, "other", "v", 100.0)
    database.write(usage.charge, [Quota("user_quota", ("t", "u", ""), HOUR)], 100.0)
    database.write(outbox.register, "crm", ["summary.changed"], 4000.0, 100.0)
    database.write(outbox.add, "t", "u", "summary.changed", 90.0, version=1)
    assert database.read(rows) == dict.fromkeys((table.name for table in expiry.TABLES), 1)
    assert not database.read(expiry.any_expired, 109.0) and database.write(expiry.expire, 109.0) == 0
    times = {"answers": 110.0, "sessions": 120.0, "opened_links": 130.0, "usage": 3600.0, "erasures": 3700.0}
    times |= {"outbox": 4090.0, "webhooks": 4100.0}
    for gone, now in times.items():
        with_user = 2 if gone == "answers" else 1  # of whom nothing else was stored
        assert database.read(expiry.any_expired, now) and database.write(expiry.expire, now) == with_user
        assert database.read(rows)[gone] == 0
    assert not database.read(expiry.any_expired, 1e9)


def test_a_user_who_gave_no_feedback_goes_with_their_answers(database: Database) -> None:
    def keep(user: str, at: float, name: str = "a") -> None:
        database.write(answers.put, "t", user, [StoredAnswer(f"{user}-{name}", "ask", "answer", 0)], at, at, 10.0)

    for user in ("asked", "again", "told", "wrote", "off"):
        keep(user, 100.0)
    keep("again", 105.0, "b")
    database.write(signals.add, "t", "told", [StatementSignal(text="tea")], 101.0, Debounce())
    database.write(summaries.put, "t", "wrote", "Likes tea.", [], "user", 101.0, expected=0)
    database.write(controls.put, "t", "off", 101.0, Debounce(), learn=False)
    assert database.read(users.list_ids, "t") == ["again", "asked", "off", "told", "wrote"]
    assert database.read(expiry.any_expired, 110.0)
    database.write(expiry.expire, 110.0)
    assert database.read(users.list_ids, "t") == ["again", "off", "told", "wrote"]
    database.write(expiry.expire, 115.0)
    assert database.read(users.list_ids, "t") == ["off", "told", "wrote"]
    assert not database.read(expiry.any_expired, 1e9)
    keep("told", 200.0)
    database.write(expiry.expire, 1e9)
    assert database.read(users.list_ids, "t") == ["off", "told", "wrote"]


def test_who_opted_out_stays_until_everything_is_on_again(database: Database) -> None:
    for learn, there in ((False, ["u"]), (True, [])):
        database.write(controls.put, "t", "u", 100.0, Debounce(), learn=learn)
        database.write(expiry.expire, 100.0 + controls.REMEMBERED_SECONDS)
        assert database.read(users.list_ids, "t") == there


def test_a_link_is_taken_once(database: Database) -> None:
    assert database.write(sessions.take_link, "link", 130.0)
    assert not database.write(sessions.take_link, "link", 130.0)
    assert database.write(sessions.take_link, "another", 130.0)
