import threading

import pytest

from popi.serving.store import jobs, users
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce

D = Debounce(quiet=10, longest=25)


def request(database: Database, now: float, user: str = "u") -> None:
    database.write(users.lock, "t", user, now)
    database.write(jobs.request, "t", user, now, D)


def due(database: Database) -> float:
    state = database.read(jobs.state, "t", "u", 0.0)
    assert state is not None
    return state.due_at


def stands(database: Database, now: float) -> dict[str, int]:
    """How many jobs stand how, those states that some are in."""
    return {state: number for state, number in database.read(jobs.counts, now).items() if number}


def test_a_job_waits_for_quiet_and_no_longer_than_the_longest_wait(database: Database) -> None:
    request(database, 100)
    assert due(database) == 110  # 100 + quiet
    request(database, 108)
    assert due(database) == 118  # quiet begins anew
    request(database, 117)
    assert due(database) == 125  # the first signal came at 100, the longest wait is 25
    assert database.write(jobs.claim, 124.9, 60.0) is None
    assert database.write(jobs.claim, 125.0, 60.0) is not None


def test_a_job_is_one_workers(database: Database) -> None:
    request(database, 100)
    assert database.write(jobs.claim, 110.0, 60.0) is not None
    assert database.write(jobs.claim, 169.9, 60.0) is None
    assert not database.read(jobs.any_due, 169.9)


def test_a_dead_workers_job_is_taken_over_and_its_late_result_counts_for_nothing(database: Database) -> None:
    request(database, 100)
    dead = database.write(jobs.claim, 110.0, 60.0)
    assert dead is not None
    heir = database.write(jobs.claim, 170.0, 60.0)
    assert heir is not None and heir.lease != dead.lease
    assert not database.write(jobs.keep, dead, 171.0, 60.0)
    assert not database.write(jobs.postpone, dead, 999.0, error="x")
    assert not database.write(jobs.finish, dead)
    assert database.write(jobs.finish, heir)
    assert database.read(jobs.state, "t", "u", 171.0) is None


def test_a_dead_workers_lease_puts_the_longest_wait_off_no_further(database: Database) -> None:
    request(database, 100)
    assert database.write(jobs.claim, 110.0, 60.0) is not None
    request(database, 169)  # the lease holds: the worker has not seen this one
    assert due(database) == 179
    for now in (170, 178, 186, 193):
        request(database, now)
    assert due(database) == 194  # 169 + longest


def test_a_lease_can_be_kept(database: Database) -> None:
    request(database, 100)
    job = database.write(jobs.claim, 110.0, 60.0)
    assert job is not None and database.write(jobs.keep, job, 160.0, 60.0)
    assert database.write(jobs.claim, 219.0, 60.0) is None
    assert database.write(jobs.claim, 220.0, 60.0) is not None


def test_signals_that_come_meanwhile_are_not_lost(database: Database) -> None:
    request(database, 100)
    job = database.write(jobs.claim, 110.0, 60.0)
    assert job is not None
    request(database, 111)
    assert database.write(jobs.finish, job)
    assert database.write(jobs.claim, 120.9, 60.0) is None
    assert database.write(jobs.claim, 121.0, 60.0) is not None  # 111 + quiet


def test_a_failed_job_waits_and_new_signals_do_not_hurry_it(database: Database) -> None:
    request(database, 100)
    job = database.write(jobs.claim, 110.0, 60.0)
    assert job is not None and database.write(jobs.postpone, job, 300.0, error="UpstreamError 503")
    request(database, 120)
    state = database.read(jobs.state, "t", "u", 120.0)
    assert state is not None and (state.due_at, state.attempts, state.error, state.running) == (
        300.0,
        1,
        "UpstreamError 503",
        False,
    )
    again = database.write(jobs.claim, 300.0, 60.0)
    assert again is not None and again.attempts == 1


def test_a_job_that_was_given_up_waits_for_new_signals(database: Database) -> None:
    request(database, 100)
    job = database.write(jobs.claim, 110.0, 60.0)
    assert job is not None and database.write(jobs.postpone, job, 300.0, error="DataError", give_up_at=110.0)
    assert database.write(jobs.claim, 10_000.0, 60.0) is None
    assert stands(database, 10_000.0) == {"failed": 1}
    request(database, 10_000)
    state = database.read(jobs.state, "t", "u", 10_000.0)
    assert state is not None and (state.failed, state.attempts, state.error) == (False, 0, None)
    assert database.write(jobs.claim, 10_010.0, 60.0) is not None


@pytest.mark.parametrize("workers", [6])
def test_workers_never_double_up(database: Database, workers: int) -> None:
    for n in range(30):
        request(database, 100, f"u{n}")
    taken: list[str] = []
    gate = threading.Barrier(workers)

    def work() -> None:
        gate.wait()
        while (job := database.write(jobs.claim, 200.0, 60.0)) is not None or database.read(jobs.any_due, 200.0):
            if job is not None:
                taken.append(job.user_id)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted({f"u{n}" for n in range(30)})
