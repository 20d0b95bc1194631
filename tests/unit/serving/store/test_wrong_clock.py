"""A clock that is hours ahead for a while: once it is right again, nothing waits for the future that it invented."""

import pytest
from serving_client import Clock

from popi.profiles.fields import StoredClause
from popi.serving.settings import RenewalSettings
from popi.serving.store import answers, controls, erasure, expiry, jobs, outbox, sessions, signals, summaries, users
from popi.serving.store.answers import StoredAnswer
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.sessions import SessionRecord
from popi.serving.store.usage import OverQuota
from popi.serving.worker.renewal import Worker
from popi.signals.types import Signal, StatementSignal
from popi.summary import Summary

AHEAD = 5 * 3600.0
LEASE = 60.0
D = Debounce(quiet_s=10, max_wait_s=30)


class Model:
    renews = False

    def renewable(self, summary: str) -> bool:
        return False

    def summarize(self, signals: list[Signal], temperature: float = 0.0, *, previous: Summary | None = None) -> Summary:
        return Summary(f"Heard {len(signals)}.", 3, model="fake")


@pytest.fixture
def now(clock: Clock) -> float:
    """The right time. The clock is ahead of it until a test sets it back."""
    right, clock.now = clock.now, clock.now + AHEAD
    return right


def say(database: Database, clock: Clock, user: str = "u") -> None:
    database.write(signals.add, "t", user, [StatementSignal(text="tea")], clock.now, D)


def claimed(database: Database, at: float) -> str | None:
    job = database.write(jobs.claim, at, LEASE)
    return None if job is None else job.user_id


def test_a_worker_writes_summaries_that_were_due_in_the_future(database: Database, clock: Clock, now: float) -> None:
    say(database, clock)
    clock.now = now
    worker = Worker(database, Model(), RenewalSettings(lease_s=LEASE))  # type: ignore[arg-type]
    assert worker.run_one() is None
    assert worker.correct_times() == 1 and worker.run_one() == "renewed"
    assert worker.correct_times() == 0


def test_a_dead_workers_lease_from_the_future_ends(database: Database, clock: Clock, now: float) -> None:
    clock.now = now
    say(database, clock)
    assert claimed(database, now + AHEAD) == "u"
    assert claimed(database, now + 3600) is None
    database.write(jobs.correct, now, LEASE)
    assert claimed(database, now + LEASE) == "u"


def test_what_was_put_off_in_the_future_is_due(database: Database, clock: Clock, now: float) -> None:
    """After a failure, for an edit, and for the quotas of a user, a key and a tenant."""
    users_ = ("failed", "edited", "user_quota", "key_quota")
    for user in users_:
        database.write(signals.add, "t", user, [StatementSignal(text="tea")], now, D)
    for _ in users_:
        job = database.write(jobs.claim, now + AHEAD, LEASE)
        assert job is not None
        if job.user_id.endswith("quota"):
            over = OverQuota(job.user_id, now + AHEAD, now + AHEAD + 3000)  # type: ignore[arg-type]
            assert database.write(jobs.hold, job, over)
        else:
            error = "no" if job.user_id == "failed" else None
            assert database.write(jobs.postpone, job, now + AHEAD + 60, now=now + AHEAD, error=error)
    assert claimed(database, now + 3600) is None
    assert database.write(jobs.correct, now, LEASE) == len(users_)
    assert {claimed(database, now) for _ in users_} == set(users_)


def test_a_tenant_that_was_served_in_the_future_is_not_last(database: Database, clock: Clock, now: float) -> None:
    clock.now = now
    say(database, clock)
    job = database.write(jobs.claim, now + AHEAD, LEASE)
    assert job is not None
    assert database.write(jobs.hold, job, OverQuota("tenant_quota", now + AHEAD, now + AHEAD + 3000))
    assert claimed(database, now + 3600) is None
    database.write(jobs.correct, now, LEASE)
    assert claimed(database, now + 10) == "u"


def test_jobs_that_wait_for_good_reasons_go_on_waiting(database: Database, clock: Clock, now: float) -> None:
    clock.now = now
    say(database, clock, "a")
    say(database, clock, "b")
    job = database.write(jobs.claim, now + 10, LEASE)
    assert job is not None and database.write(jobs.postpone, job, now + 86_400, now=now + 10, error="no")
    assert not database.read(jobs.any_ahead, now + 10, LEASE)
    assert database.write(jobs.correct, now + 10, LEASE) == 0
    state = database.read(jobs.state, "t", job.user_id, now + 10)
    assert state is not None and state.due_at == now + 86_400


