"""Which users' summaries are stale, when each is due, and who is at it.

A job waits for a quiet time after the last signal, at most for a longest wait after the first. A worker takes it under
a lease, a random word with an end; whoever comes after the end takes the job over. What a worker finishes counts only
while its lease is the job's, so no two ever write for one user, and nobody writes for one who was erased.

Tenants take turns: the next job is one of the tenant served longest ago among those with due jobs, and of that tenant's
the one due longest, jobs of imports after all others. So one tenant's backlog delays no other tenant, and an import no
user who is there.
"""

import secrets
from dataclasses import dataclass
from typing import get_args

from sqlalchemy import ColumnElement, Connection, Select, case, delete, func, or_, select, update

from popi.serving.store.database import upsert
from popi.serving.store.tables import jobs, tenants
from popi.serving.store.usage import OverQuota, Reason

HELD_AT_ONCE = 1_000
"""Maximum number of a key's jobs that wait at once for its quota; the next one that a worker meets holds more."""


@dataclass(frozen=True)
class Debounce:
    """When a stale summary is renewed, in seconds.

    Attributes:
        quiet: how long no new signal must have come before a summary is renewed.
        longest: after the first signal that it has not seen, a summary is renewed so soon, however many still come.
        rebuild: between two rebuilds of one user.
    """

    quiet: float = 30.0
    longest: float = 600.0
    rebuild: float = 0.0


@dataclass(frozen=True)
class Job:
    """One user's renewal, taken by a worker."""

    tenant: str
    user_id: str
    revision: int
    lease: str
    attempts: int
    key_id: str | None = None


@dataclass(frozen=True)
class JobState:
    """How a user's renewal stands; times are seconds since 1970."""

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
    """Call for a renewal: there are new signals. A job that had been given up begins anew.

    Args:
        connection: a transaction that writes.
        tenant: whose user.
        user_id: the user.
        now: seconds since 1970.
        debounce: when the renewal is due.
        key_id: the key that calls; of several, the first is charged, or the first that is not over its quota.
        bulk: an import calls.
        at: when the renewal is due, whatever `debounce` says (a rebuild); a job that waits already is put off by
            neither.
    """
    fresh = {
        "tenant": tenant,
        "user_id": user_id,
        "revision": 1,
        "first_at": now,
        "due_at": now + min(debounce.quiet, debounce.longest) if at is None else at,
        "attempts": 0,
        "key_id": key_id,
        "bulk": int(bulk),
    }
    mine = (jobs.c.tenant == tenant, jobs.c.user_id == user_id)
    row = connection.execute(select(jobs).where(*mine).with_for_update()).first()
    if row is None:
        # Of two calls that both see no row, the second counts as a further one.
        again = {"revision": jobs.c.revision + 1, "due_at": fresh["due_at"]}
        connection.execute(
            upsert(connection, jobs)
            .values(**fresh)
            .on_conflict_do_update(index_elements=["tenant", "user_id"], set_=again)
        )
        return
    running = row.lease is not None and row.lease_until > now  # not a dead worker's
    anew = row.failed_at is not None or running
    other_key = row.held_by == "key_quota" and row.key_id != key_id
    first_at = now if anew or other_key else row.first_at
    # A job that failed waits out its back-off, one over its quota the window: new signals don't shorten either.
    # Whoever asks for a rebuild does not wait for a back-off.
    waits = ((row.attempts and at is None) or row.held_by) and row.failed_at is None and not other_key
    if at is None:
        due_at = min(now + debounce.quiet, first_at + debounce.longest)
    else:
        due_at = at if anew or other_key else min(at, row.due_at)
    changed = {
        "revision": row.revision + 1,
        "first_at": first_at,
        "due_at": max(due_at, row.due_at if waits else 0.0),
        "bulk": min(row.bulk, int(bulk)),
    }
    if row.failed_at is not None or at is not None:
        changed |= {"attempts": 0, "failed_at": None, "error": None}
    if anew or other_key:
        changed |= {"key_id": key_id, "held_by": None}
    connection.execute(update(jobs).where(*mine).values(**changed))


def _ready(now: float, bulk: int) -> tuple[ColumnElement[bool], ...]:
    free = or_(jobs.c.lease.is_(None), jobs.c.lease_until <= now)
    return (jobs.c.failed_at.is_(None), jobs.c.bulk == bulk, jobs.c.due_at <= now, free)


def _next(now: float) -> Select[tuple[str, int]]:
    """The tenant whose turn it is, and whether all its due jobs are an import's."""
    # Scalar subqueries, not EXISTS, which PostgreSQL may answer by hashing all jobs: these probe the index, per tenant.
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
    """Whether `claim` would find a job; a reader's question, so that idle workers write nothing."""
    return connection.execute(_next(now)).first() is not None


def claim(connection: Connection, now: float, lease_seconds: float) -> Job | None:
    """Take the next job; None where none is due. The operator's workers serve all tenants."""
    # The tenant's key is not locked: users are added meanwhile.
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
    mine = (jobs.c.tenant == job.tenant, jobs.c.user_id == job.user_id)
    leased = {"lease": job.lease, "lease_until": now + lease_seconds, "held_by": None}
    connection.execute(update(jobs).where(*mine).values(**leased))
    connection.execute(update(tenants).where(tenants.c.tenant == job.tenant).values(served_at=now))
    return job


def _held(job: Job) -> tuple[ColumnElement[bool], ...]:
    return (jobs.c.tenant == job.tenant, jobs.c.user_id == job.user_id, jobs.c.lease == job.lease)


