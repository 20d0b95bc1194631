import threading
from typing import Any, get_args

import pytest

from popi.serving.store import erasure, jobs, users
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.usage import OverQuota, Reason

D = Debounce(quiet_s=10, max_wait_s=25)


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
    assert not database.write(jobs.extend_lease, dead, 171.0, 60.0)
    assert not database.write(jobs.postpone, dead, 999.0, now=200.0, error="x")
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
    assert job is not None and database.write(jobs.extend_lease, job, 160.0, 60.0)
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
    assert job is not None and database.write(jobs.postpone, job, 300.0, now=100.0, error="UpstreamError 503")
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
    assert job is not None and database.write(jobs.postpone, job, 300.0, now=110.0, error="DataError", give_up_at=110.0)
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


def taken(database: Database, now: float = 200.0) -> str | None:
    """The user of the next job, which stays taken."""
    job = database.write(jobs.claim, now, 60.0)
    return None if job is None else f"{job.tenant}/{job.user_id}"


def call(database: Database, who: str, now: float = 100.0, **more: Any) -> None:
    tenant, _, user = who.partition("/")
    database.write(users.lock, tenant, user, now)
    database.write(jobs.request, tenant, user, now, D, **more)


def test_tenants_take_turns(database: Database) -> None:
    for n in range(9):
        call(database, f"t/{n}", 100.0 + n)
    call(database, "other/a", 150.0)
    call(database, "other/b", 151.0)
    order = [taken(database, 200.0 + n) or "" for n in range(6)]
    assert [who[0] for who in order[:4]] in (["t", "o", "t", "o"], ["o", "t", "o", "t"])
    assert [who for who in order if who[0] == "t"] == ["t/0", "t/1", "t/2", "t/3"]
    call(database, "other/c", 210.0)
    call(database, "default/new", 211.0)  # never served
    assert [taken(database, 230.0 + n) for n in range(3)] == ["default/new", "other/c", "t/4"]


def test_an_imports_jobs_come_after_the_tenants_others(database: Database) -> None:
    for n in range(3):
        call(database, f"t/import{n}", 100.0, bulk=True)
    call(database, "t/live", 150.0)
    call(database, "t/import1", 151.0)  # who is there now
    call(database, "t/live", 152.0, bulk=True)
    assert {taken(database) for _ in range(2)} == {"t/live", "t/import1"}
    assert {taken(database) for _ in range(3)} == {"t/import0", "t/import2", None}


def over(reason: Reason, at: float, until: float) -> OverQuota:
    return OverQuota(reason, at, until)


def claimed(database: Database, now: float) -> jobs.Job:
    job = database.write(jobs.claim, now, 60.0)
    assert job is not None
    return job


def stand(database: Database, who: str, now: float) -> tuple[float, str | None]:
    state = database.read(jobs.state, *who.split("/"), now)
    assert state is not None and not state.running
    return state.due_at, state.held_by


def test_a_user_over_a_quota_waits_and_nobody_else(database: Database) -> None:
    call(database, "t/u", key_id="k")
    assert database.write(jobs.hold, claimed(database, 110.0), over("user_quota", 110.0, 3600.0))
    call(database, "t/v", key_id="k")
    call(database, "t/u", 120.0, key_id="k")  # new signals hurry nothing
    call(database, "t/u", 121.0, key_id="other", at=121.0)  # nor does a rebuild, by any key
    assert stand(database, "t/u", 130.0) == (3600.0, "user_quota")
    assert stands(database, 130.0) == {"user_quota": 1, "due": 1}
    assert [taken(database), taken(database)] == ["t/v", None]
    assert taken(database, 3600.0) in ("t/u", "t/v") and database.read(jobs.any_due, 3600.0)


def test_a_tenant_over_a_quota_is_passed_over(database: Database) -> None:
    for n in range(3):
        call(database, f"t/{n}")
    assert database.write(jobs.hold, claimed(database, 110.0), over("tenant_quota", 110.0, 3600.0))
    call(database, "t/9", 3590.0)
    call(database, "other/a")
    assert [taken(database), taken(database)] == ["other/a", None]
    assert not database.read(jobs.any_due, 200.0)
    assert stand(database, "t/1", 200.0) == (3600.0, "tenant_quota") and stand(database, "t/9", 3591.0)[1] is None
    assert stands(database, 200.0) == {"tenant_quota": 3, "due": 1, "waiting": 1}
    assert taken(database, 3600.0) is not None


def test_a_key_over_a_quota_waits_with_all_it_called_for(database: Database) -> None:
    for n in range(4):
        call(database, f"t/{n}", key_id="greedy")
    call(database, "t/a", key_id="modest")
    call(database, "t/b", key_id="modest")
    call(database, "t/b", key_id="greedy")  # the first is charged
    call(database, "t/c")  # nobody
    job = claimed(database, 110.0)
    while job.key_id != "greedy":
        job = claimed(database, 110.0)
    free = [one for one in (database.read(jobs.state, "t", name, 110.0) for name in "abc") if one and not one.running]
    assert database.write(jobs.hold, job, over("key_quota", 110.0, 3600.0))
    assert stands(database, 111.0) == {"key_quota": 4, "due": 3}
    assert len([one for one in (taken(database, 111.0) for _ in range(4)) if one]) == len(free)
    call(database, "t/0", 120.0, key_id="greedy")
    assert stand(database, "t/0", 121.0) == (3600.0, "key_quota")
    call(database, "t/0", 122.0, key_id="modest")  # another key has not used up its own
    assert stand(database, "t/0", 123.0) == (132.0, None)


def test_raised_quotas_count_at_once(database: Database) -> None:
    for who, reason in (("t/u", "user_quota"), ("other/a", "tenant_quota")):
        call(database, who)
        assert database.write(jobs.hold, claimed(database, 110.0), over(reason, 110.0, 1e9))  # type: ignore[arg-type]
    assert not database.read(jobs.any_due, 200.0)
    database.write(jobs.release, 200.0)
    assert {taken(database), taken(database)} == {"t/u", "other/a"}


def test_a_rebuild_puts_nothing_off(database: Database) -> None:
    call(database, "t/u", 100.0)
    call(database, "t/u", 101.0, at=400.0)
    assert stand(database, "t/u", 102.0) == (110.0, None)
    call(database, "t/u", 102.0, at=103.0)
    assert stand(database, "t/u", 102.0) == (103.0, None)


def test_an_erased_users_job_is_not_held(database: Database) -> None:
    call(database, "t/u")
    job = claimed(database, 110.0)
    database.write(erasure.erase, "t", "u", 111.0)
    for reason in get_args(Reason):
        assert not database.write(jobs.hold, job, over(reason, 111.0, 3600.0))
