"""What is kept for a stated time is gone after it."""

from sqlalchemy import Connection, func, select

from popi.serving.store import answers, erasure, expiry, outbox, sessions, usage
from popi.serving.store.answers import KeptAnswer
from popi.serving.store.database import Database
from popi.serving.store.sessions import SessionRecord
from popi.serving.store.usage import HOUR, Quota


def rows(connection: Connection) -> dict[str, int]:
    return {
        table.name: connection.execute(select(func.count()).select_from(table)).scalar_one() for table in expiry.TABLES
    }


def test_each_table_in_its_time(database: Database) -> None:
    database.write(answers.put, "t", "u", [KeptAnswer("a", "ask", "answer", 0)], 100.0, 100.0, 10.0)
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
        assert database.read(expiry.any_expired, now) and database.write(expiry.expire, now) == 1
        assert database.read(rows)[gone] == 0
    assert not database.read(expiry.any_expired, 1e9)


def test_a_link_is_taken_once(database: Database) -> None:
    assert database.write(sessions.take_link, "link", 130.0)
    assert not database.write(sessions.take_link, "link", 130.0)
    assert database.write(sessions.take_link, "another", 130.0)