def keep(connection: Connection, job: Job, now: float, lease_seconds: float) -> bool:
    """Make the lease longer; False where it is lost: taken over, or the user was erased."""
    done = connection.execute(update(jobs).where(*_held(job)).values(lease_until=now + lease_seconds))
    return done.rowcount > 0


def finish(connection: Connection, job: Job) -> bool:
    """The job is done; where signals came in meanwhile it stays, for those. False where the lease is lost."""
    held = _held(job)
    if connection.execute(delete(jobs).where(*held, jobs.c.revision == job.revision)).rowcount:
        return True
    freed = update(jobs).where(*held).values(lease=None, lease_until=None, attempts=0, error=None)
    return connection.execute(freed).rowcount > 0


def postpone(
    connection: Connection, job: Job, due_at: float, *, error: str | None = None, give_up_at: float | None = None
) -> bool:
    """Give the job back, to be done at `due_at`; False where the lease is lost.

    Args:
        connection: a transaction that writes.
        job: as `claim` gave it.
        due_at: seconds since 1970.
        error: why it failed, where it did: a kind, never words that may quote the user.
        give_up_at: no further try; the job stays, to be seen, until new signals come.
    """
    values: dict[str, object] = {"lease": None, "lease_until": None, "due_at": due_at, "failed_at": give_up_at}
    if error is not None:
        values |= {"error": error, "attempts": job.attempts + 1}
    return connection.execute(update(jobs).where(*_held(job)).values(**values)).rowcount > 0


def hold(connection: Connection, job: Job, over: OverQuota) -> bool:
    """Give a job back that is over a quota, to wait until the quota's window ends, and with it what would meet the same
    quota: the tenant's other jobs, or many of the key's. False where the lease is lost.
    """
    if over.reason == "tenant_quota":
        connection.execute(update(tenants).where(tenants.c.tenant == job.tenant).values(held_until=over.until))
        return connection.execute(update(jobs).where(*_held(job)).values(lease=None, lease_until=None)).rowcount > 0
    waits = {"due_at": over.until, "held_by": over.reason}
    held = update(jobs).where(*_held(job)).values(lease=None, lease_until=None, **waits)
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
        connection.execute(update(jobs).where(jobs.c.tenant == job.tenant, jobs.c.user_id.in_(same)).values(**waits))
    return True


def release(connection: Connection, now: float) -> None:
    """Let what waits for a quota try again: quotas may have been raised."""
    connection.execute(update(tenants).where(tenants.c.held_until > now).values(held_until=0.0))
    connection.execute(update(jobs).where(jobs.c.held_by.is_not(None)).values(due_at=now, held_by=None))


def revive(connection: Connection, now: float, tenant: str | None = None) -> int:
    """Begin anew what was given up, of one tenant or of all; says how many."""
    given_up = update(jobs).where(jobs.c.failed_at.is_not(None))
    if tenant is not None:
        given_up = given_up.where(jobs.c.tenant == tenant)
    return connection.execute(given_up.values(failed_at=None, attempts=0, due_at=now)).rowcount


def retry(connection: Connection, now: float, tenant: str, user_id: str | None = None) -> int:
    """Try at once what was given up, and what waits after a failure: of one user, or of all of the tenant's; says how
    many. What is under way, or waits for a quota, stays as it is.
    """
    failed = (jobs.c.tenant == tenant, or_(jobs.c.failed_at.is_not(None), jobs.c.attempts > 0))
    again = update(jobs).where(*failed, jobs.c.lease.is_(None), jobs.c.held_by.is_(None))
    if user_id is not None:
        again = again.where(jobs.c.user_id == user_id)
    return connection.execute(again.values(failed_at=None, attempts=0, due_at=now)).rowcount


def hasten(connection: Connection, now: float) -> None:
    """Let what waits after a failure be tried at once."""
    waits = (jobs.c.attempts > 0, jobs.c.failed_at.is_(None), jobs.c.held_by.is_(None), jobs.c.lease.is_(None))
    connection.execute(update(jobs).where(*waits).values(due_at=now))


def state(connection: Connection, tenant: str, user_id: str, now: float) -> JobState | None:
    """How a user's renewal stands; None where their summary is up to date."""
    query = select(jobs, tenants.c.held_until).join(tenants, tenants.c.tenant == jobs.c.tenant)
    row = connection.execute(query.where(jobs.c.tenant == tenant, jobs.c.user_id == user_id)).first()
    if row is None:
        return None
    running = row.lease is not None and row.lease_until > now
    waits = row.held_until > max(now, row.due_at) and not running and row.failed_at is None
    due_at, held_by = (row.held_until, "tenant_quota") if waits else (row.due_at, row.held_by)
    return JobState(due_at, running, row.attempts, row.failed_at is not None, row.error, held_by)


def counts(connection: Connection, now: float) -> dict[str, int]:
    """How many jobs wait (for their time, or a quota), are due and were given up; for metrics."""
    stands = case(
        (jobs.c.failed_at.is_not(None), "failed"),
        (jobs.c.held_by.is_not(None), jobs.c.held_by),
        (jobs.c.due_at > now, "waiting"),
        (tenants.c.held_until > now, "tenant_quota"),
        else_="due",
    )
    query = select(stands, func.count()).join(tenants, tenants.c.tenant == jobs.c.tenant).group_by(stands)
    none = dict.fromkeys(("waiting", "due", "failed", *get_args(Reason)), 0)
    return none | {stands: number for stands, number in connection.execute(query)}
