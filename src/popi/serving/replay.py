"""After restoring a backup, repeat the erasures, merges, switches and key revocations that the log has recorded since.

A backup brings back erased users, merged users as two, old states of switches and revoked keys. Each of these changes
left a line in the log (`erased`, `merged`, `switched`, `key revoked`). Lines identify users by their marks
(store.marks), so the marks of all users in the store are computed and compared.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, delete

from popi.errors import DataError
from popi.serving.api.commands import data_on_disk, merge, scrub_now
from popi.serving.store import controls, erasure, keys, opt_outs, users
from popi.serving.store.controls import Switches
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.marks import Marks, marks
from popi.serving.store.tables import sessions

USER_EVENTS = ("erased", "merged", "switched")
KEY_EVENT = "key revoked"
USER_FIELDS = ("tenant", "user", "store")
REQUIRED = {
    "erased": USER_FIELDS,
    "merged": (*USER_FIELDS, "source"),
    "switched": (*USER_FIELDS, "use", "learn"),
    "key revoked": ("key_id",),
}
EVENTS = tuple(REQUIRED)
ROUNDING_S = 0.001
"""Times in the log are rounded to milliseconds."""


class Line(BaseModel):
    """The relevant fields of a log line."""

    model_config = ConfigDict(extra="ignore", strict=True)

    event: str
    at: float
    tenant: str = ""
    user: str = ""
    store: str = ""
    source: str = ""
    use: bool = True
    learn: bool = True
    key_id: str = ""


@dataclass
class Replayed:
    """The result of a replay.

    Attributes:
        lines: lines read, from the time since the backup.
        erased: users who were in the backup and were erased again.
        merged: users who were merged into another again.
        switched: users whose switches were set again, including users who are not in the backup.
        revoked: keys that were valid in the backup.
        sessions: sessions on the pages; all were ended.
        not_merged: users who were left unmerged, because the other user was created after the backup.
        other_stores: lines of other stores, which were skipped.
        data_on_disk: the state of the erased bytes, as in a receipt.
    """

    lines: int = 0
    erased: int = 0
    merged: int = 0
    switched: int = 0
    revoked: int = 0
    sessions: int = 0
    not_merged: int = 0
    other_stores: int = 0
    data_on_disk: str = "overwritten"


def read_lines(text: Iterable[str], since: float, name: str = "the log") -> Iterator[Line]:
    """The relevant lines of a log, which may have a log collector's prefix.

    Args:
        text: the log's lines.
        since: the time of the backup, in seconds since 1970; older lines are skipped.
        name: the file's name, for errors.

    Raises:
        DataError: a relevant line is incomplete; it must not be skipped by mistake.
    """
    for number, raw in enumerate(text, 1):
        where = f"{name}, line {number}"
        if any(f'\\"{event}\\"' in raw for event in EVENTS):
            raise DataError(
                f"{where}: popi's line is wrapped in another JSON line; extract it first (for example with jq -r .log)"
            )
        if not any(f'"{event}"' in raw for event in EVENTS):
            continue
        try:
            fields = json.loads(raw[raw.index("{") :])
            if not isinstance(fields, dict) or fields.get("event") not in EVENTS:
                continue
            line = Line(**fields)
        except ValueError:  # includes pydantic's errors
            raise DataError(f"{where}: the line is truncated or was not written by popi; repair or remove it") from None
        missing = [one for one in REQUIRED[line.event] if one not in fields]
        if missing:
            raise DataError(
                f"{where}: {line.event!r} without {missing[0]}; was it written by an older version of popi?"
            )
        if line.at >= since - ROUNDING_S:
            yield line


@dataclass
class _People:
    """The users that lines refer to, by tenant and mark; several ids per mark if a merge can't be repeated."""

    ids: dict[tuple[str, str], list[str]]

    @classmethod
    def of(cls, database: Database, store_marks: Marks, lines: Iterable[Line]) -> "_People":
        marks = {(line.tenant, mark) for line in lines for mark in (line.user, line.source)}
        ids: dict[tuple[str, str], list[str]] = {}
        for tenant in {tenant for tenant, _ in marks}:
            after = None
            while page := database.read(users.list_ids, tenant, after):
                after = page[-1]
                for user_id in page:
                    if (key := (tenant, store_marks.of(tenant, user_id))) in marks:
                        ids[key] = [user_id]
        return cls(ids)


