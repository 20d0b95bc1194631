"""The queue of summary renewals: which are due when, and which worker holds each.

A job waits until no signal has arrived for a quiet period, up to a maximum wait after the first signal. A worker claims
it under a lease, a random token that expires; after that, another worker may take the job over. A worker's result
counts only while it holds the lease, so no two workers write for one user, and none writes for an erased user.

Tenants take turns: the next job comes from the tenant served longest ago among those with due jobs. Within a tenant,
the longest due goes first, and jobs from imports go last. So one tenant's backlog doesn't delay other tenants, and an
import doesn't delay active users.

A clock that was ahead leaves jobs due in a future that never comes, or only hours later. `first_at` says when a job's
due time was determined, so a job whose `first_at` is in the future has such a time; `correct` makes it due at once.
"""

import secrets
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import ColumnElement, Connection, Select, case, delete, func, or_, select, update

from popi.serving.store.database import upsert
from popi.serving.store.tables import jobs, tenants
from popi.serving.store.usage import OverQuota, Reason

HELD_AT_ONCE = 1_000
"""Maximum number of a key's jobs to hold at once for its quota; the next one that a worker meets holds more."""
AHEAD_SECONDS = 1.0
"""Times further in the future than this were written by a clock that has been set back since (`correct`)."""


@dataclass(frozen=True)
class Debounce:
    """When a stale summary is renewed, in seconds.

    Attributes:
        quiet_s: how long no new signal may have arrived before a renewal.
        max_wait_s: maximum wait after the first unread signal, even if more keep arriving.
        rebuild_interval_s: minimum time between two rebuilds of one user.
    """

    quiet_s: float = 30.0
    max_wait_s: float = 600.0
    rebuild_interval_s: float = 0.0


@dataclass(frozen=True)
class Job:
    """One user's renewal, claimed by a worker."""

    tenant: str
    user_id: str
    revision: int
    lease: str
    attempts: int
    key_id: str | None = None


@dataclass(frozen=True)
class JobState:
    """The state of a user's renewal; times are seconds since 1970."""

    due_at: float
    running: bool
    attempts: int
    failed: bool
    error: str | None
    held_by: str | None = None


def request(
    connection: Connection,
    tenant: str,
    user_id: str,
    now: float,
    debounce: Debounce,
    *,
    key_id: str | None = None,
    bulk: bool = False,
    at: float | None = None,
) -> None:
    """Request a renewal because there are new signals. A job that had been given up starts over.

    Args:
        connection: a write transaction.
        tenant: the user's tenant.
        user_id: the user.
        now: seconds since 1970.
        debounce: when the renewal is due.
        key_id: the requesting key; of several, the first is charged, or the first that is not over its quota.
        bulk: the request comes from an import.
        at: when the renewal is due, regardless of `debounce` (a rebuild). It never delays a waiting job.
    """
    fresh = {
        "tenant": tenant,
        "user_id": user_id,
        "revision": 1,
        "first_at": now,
        "due_at": now + min(debounce.quiet_s, debounce.max_wait_s) if at is None else at,
        "attempts": 0,
        "key_id": key_id,
        "bulk": int(bulk),
    }
    is_user = (jobs.c.tenant == tenant, jobs.c.user_id == user_id)
    row = connection.execute(select(jobs).where(*is_user).with_for_update()).first()
    if row is None:
        # If two requests both see no row, the second one updates the first one's.
        second = {"revision": jobs.c.revision + 1, "due_at": fresh["due_at"]}
        connection.execute(
            upsert(connection, jobs)
            .values(**fresh)
            .on_conflict_do_update(index_elements=["tenant", "user_id"], set_=second)
        )
        return
    running = row.lease is not None and row.lease_until > now  # a dead worker's lease has expired
    restart = row.failed_at is not None or running
    other_key = row.held_by == "key_quota" and row.key_id != key_id
    first_at = now if restart or other_key else row.first_at
    # New signals shorten neither the back-off of a failed job nor a quota's window. Rebuilds skip the back-off.
    must_wait = ((row.attempts and at is None) or row.held_by) and row.failed_at is None and not other_key
    if at is None:
        due_at = min(now + debounce.quiet_s, first_at + debounce.max_wait_s)
    else:
        due_at = at if restart or other_key else min(at, row.due_at)
    changed = {
        "revision": row.revision + 1,
        "first_at": first_at,
        "due_at": max(due_at, row.due_at if must_wait else 0.0),
        "bulk": min(row.bulk, int(bulk)),
    }
    if row.failed_at is not None or at is not None:
        changed |= {"attempts": 0, "failed_at": None, "error": None}
    if restart or other_key:
        changed |= {"key_id": key_id, "held_by": None}
    connection.execute(update(jobs).where(*is_user).values(**changed))


def _ready(now: float, bulk: int) -> tuple[ColumnElement[bool], ...]:
    free = or_(jobs.c.lease.is_(None), jobs.c.lease_until <= now)
    return (jobs.c.failed_at.is_(None), jobs.c.bulk == bulk, jobs.c.due_at <= now, free)


