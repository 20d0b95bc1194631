"""The step of a migration that gives user ids their one form (popi.profiles.user_id), for a store from before it.

Users whose ids have the same form are merged, as `merging` does it. An id that would be refused today gets a visible
form: what nobody sees in it is percent-encoded. So all stay reachable, and none of these is taken for another user.
"""

import logging
from collections import defaultdict

from sqlalchemy import Connection, delete, func, select, update

from popi.errors import DataError
from popi.profiles.user_id import LONGEST_ID, normal_user_id, visible_form
from popi.serving.store import users
from popi.serving.store.jobs import Debounce
from popi.serving.store.merging import merge
from popi.serving.store.tables import keys, sessions, summaries
from popi.serving.store.tables import users as users_table

log = logging.getLogger("popi.gateway.store")


def rename_all(connection: Connection, now: float) -> None:
    """Rename and merge, in the transaction at hand."""
    renamed = merged = 0
    for (tenant, user_id), sources in _groups(connection).items():
        for source in sources:
            if users.find(connection, tenant, source) is not None:
                there = users.find(connection, tenant, user_id) is not None
                merge(connection, tenant, user_id, source, now, Debounce(), bulk=True)
                renamed, merged = renamed + (not there), merged + there
            # Keys and sessions may be of users of whom nothing is stored.
            mine = (keys.c.tenant == tenant, keys.c.user_id == source)
            connection.execute(update(keys).where(*mine).values(user_id=user_id))
            connection.execute(delete(sessions).where(sessions.c.tenant == tenant, sessions.c.user_id == source))
    if renamed or merged:
        log.warning("user ids have one form now", extra={"fields": {"renamed": renamed, "merged": merged}})


def _groups(connection: Connection) -> dict[tuple[str, str], list[str]]:
    """Ids that are not in their form, by tenant and form; those with the newest summary first, which then stays."""
    newest = func.coalesce(func.max(summaries.c.created_at), 0.0)
    same = (summaries.c.tenant == users_table.c.tenant) & (summaries.c.user_id == users_table.c.user_id)
    who = (users_table.c.tenant, users_table.c.user_id)
    queries = [select(*who, newest).outerjoin(summaries, same).group_by(*who)]
    for table in (keys, sessions):
        named = select(table.c.tenant, table.c.user_id, func.min(0.0)).where(table.c.user_id.is_not(None))
        queries.append(named.group_by(table.c.tenant, table.c.user_id))
    odd: dict[tuple[str, str], float] = {}
    for query in queries:
        for tenant, user_id, at in connection.execute(query):
            if _normal(user_id) != user_id:
                odd.setdefault((tenant, user_id), at)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for tenant, user_id in sorted(odd, key=lambda one: -odd[one]):
        form = _normal(user_id)
        if form is None:
            form = free = visible_form(user_id)
            n = 2
            while (tenant, free) in groups or users.find(connection, tenant, free) is not None:  # somebody else's
                free, n = f"{form[: LONGEST_ID - 8]}~{n}", n + 1
            form = free
        groups[tenant, form].append(user_id)
    return groups


def _normal(user_id: str) -> str | None:
    try:
        return normal_user_id(user_id)
    except DataError:
        return None