def test_a_rebuild_does_not_wait_for_one_in_the_future(database: Database, clock: Clock, now: float) -> None:
    say(database, clock)
    assert database.write(users.next_rebuild, "t", "u", now + AHEAD, 300.0) == now + AHEAD
    assert database.write(users.next_rebuild, "t", "u", now, 300.0) == now
    assert database.write(users.next_rebuild, "t", "u", now + 1, 300.0) == now + 300


def test_webhooks_go_out(database: Database, now: float) -> None:
    database.write(outbox.register, "crm", outbox.EVENTS, 3600.0, now + AHEAD)
    for user in ("new", "tried", "leased"):
        clauses = [StoredClause(id="c", text="Likes tea.")]
        database.write(summaries.put, "t", user, "Likes tea.", clauses, "user", now + AHEAD, expected=None)
    for pending in database.write(outbox.claim, "crm", now + AHEAD, LEASE, 16):
        if pending.user_id == "tried":
            database.write(outbox.postpone, pending, now + AHEAD + 60)
        elif pending.user_id == "new":
            database.write(outbox.postpone, pending, now + AHEAD)
    database.write(outbox.correct, "crm", now, LEASE, 3600.0)
    assert {one.user_id for one in database.write(outbox.claim, "crm", now, LEASE, 16)} == {"new", "tried"}
    assert "leased" in {one.user_id for one in database.write(outbox.claim, "crm", now + LEASE, LEASE, 16)}
    assert database.write(expiry.expire, now + 3601) >= 3


def test_links_and_answers_after_an_erasure_in_the_future(database: Database, clock: Clock, now: float) -> None:
    """The user comes back after the clock was set back: newer than the erasure, whatever its time says."""
    database.write(erasure.erase, "t", "u", now + AHEAD)
    database.write(controls.put, "t", "v", now + AHEAD, D, learn=False)
    database.write(controls.put, "t", "v", now + AHEAD, D, learn=True)
    answer = [StoredAnswer("a", "question", "answer", 0, "")]
    assert database.write(answers.put, "t", "u", answer, now - 1, now, 60.0) == 0
    assert database.read(erasure.any_ahead, now)
    database.write(erasure.correct, now)
    assert not database.read(erasure.any_ahead, now)
    assert database.write(answers.put, "t", "u", answer, now - 1, now, 60.0) == 0, "it began before the erasure"
    assert database.write(answers.put, "t", "u", answer, now + 6, now + 7, 60.0) == 1
    record = SessionRecord("s", "t", "u", None, None, now + 600)
    assert database.write(sessions.open_by_link, "l", now + 1, now + 600, record, now + 2)
    assert database.write(answers.put, "t", "v", answer, now - 1, now, 60.0) == 0, (
        "learning was off, until when is unclear"
    )
    assert database.write(answers.put, "t", "v", answer, now + 6, now + 7, 60.0) == 1


def test_a_link_from_the_future_opens_nothing(database: Database, now: float) -> None:
    record = SessionRecord("s", "t", "u", None, None, now + 600)
    assert not database.write(sessions.open_by_link, "l", now + AHEAD, now + AHEAD + 600, record, now)


def test_a_deletion_after_the_clock_was_set_back_is_overwritten_too(database: Database, now: float) -> None:
    """It has an earlier time than the one whose bytes are being overwritten."""
    database.write(erasure.scrub_later, now + AHEAD)
    overwritten = database.read(erasure.scrub_due)
    assert overwritten is not None
    database.write(erasure.scrub_later, now)
    database.write(erasure.scrubbed, overwritten)
    assert database.read(erasure.scrub_due) == now


def test_nothing_expires_just_after_the_clock_leapt() -> None:
    steady, now = Clock(), 1_000_000.0
    steady.now = 50.0
    leaps = expiry.Leaps(lambda: steady.now)
    assert not leaps.waiting(now)
    for _ in range(5):
        steady.now, now = steady.now + 10, now + 10.2
        assert not leaps.waiting(now)
    assert leaps.waiting(now + AHEAD)
    steady.now += 10
    assert leaps.waiting(now + 10), "and when it is back, for the rest of the time"
    steady.now, now = steady.now + expiry.SETTLE_SECONDS, now + expiry.SETTLE_SECONDS
    assert not leaps.waiting(now + 10)
