"""What renewals use, counted by user, key and tenant in windows of an hour or a day (UTC), and held to quotas.

All processes on a store count in the same rows: together they keep to a quota. A renewal is counted before the model
is asked, its tokens afterwards; so tokens may exceed a quota by those of the renewals under way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from sqlalchemy import Connection, Row, select, update

from popi.serving.store.database import upsert
from popi.serving.store.tables import usage

Reason = Literal["user_quota", "key_quota", "tenant_quota"]
Window = tuple[str, str, str, int, float]
"""The primary key of a row: tenant, user id, key id, seconds, beginning."""

HOUR, DAY = 3600, 86400
TENANT_DAYS = 90
"""Days that a tenant's counts are kept; those of users and keys go when their window ends."""


@dataclass(frozen=True)
class Quota:
    """What one subject may use in a window; None is unlimited.

    Attributes:
        reason: what a renewal waits for that is over it.
        subject: tenant, user id and key id: of a user the first two, of a key the last, of a tenant the first; the
            others are empty.
        seconds: the window, HOUR or DAY.
        renewals: maximum number of renewals.
        tokens: no renewal begins once this many were read and written.
    """

    reason: Reason
    subject: tuple[str, str, str]
    seconds: int
    renewals: int | None = None
    tokens: int | None = None


class OverQuota(Exception):
    """A renewal is over a quota at `at` and has to wait until `until` (seconds since 1970)."""

    def __init__(self, reason: Reason, at: float, until: float) -> None:
        super().__init__(reason)
        self.reason, self.at, self.until = reason, at, until


def charge(connection: Connection, quotas: Sequence[Quota], now: float) -> list[Window]:
    """Count one renewal in every quota's window; returns the windows, for `spend`.

    Raises:
        OverQuota: one of them is used up; the transaction must be rolled back.
    """
    windows: list[Window] = []
    for quota in quotas:
        began_at = now - now % quota.seconds
        ends_at = began_at + quota.seconds
        window = (*quota.subject, quota.seconds, began_at)
        key = dict(zip(usage.primary_key.columns.keys(), window, strict=True))
        expires_at = ends_at + (TENANT_DAYS * DAY if quota.reason == "tenant_quota" else 0)
        row = connection.execute(
            upsert(connection, usage)
            .values(**key, renewals=1, expires_at=expires_at)
            .on_conflict_do_update(index_elements=[*usage.primary_key], set_={"renewals": usage.c.renewals + 1})
            .returning(usage.c.renewals, (usage.c.input_tokens + usage.c.output_tokens).label("tokens"))
        ).one()
        if row.renewals > (quota.renewals or inf) or row.tokens >= (quota.tokens or inf):
            raise OverQuota(quota.reason, now, ends_at)
        windows.append(window)
    return windows


def spend(connection: Connection, windows: Sequence[Window], calls: int, input_tokens: int, output_tokens: int) -> None:
    """Count what a renewal took. Of a user who was erased meanwhile nothing is written."""
    more = {
        "calls": usage.c.calls + calls,
        "input_tokens": usage.c.input_tokens + input_tokens,
        "output_tokens": usage.c.output_tokens + output_tokens,
    }
    for window in windows:  # in the order of `charge`, so that the two never wait for each other
        mine = (column == value for column, value in zip(usage.primary_key, window, strict=True))
        connection.execute(update(usage).where(*mine).values(**more))


def of_tenant(connection: Connection, tenant: str) -> Sequence[Row[Any]]:
    """What a tenant's renewals used, a row of `usage` per day (UTC), newest first."""
    query = select(usage).where(usage.c.tenant == tenant, usage.c.user_id == "").order_by(usage.c.began_at.desc())
    return connection.execute(query).all()
