"""The team's overview of all tenants: user counts, pending and failed renewals, tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, Subquery, case, func, select

from popi.serving.store.tables import jobs, tenants, usage, users

State = Literal["failed", "waiting"]
"""failed: given up until new signals arrive or someone retries it. waiting: everything else, including running ones."""


@dataclass(frozen=True)
class TenantCounts:
    """One tenant.

    Attributes:
        tenant: its name.
        users: number of users.
        waiting: renewals that are waiting or running.
        failed: renewals that were given up.
        renewals: renewals since the requested time; calls and tokens are theirs.
        calls: calls to the inference model.
        input_tokens: tokens read.
        output_tokens: tokens written.
    """

    tenant: str
    users: int = 0
    waiting: int = 0
    failed: int = 0
    renewals: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def cost(self, input_price: float, output_price: float) -> float:
        """The cost, from prices per million tokens."""
        return (self.input_tokens * input_price + self.output_tokens * output_price) / 1e6


def of_tenants(connection: Connection, since: float) -> list[TenantCounts]:
    """All tenants by name, with the usage of renewals on days (UTC) from `since` (seconds since 1970) on."""
    used = usage.c
    per_tenant: list[tuple[Select[Any], tuple[str, ...]]] = [
        (select(users.c.tenant, func.count().label("users")).group_by(users.c.tenant), ("users",)),
        (
            select(
                jobs.c.tenant,
                func.sum(case((jobs.c.failed_at.is_(None), 1), else_=0)).label("waiting"),
                func.sum(case((jobs.c.failed_at.is_(None), 0), else_=1)).label("failed"),
            ).group_by(jobs.c.tenant),
            ("waiting", "failed"),
        ),
        (
            select(
                used.tenant,
                *(func.sum(used[name]).label(name) for name in ("renewals", "calls", "input_tokens", "output_tokens")),
            )
            .where(used.tenant != "", used.user_id == "", used.key_id == "", used.began_at >= since)
            .group_by(used.tenant),
            ("renewals", "calls", "input_tokens", "output_tokens"),
        ),
    ]
    joined: Any = tenants
    columns: list[Any] = [tenants.c.tenant]
    for query, names in per_tenant:
        counted: Subquery = query.subquery()
        joined = joined.outerjoin(counted, counted.c.tenant == tenants.c.tenant)
        columns += [func.coalesce(counted.c[name], 0).label(name) for name in names]
    rows = connection.execute(select(*columns).select_from(joined).order_by(tenants.c.tenant))
    return [TenantCounts(row.tenant, *map(int, row[1:])) for row in rows]


def renewals(connection: Connection, tenant: str, state: State, after: str = "", limit: int = 50) -> Sequence[Row[Any]]:
    """A tenant's renewals in one state: rows of `jobs` by user id, starting after the user `after`."""
    in_state = jobs.c.failed_at.is_(None) if state == "waiting" else jobs.c.failed_at.is_not(None)
    query = select(jobs).where(jobs.c.tenant == tenant, in_state, jobs.c.user_id > after)
    return connection.execute(query.order_by(jobs.c.user_id).limit(limit)).all()
