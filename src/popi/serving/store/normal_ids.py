"""A migration step that normalises user ids (popi.profiles.user_id) in stores older than the normal form.

Users whose ids have the same normal form are merged (see `merging`). In ids that would be rejected today, invisible
characters are percent-encoded, so that all users stay reachable and distinct.
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
    """Rename and merge users in the caller's transaction."""
    renamed = merged = 0
    for (tenant, user_id), sources in _groups(connection).items():
        for source in sources:
            if users.find(connection, tenant, source) is not None:
                exists = users.find(connection, tenant, user_id) is not None
                merge(connection, tenant, user_id, source, now, Debounce(), bulk=True)
                renamed, merged = renamed + (not exists), merged + exists
            # Keys and sessions may exist for users about whom nothing is stored.
            is_source = (keys.c.tenant == tenant, keys.c.user_id == source)
            connection.execute(update(keys).where(*is_source).values(user_id=user_id))
            connection.execute(delete(sessions).where(sessions.c.tenant == tenant, sessions.c.user_id == source))
    if renamed or merged:
        log.warning("user ids were normalised", extra={"fields": {"renamed": renamed, "merged": merged}})


def _groups(connection: Connection) -> dict[tuple[str, str], list[str]]:
    """Ids not in normal form, by tenant and normal form; the one with the newest summary, which wins, comes first."""
    newest = func.coalesce(func.max(summaries.c.created_at), 0.0)
    same = (summaries.c.tenant == users_table.c.tenant) & (summaries.c.user_id == users_table.c.user_id)
    columns = (users_table.c.tenant, users_table.c.user_id)
    queries = [select(*columns, newest).outerjoin(summaries, same).group_by(*columns)]
    for table in (keys, sessions):
        ids = select(table.c.tenant, table.c.user_id, func.min(0.0)).where(table.c.user_id.is_not(None))
        queries.append(ids.group_by(table.c.tenant, table.c.user_id))
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
            while (tenant, free) in groups or users.find(connection, tenant, free) is not None:  # another user's
                free, n = f"{form[: LONGEST_ID - 8]}~{n}", n + 1
            form = free
        groups[tenant, form].append(user_id)
    return groups


def _normal(user_id: str) -> str | None:
    try:
        return normal_user_id(user_id)
    except DataError:
        return None
