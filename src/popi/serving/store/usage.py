"""Usage of renewals per user, key and tenant in windows of an hour or a day (UTC), and its quotas.

All processes on a store count in the same rows, so they share a quota. A renewal is counted before the model is called
and its tokens afterwards, so tokens may exceed a quota by those of the renewals in progress.
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
"""The primary key of a row: tenant, user id, key id, length in seconds, start."""

HOUR, DAY = 3600, 86400
TENANT_DAYS = 90
"""Days for which a tenant's counts are stored; those of users and keys expire with their window."""


@dataclass(frozen=True)
class Quota:
    """What one subject may use in a window; `None` is unlimited.

    Attributes:
        reason: the reported reason when a renewal has to wait for this quota.
        subject: tenant, user id and key id. A user has the first two, a key the last, a tenant the first; the others
            are empty.
        seconds: length of the window: HOUR or DAY.
        renewals: maximum number of renewals.
        tokens: no renewal starts once this many tokens have been read and written.
    """

    reason: Reason
    subject: tuple[str, str, str]
    seconds: int
    renewals: int | None = None
    tokens: int | None = None


class OverQuota(Exception):
    """A renewal exceeded a quota at `at` and must wait until `until` (seconds since 1970)."""

    def __init__(self, reason: Reason, at: float, until: float) -> None:
        super().__init__(reason)
        self.reason, self.at, self.until = reason, at, until


def charge(connection: Connection, quotas: Sequence[Quota], now: float) -> list[Window]:
    """Count one renewal in every quota's window; returns the windows, for `spend`.

    Raises:
        OverQuota: a quota is used up; the transaction must be rolled back.
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
    """Count a renewal's calls and tokens. If the user was erased meanwhile, nothing is written."""
    values = {
        "calls": usage.c.calls + calls,
        "input_tokens": usage.c.input_tokens + input_tokens,
        "output_tokens": usage.c.output_tokens + output_tokens,
    }
    for window in windows:  # in the order of `charge`, so that the two can't deadlock
        is_window = (column == value for column, value in zip(usage.primary_key, window, strict=True))
        connection.execute(update(usage).where(*is_window).values(**values))


def of_tenant(connection: Connection, tenant: str) -> Sequence[Row[Any]]:
    """The usage of a tenant's renewals: one row of `usage` per day (UTC), newest first."""
    query = select(usage).where(usage.c.tenant == tenant, usage.c.user_id == "").order_by(usage.c.began_at.desc())
    return connection.execute(query).all()