def _next(now: float) -> Select[tuple[str, int]]:
    """The tenant whose turn it is, and whether all its due jobs come from imports."""
    # Scalar subqueries probe the index once per tenant; for EXISTS, PostgreSQL may hash all jobs.
    probes = (
        select(jobs.c.bulk)
        .where(jobs.c.tenant == tenants.c.tenant, *_ready(now, bulk))
        .order_by(jobs.c.due_at)
        .limit(1)
        .scalar_subquery()
        for bulk in (0, 1)
    )
    bulk = func.coalesce(*probes)
    query = select(tenants.c.tenant, bulk.label("bulk")).where(tenants.c.held_until <= now, bulk.is_not(None))
    return query.order_by(tenants.c.served_at).limit(1)


def any_due(connection: Connection, now: float) -> bool:
    """Whether `claim` would find a job. Needs only a read, so that idle workers write nothing."""
    return connection.execute(_next(now)).first() is not None


def claim(connection: Connection, now: float, lease_seconds: float) -> Job | None:
    """Claim the next job of any tenant; `None` if none is due."""
    # A key-share lock doesn't block adding users to the tenant meanwhile.
    turn = connection.execute(_next(now).with_for_update(of=tenants, key_share=True)).first()
    if turn is None:
        return None
    query = (
        select(jobs)
        .where(jobs.c.tenant == turn.tenant, *_ready(now, turn.bulk))
        .order_by(jobs.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    job = Job(row.tenant, row.user_id, row.revision, secrets.token_hex(16), row.attempts, row.key_id)
    is_user = (jobs.c.tenant == job.tenant, jobs.c.user_id == job.user_id)
    leased = {"lease": job.lease, "lease_until": now + lease_seconds, "held_by": None}
    connection.execute(update(jobs).where(*is_user).values(**leased))
    connection.execute(update(tenants).where(tenants.c.tenant == job.tenant).values(served_at=now))
    return job


def _held(job: Job) -> tuple[ColumnElement[bool], ...]:
    return (jobs.c.tenant == job.tenant, jobs.c.user_id == job.user_id, jobs.c.lease == job.lease)


def extend_lease(connection: Connection, job: Job, now: float, lease_seconds: float) -> bool:
    """Extend the lease. Returns False if it is lost: another worker took over, or the user was erased."""
    extended = connection.execute(update(jobs).where(*_held(job)).values(lease_until=now + lease_seconds))
    return extended.rowcount > 0


def finish(connection: Connection, job: Job) -> bool:
    """Finish the job, or release it for another renewal if signals arrived meanwhile. Returns False if the lease is
    lost."""
    held = _held(job)
    if connection.execute(delete(jobs).where(*held, jobs.c.revision == job.revision)).rowcount:
        return True
    freed = update(jobs).where(*held).values(lease=None, lease_until=None, attempts=0, error=None)
    return connection.execute(freed).rowcount > 0


def postpone(
    connection: Connection,
    job: Job,
    due_at: float,
    *,
    now: float,
    error: str | None = None,
    give_up_at: float | None = None,
) -> bool:
    """Give the job back, to run at `due_at`. Returns False if the lease is lost.

    Args:
        connection: a write transaction.
        job: from `claim`.
        due_at: seconds since 1970.
        now: seconds since 1970.
        error: why it failed, if it did: a kind of error, never words that may quote the user.
        give_up_at: if set, don't retry; the failed job stays visible until new signals arrive.
    """
    values: dict[str, object] = {"lease": None, "lease_until": None, "due_at": due_at, "failed_at": give_up_at}
    values["first_at"] = now
    if error is not None:
        values |= {"error": error, "attempts": job.attempts + 1}
    return connection.execute(update(jobs).where(*_held(job)).values(**values)).rowcount > 0


def hold(connection: Connection, job: Job, over: OverQuota) -> bool:
    """Give back a job that is over a quota, to wait until the quota's window ends. Other jobs under the same quota (the
    tenant's, or many of the key's) wait too. Returns False if the lease is lost.
    """
    if over.reason == "tenant_quota":
        connection.execute(update(tenants).where(tenants.c.tenant == job.tenant).values(held_until=over.until))
        return connection.execute(update(jobs).where(*_held(job)).values(lease=None, lease_until=None)).rowcount > 0
    values = {"first_at": over.at, "due_at": over.until, "held_by": over.reason}
    held = update(jobs).where(*_held(job)).values(lease=None, lease_until=None, **values)
    if not connection.execute(held).rowcount:
        return False
    if over.reason == "key_quota":
        same = (
            select(jobs.c.user_id)
            .where(jobs.c.tenant == job.tenant, jobs.c.key_id == job.key_id, jobs.c.lease.is_(None))
            .where(jobs.c.failed_at.is_(None), jobs.c.due_at <= over.at)
            .limit(HELD_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        connection.execute(update(jobs).where(jobs.c.tenant == job.tenant, jobs.c.user_id.in_(same)).values(**values))
    return True


def release(connection: Connection, now: float) -> None:
    """Retry jobs that wait for a quota: quotas may have been raised."""
    connection.execute(update(tenants).where(tenants.c.held_until > now).values(held_until=0.0))
    connection.execute(update(jobs).where(jobs.c.held_by.is_not(None)).values(due_at=now, held_by=None))


def revive(connection: Connection, now: float, tenant: str | None = None) -> int:
    """Restart jobs that were given up, of one tenant or all; returns how many."""
    given_up = update(jobs).where(jobs.c.failed_at.is_not(None))
    if tenant is not None:
        given_up = given_up.where(jobs.c.tenant == tenant)
    return connection.execute(given_up.values(failed_at=None, attempts=0, due_at=now)).rowcount


def retry(connection: Connection, now: float, tenant: str, user_id: str | None = None) -> int:
    """Retry failed jobs of one user, or of the whole tenant, at once; returns how many. Running jobs and those waiting
    for a quota are unaffected.
    """
    failed = (jobs.c.tenant == tenant, or_(jobs.c.failed_at.is_not(None), jobs.c.attempts > 0))
    retried = update(jobs).where(*failed, jobs.c.lease.is_(None), jobs.c.held_by.is_(None))
    if user_id is not None:
        retried = retried.where(jobs.c.user_id == user_id)
    return connection.execute(retried.values(failed_at=None, attempts=0, due_at=now)).rowcount


def skip_backoff(connection: Connection, now: float) -> None:
    """Retry jobs that wait after a failure at once."""
    backing_off = (jobs.c.attempts > 0, jobs.c.failed_at.is_(None), jobs.c.held_by.is_(None), jobs.c.lease.is_(None))
    connection.execute(update(jobs).where(*backing_off).values(due_at=now))


def _begun_ahead(now: float) -> ColumnElement[bool]:
    return jobs.c.first_at > now + AHEAD_SECONDS


def _leased_ahead(now: float, lease_seconds: float) -> ColumnElement[bool]:
    return jobs.c.lease_until > now + lease_seconds + AHEAD_SECONDS


def _served_ahead(now: float) -> ColumnElement[bool]:
    return tenants.c.served_at > now + AHEAD_SECONDS


def any_ahead(connection: Connection, now: float, lease_seconds: float) -> bool:
    """Whether `correct` would change anything. Needs only a read."""
    wrong = or_(_begun_ahead(now), _leased_ahead(now, lease_seconds))
    served = select(tenants.c.tenant).where(_served_ahead(now))
    queries = (select(jobs.c.user_id).where(wrong), served)
    return any(connection.execute(query.limit(1)).first() is not None for query in queries)


def correct(connection: Connection, now: float, lease_seconds: float) -> int:
    """Undo what a clock that was ahead has left: jobs begun in the future are due now, a lease lasts `lease_seconds` at
    most, and no tenant was served later than now. Returns how many jobs were changed.

    Quotas that such a job or tenant waited for are checked again.
    """
    begun = update(jobs).where(_begun_ahead(now)).values(first_at=now, due_at=now, held_by=None)
    leased = update(jobs).where(_leased_ahead(now, lease_seconds)).values(lease_until=now + lease_seconds)
    changed = sum(connection.execute(one).rowcount for one in (begun, leased))
    connection.execute(update(tenants).where(_served_ahead(now)).values(served_at=now, held_until=0.0))
    return changed


def state(connection: Connection, tenant: str, user_id: str, now: float) -> JobState | None:
    """The state of a user's renewal; `None` if the summary is up to date."""
    query = select(jobs, tenants.c.held_until).join(tenants, tenants.c.tenant == jobs.c.tenant)
    row = connection.execute(query.where(jobs.c.tenant == tenant, jobs.c.user_id == user_id)).first()
    if row is None:
        return None
    running = row.lease is not None and row.lease_until > now
    held = row.held_until > max(now, row.due_at) and not running and row.failed_at is None
    due_at, held_by = (row.held_until, "tenant_quota") if held else (row.due_at, row.held_by)
    return JobState(due_at, running, row.attempts, row.failed_at is not None, row.error, held_by)


def counts(connection: Connection, now: float) -> dict[str, int]:
    """The numbers of waiting, due and failed jobs, and of those held by each quota; for metrics."""
    job_state = case(
        (jobs.c.failed_at.is_not(None), "failed"),
        (jobs.c.held_by.is_not(None), jobs.c.held_by),
        (jobs.c.due_at > now, "waiting"),
        (tenants.c.held_until > now, "tenant_quota"),
        else_="due",
    )
    query = select(job_state, func.count()).join(tenants, tenants.c.tenant == jobs.c.tenant).group_by(job_state)
    none = dict.fromkeys(("waiting", "due", "failed", *get_args(Reason)), 0)
    return none | {name: number for name, number in connection.execute(query)}
