"""What waits for an endpoint, who takes it, and how little of it there is."""

from collections.abc import Sequence

from sqlalchemy import Connection, select

from popi.profiles.fields import StoredClause
from popi.serving.store import erasure, expiry, merging, outbox, summaries, users
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.outbox import Pending

HOUR = 3600.0


def put(database: Database, user: str, now: float = 1.0, tenant: str = "t") -> None:
    clauses = [StoredClause(id="c", text="Likes tea.")]
    database.write(summaries.put, tenant, user, "Likes tea.", clauses, "user", now, expected=None)


def register(database: Database, *names: str, events: Sequence[outbox.Event] = outbox.EVENTS) -> None:
    for name in names:
        database.write(outbox.register, name, events, HOUR, 0.0)


def claim(database: Database, name: str = "crm", now: float = 10.0) -> list[Pending]:
    assert database.read(outbox.any_due, name, now) == bool(taken := database.write(outbox.claim, name, now, 60.0, 16))
    return taken


def told(pending: Sequence[Pending]) -> list[tuple[object, ...]]:
    return [(one.event, one.user_id, one.version or one.merged_into) for one in pending]


def rows(database: Database) -> list[tuple[object, ...]]:
    def read(connection: Connection) -> list[tuple[object, ...]]:
        columns = (outbox.outbox.c[name] for name in ("endpoint", "event", "user_id", "version", "merged_into"))
        return sorted(map(tuple, connection.execute(select(*columns))), key=str)

    return database.read(read)


def test_without_an_endpoint_nothing_is_kept(database: Database) -> None:
    put(database, "u")
    database.write(erasure.erase, "t", "u", 2.0)
    assert rows(database) == []
    register(database, "crm")
    put(database, "u", 2 * HOUR)  # nobody has named the endpoint for its hours
    assert rows(database) == []


def test_each_endpoint_hears_of_what_it_wants(database: Database) -> None:
    register(database, "crm")
    register(database, "search", events=["user.erased"])
    put(database, "u")
    assert rows(database) == [("crm", "summary.changed", "u", 1, None)]
    database.write(erasure.erase, "t", "u", 2.0)
    assert rows(database) == [("crm", "user.erased", "u", None, None), ("search", "user.erased", "u", None, None)]
    [one], [other] = claim(database, "crm"), claim(database, "search")
    assert one.event_id == other.event_id


def test_however_much_changes_an_endpoint_has_little_to_be_told(database: Database) -> None:
    register(database, "crm")
    for _ in range(50):
        put(database, "u")
    assert rows(database) == [("crm", "summary.changed", "u", 50, None)]
    [taken] = claim(database)
    for _ in range(50):
        put(database, "u")
    assert len(rows(database)) == 3 - 1 and claim(database) == []  # after the one that is being told
    database.write(outbox.postpone, taken, 20.0)  # which has failed, and is old by now
    assert told(claim(database)) == [("summary.changed", "u", 100)]


def test_order_and_leases(database: Database) -> None:
    register(database, "crm")
    put(database, "u")
    put(database, "v", 2.0)
    [of_u, of_v] = claim(database)
    assert (of_u.user_id, of_v.user_id) == ("u", "v")
    database.write(erasure.erase, "t", "u", 3.0)
    assert claim(database) == []
    assert not database.write(outbox.finish, of_v)
    assert database.write(outbox.finish, of_u)  # erased meanwhile: the bytes are to go
    [erased] = claim(database)
    assert erased.event == "user.erased" and claim(database, now=69.0) == []
    [again] = claim(database, now=71.0)  # its process has died
    assert (again.event_id, again.attempts) == (erased.event_id, 0) and again.lease != erased.lease
    database.write(outbox.postpone, erased, 72.0)  # has no say any more
    database.write(outbox.finish, erased)
    assert len(rows(database)) == 1
    database.write(outbox.postpone, again, 100.0)
    assert claim(database, now=99.0) == [] and claim(database, now=100.0)[0].attempts == 1


def test_who_was_erased_and_comes_again(database: Database) -> None:
    register(database, "crm")
    put(database, "u")
    database.write(erasure.erase, "t", "u", 2.0)
    put(database, "u")
    [first] = claim(database)
    assert first.event == "user.erased" and not database.write(outbox.finish, first)
    assert told(claim(database)) == [("summary.changed", "u", 1)]


def test_merged_and_merged_again(database: Database) -> None:
    register(database, "crm")
    for user in ("a", "b", "c"):
        put(database, user)
    for source, into in (("a", "b"), ("b", "c")):
        assert database.write(merging.merge, "t", into, source, 2.0, Debounce()) is not None
    erased = [row for row in rows(database) if row[1] == "user.erased"]
    assert erased == [("crm", "user.erased", "a", None, "c"), ("crm", "user.erased", "b", None, "c")]
    version = database.read(summaries.current, "t", "c").version  # type: ignore[union-attr]
    assert ("crm", "summary.changed", "c", version, None) in rows(database)
    database.write(erasure.erase, "t", "c", 3.0)
    assert {row[2:] for row in rows(database)} == {(user, None, None) for user in ("a", "b", "c")}
    assert database.read(outbox.has_pending, "t", "c") and not database.read(outbox.has_pending, "other", "c")
    assert database.read(users.find, "t", "c") is None


def test_what_nobody_takes_is_gone_in_its_time_and_the_bytes_with_it(database: Database) -> None:
    register(database, "crm")
    put(database, "u")
    database.write(erasure.erase, "t", "u", 2.0)
    due = database.read(erasure.scrub_due)
    assert due is not None
    database.write(erasure.scrubbed, due)
    assert claim(database, now=HOUR + 2.0) == [] and database.read(outbox.count_pending, "crm") == 1
    assert database.write(expiry.expire, HOUR + 2.0) >= 1
    assert rows(database) == [] and database.read(erasure.scrub_due) is not None
