"""Which users' summaries are stale, when each is due, and who is at it.

A job waits for a quiet time after the last signal, at most for a longest wait after the first. A worker takes it under
a lease, a random word with an end; whoever comes after the end takes the job over. What a worker finishes counts only
while its lease is the job's, so no two ever write for one user, and nobody writes for one who was erased.
"""

import secrets
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, update

from popi.serving.store.database import upsert
from popi.serving.store.tables import jobs


@dataclass(frozen=True)
class Debounce:
    """When a stale summary is renewed, in seconds.

    Attributes:
        quiet: how long no new signal must have come before a summary is renewed.
        longest: after the first signal that it has not seen, a summary is renewed so soon, however many still come.
    """

    quiet: float = 30.0
    longest: float = 600.0


@dataclass(frozen=True)
class Job:
    """One user's renewal, taken by a worker."""

    tenant: str
    user_id: str
    revision: int
    lease: str
    attempts: int


@dataclass(frozen=True)
class JobState:
    """How a user's renewal stands; times are seconds since 1970."""

    due_at: float
    running: bool
    attempts: int
    failed: bool
    error: str | None


def request(connection: Connection, tenant: str, user_id: str, now: float, debounce: Debounce) -> None:
    """Call for a renewal: there are new signals. A job that had been given up begins anew."""
    fresh = {
        "tenant": tenant,
        "user_id": user_id,
        "revision": 1,
        "first_at": now,
        "due_at": now + min(debounce.quiet, debounce.longest),
        "attempts": 0,
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
    held = row.lease is not None and row.lease_until > now  # not a dead worker's
    first_at = now if row.failed_at is not None or held else row.first_at
    # A job that failed waits out its back-off: new signals do not make a server come back.
    earliest = row.due_at if row.attempts and row.failed_at is None else 0.0
    due_at = max(min(now + debounce.quiet, first_at + debounce.longest), earliest)
    changed = {"revision": row.revision + 1, "first_at": first_at, "due_at": due_at}
    if row.failed_at is not None:
        changed |= {"attempts": 0, "failed_at": None, "error": None}
    connection.execute(update(jobs).where(*mine).values(**changed))


def _ready(now: float) -> tuple[ColumnElement[bool], ...]:
    return (jobs.c.failed_at.is_(None), jobs.c.due_at <= now, or_(jobs.c.lease.is_(None), jobs.c.lease_until <= now))


def any_due(connection: Connection, now: float) -> bool:
    """Whether `claim` would find a job; a reader's question, so that idle workers write nothing."""
    return connection.execute(select(jobs.c.user_id).where(*_ready(now)).limit(1)).first() is not None


def claim(connection: Connection, now: float, lease_seconds: float) -> Job | None:
    """Take the job that is due longest; None where none is. The operator's workers serve all tenants."""
    query = (
        select(jobs.c.tenant, jobs.c.user_id, jobs.c.revision, jobs.c.attempts)
        .where(*_ready(now))
        .order_by(jobs.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    job = Job(row.tenant, row.user_id, row.revision, secrets.token_hex(16), row.attempts)
    mine = (jobs.c.tenant == job.tenant, jobs.c.user_id == job.user_id)
    connection.execute(update(jobs).where(*mine).values(lease=job.lease, lease_until=now + lease_seconds))
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


def state(connection: Connection, tenant: str, user_id: str, now: float) -> JobState | None:
    """How a user's renewal stands; None where their summary is up to date."""
    row = connection.execute(select(jobs).where(jobs.c.tenant == tenant, jobs.c.user_id == user_id)).first()
    if row is None:
        return None
    running = row.lease is not None and row.lease_until > now
    return JobState(row.due_at, running, row.attempts, row.failed_at is not None, row.error)


def counts(connection: Connection, now: float) -> dict[str, int]:
    """How many jobs wait, are due and were given up; for metrics."""
    failed = jobs.c.failed_at.is_not(None)
    total = connection.execute(select(func.count()).select_from(jobs)).scalar_one()
    given_up = connection.execute(select(func.count()).select_from(jobs).where(failed)).scalar_one()
    due = connection.execute(select(func.count()).select_from(jobs).where(~failed, jobs.c.due_at <= now)).scalar_one()
    return {"waiting": total - given_up - due, "due": due, "failed": given_up}
