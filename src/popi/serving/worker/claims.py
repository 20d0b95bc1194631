"""What a worker does with a claimed job besides the renewal: charge it to the quotas, and keep its lease."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from popi.errors import StoreError
from popi.serving.settings import RenewalSettings
from popi.serving.store import jobs, usage
from popi.serving.store.database import Database
from popi.serving.store.jobs import Job
from popi.serving.store.usage import DAY, HOUR, Quota, Window


def charge(connection: Connection, job: Job, now: float, limits: RenewalSettings) -> list[Window] | None:
    """Count the renewal in its quotas; returns `None` if the lease is lost. The job's row is locked meanwhile, so
    an erasure waits, and deletes what is counted here.
    """
    if not jobs.extend_lease(connection, job, now, limits.lease_s):
        return None
    user, key, tenant = (job.tenant, job.user_id, ""), ("", "", job.key_id or ""), (job.tenant, "", "")
    quotas = [
        Quota("user_quota", user, HOUR, limits.user_renewals_per_hour),
        Quota("user_quota", user, DAY, limits.user_renewals_per_day, limits.user_tokens_per_day),
        Quota("key_quota", key, DAY, limits.key_renewals_per_day, limits.key_tokens_per_day),
        Quota("tenant_quota", tenant, DAY, limits.tenant_renewals_per_day, limits.tenant_tokens_per_day),
    ]
    return usage.charge(connection, [one for one in quotas if any(one.subject)], now)


@contextmanager
def holding(database: Database, job: Job, lease_s: float) -> Iterator[None]:
    """Keep extending the lease while the model writes."""
    done = threading.Event()

    def extend(connection: Connection) -> bool:
        return jobs.extend_lease(connection, job, database.now(connection), lease_s)

    def keep_extending() -> None:
        while not done.wait(lease_s / 3):
            try:
                if not database.write(extend):
                    return
            except StoreError:
                continue  # if this persists, the lease expires and another worker takes over

    thread = threading.Thread(target=keep_extending, name="popi-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
