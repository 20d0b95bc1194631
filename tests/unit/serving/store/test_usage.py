"""Quotas hold exactly, over all processes on a store."""

import threading
from collections.abc import Callable
from functools import partial

import pytest

from popi.serving.store import erasure, expiry, jobs, usage, users
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.usage import DAY, HOUR, OverQuota, Quota

NOON = 11.5 * DAY
USER, KEY, TENANT = ("t", "u", ""), ("", "", "k"), ("t", "", "")


def days(database: Database, tenant: str = "t") -> list[tuple[float, ...]]:
    """Day, renewals, calls, tokens read and written."""
    rows = database.read(usage.of_tenant, tenant)
    return [(one.began_at / DAY, one.renewals, one.calls, one.input_tokens, one.output_tokens) for one in rows]


def charge(database: Database, now: float, *quotas: Quota) -> list[usage.Window]:
    return database.write(usage.charge, quotas, now)


def over(database: Database, now: float, *quotas: Quota) -> tuple[str, float]:
    with pytest.raises(OverQuota) as caught:
        charge(database, now, *quotas)
    return caught.value.reason, caught.value.until


def test_a_quota_of_renewals_ends_with_its_window(database: Database) -> None:
    quota = Quota("user_quota", USER, HOUR, renewals=2)
    for _ in range(2):
        charge(database, NOON + 60, quota)
    assert over(database, NOON + 61, quota) == ("user_quota", NOON + HOUR)
    assert over(database, NOON + HOUR - 1, quota) == ("user_quota", NOON + HOUR)
    charge(database, NOON + HOUR, quota)
    charge(database, NOON + 61, Quota("user_quota", ("t", "v", ""), HOUR, renewals=2))


def test_a_quota_of_tokens_counts_those_read_and_written(database: Database) -> None:
    quota = Quota("key_quota", KEY, DAY, tokens=100)
    windows = charge(database, NOON, quota)
    database.write(usage.spend, windows, 1, 90, 9)
    database.write(usage.spend, charge(database, NOON, quota), 2, 1, 0)
    assert over(database, NOON, quota) == ("key_quota", 12.0 * DAY)


def test_what_is_over_one_quota_counts_in_none(database: Database) -> None:
    user, tenant = Quota("user_quota", USER, DAY, renewals=2), Quota("tenant_quota", TENANT, DAY, renewals=1)
    charge(database, NOON, user, tenant)
    for _ in range(3):
        assert over(database, NOON, user, tenant)[0] == "tenant_quota"
    charge(database, NOON, user)
    assert days(database) == [(11.0, 1, 0, 0, 0)]


def test_a_tenants_days(database: Database) -> None:
    tenant = Quota("tenant_quota", TENANT, DAY)
    for now in (NOON, NOON, NOON + DAY):
        windows = charge(database, now, Quota("user_quota", USER, DAY), Quota("key_quota", KEY, DAY), tenant)
        database.write(usage.spend, windows, 2, 100, 10)
    both = [(12.0, 1, 2, 100, 10), (11.0, 2, 4, 200, 20)]
    assert days(database) == both and days(database, "other") == []
    database.write(expiry.expire, NOON + 2 * DAY)
    assert days(database) == both
    database.write(expiry.expire, 13.0 * DAY + usage.TENANT_DAYS * DAY)
    assert days(database) == []


def test_an_erased_users_counts_go_and_do_not_come_back(database: Database) -> None:
    windows = charge(database, NOON, Quota("user_quota", USER, DAY), Quota("tenant_quota", TENANT, DAY))
    database.write(users.lock, "t", "u", NOON)
    database.write(erasure.erase, "t", "u", NOON)
    database.write(usage.spend, windows, 1, 5, 5)
    rows = database.read(lambda connection: connection.execute(usage.usage.select()).all())
    assert [(row.tenant, row.user_id, row.input_tokens) for row in rows] == [("t", "", 5)]


def at_once(database: Database, store_url: str, work: Callable[[Database], None]) -> None:
    """`work` in three threads of two processes' databases each."""
    both = [database, Database.open(store_url, clock=database._clock)]
    gate = threading.Barrier(6)

    def begin(one: Database) -> None:
        gate.wait()
        work(one)

    threads = [threading.Thread(target=begin, args=(one,)) for one in both for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both[1].close()


def test_processes_share_a_quota_and_none_is_exceeded(database: Database, store_url: str) -> None:
    quotas = [
        Quota("user_quota", USER, DAY, renewals=100),
        Quota("key_quota", KEY, DAY, renewals=17),
        Quota("tenant_quota", TENANT, DAY, renewals=100),
    ]
    done: list[bool] = []

    def work(one: Database) -> None:
        for _ in range(10):
            try:
                one.write(usage.spend, charge(one, NOON, *quotas), 1, 1, 1)
                done.append(True)
            except OverQuota:
                done.append(False)

    at_once(database, store_url, work)
    assert len(done) == 60 and sum(done) == 17
    assert days(database) == [(11.0, 17, 17, 17, 17)]


def test_claims_of_many_tenants_do_not_wait_for_each_other_in_circles(database: Database, store_url: str) -> None:
    """Two jobs of one admin key in two tenants, users added and erased meanwhile."""
    key = Quota("key_quota", KEY, DAY)
    for tenant in ("t", "other"):
        for n in range(30):
            database.write(users.lock, tenant, f"u{n}", 0.0)
            database.write(jobs.request, tenant, f"u{n}", 0.0, Debounce(0, 0))
    taken: list[tuple[str, str]] = []

    def work(one: Database) -> None:
        while one.read(jobs.any_due, NOON):
            job = one.write(jobs.claim, NOON, 60.0)
            if job is None:
                continue
            who = (job.tenant, job.user_id)
            taken.append(who)
            quotas = [Quota("user_quota", (*who, ""), DAY), key, Quota("tenant_quota", (job.tenant, "", ""), DAY)]
            windows = one.write(usage.charge, quotas, NOON)
            if int(job.user_id[1:]) % 3 == 0:
                one.write(erasure.erase, *who, NOON)
            else:
                one.write(users.lock, job.tenant, f"new {job.user_id}", NOON)
            one.write(usage.spend, windows, 1, 1, 1)
            one.write(partial(jobs.finish, job=job))

    at_once(database, store_url, work)
    assert len(taken) == len(set(taken)) == 60