def replay(database: Database, lines: Iterable[Line]) -> Replayed:
    """Repeat the changes in the lines, in chronological order. Replaying again changes nothing.

    A user who was created again after an erasure is a new user and stays.

    Raises:
        DataError: all lines about users are of other stores, or the backup is older than marks.
        StoreError: the database failed. Changes so far are kept; run it again.
    """
    ordered = sorted(lines, key=lambda line: line.at)
    result = Replayed(lines=len(ordered))
    store_marks = database.write(marks)
    user_lines = [line for line in ordered if line.event in USER_EVENTS]
    own_lines = [line for line in user_lines if line.store == store_marks.store]
    result.other_stores = len(user_lines) - len(own_lines)
    if user_lines and not own_lines:
        raise DataError(
            f"all {len(user_lines)} lines about users are of other stores ({user_lines[0].store}), but this is store "
            f"{store_marks.store}: the backup is of another store, or older than the first start of this version on it"
        )
    people = _People.of(database, store_marks, own_lines)
    for line in ordered:
        if line.event == KEY_EVENT:
            result.revoked += database.write(_revoke, line)
        elif line.event == "merged" and line.store == store_marks.store:
            _merge_again(database, line, people, result)
        elif line.store == store_marks.store:
            ids = people.ids.get((line.tenant, line.user), [])
            if line.event == "switched":
                result.switched += database.write(_switch, line, ids, database.now)
            else:
                erased = {user_id for user_id in ids if database.write(_erase, line, user_id, database.now)}
                result.erased += len(erased)
                ids[:] = [user_id for user_id in ids if user_id not in erased]
    result.sessions = database.write(lambda connection: connection.execute(delete(sessions)).rowcount)
    result.data_on_disk = data_on_disk(database, not scrub_now(database))
    return result


def _merge_again(database: Database, line: Line, people: _People, result: Replayed) -> None:
    into = people.ids.setdefault((line.tenant, line.user), [])
    for source in people.ids.pop((line.tenant, line.source), []):
        if not into or not database.write(_merge, line, into[0], source, database.now):
            into.append(source)
            result.not_merged += 1
        else:
            result.merged += 1


def _merge(connection: Connection, line: Line, into: str, source: str, now: Callable[[Connection], float]) -> bool:
    if not _from_before(connection, line, source):
        return False
    merge(connection, line.tenant, into, source, now(connection), Debounce())
    return True


def _erase(connection: Connection, line: Line, user_id: str, now: Callable[[Connection], float]) -> bool:
    if not _from_before(connection, line, user_id):
        return False
    return erasure.erase(connection, line.tenant, user_id, now(connection)).any


def _from_before(connection: Connection, line: Line, user_id: str) -> bool:
    user = users.find(connection, line.tenant, user_id)
    return user is not None and user.created_at <= line.at + ROUNDING_S


def _switch(connection: Connection, line: Line, ids: list[str], now: Callable[[Connection], float]) -> bool:
    """Set switches again. For a user who is not in the backup, store them by mark, to apply once the user exists."""
    switches = Switches(line.use, line.learn)
    if not ids:
        opt_outs.store(connection, line.user, int(not line.use), int(not line.learn))
        return True
    outdated = [user_id for user_id in ids if controls.find(connection, line.tenant, user_id) != switches]
    for user_id in outdated:
        controls.put(connection, line.tenant, user_id, now(connection), Debounce(), use=line.use, learn=line.learn)
    return bool(outdated)


def _revoke(connection: Connection, line: Line) -> bool:
    key = keys.find(connection, line.key_id)
    if key is None or key.revoked_at is not None:
        return False  # a key created after the backup no longer exists
    keys.revoke(connection, line.key_id, line.at)
    return True
