"""After a backup was restored: what the log says was taken away since is taken away again.

A backup brings back erased users, merged ones as two, switches as they stood, and keys that were revoked since. Each of
these left a line in the log (`erased`, `merged`, `switched`, `key revoked`). Lines name users by their marks
(store.marks), so each user of the store is marked, and those are found whom a line means.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, delete

from popi.errors import DataError
from popi.serving.api.commands import bytes_of, merge, scrub_now
from popi.serving.store import controls, erasure, keys, opt_outs, users
from popi.serving.store.controls import Switches
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.store.marks import Marks, marks
from popi.serving.store.tables import sessions

USER_EVENTS = ("erased", "merged", "switched")
KEY_EVENT = "key revoked"
WHO = ("tenant", "user", "store")
NEEDED = {"erased": WHO, "merged": (*WHO, "source"), "switched": (*WHO, "use", "learn"), "key revoked": ("key_id",)}
EVENTS = tuple(NEEDED)
ROUNDED = 0.001
"""Times in the log have milliseconds."""


class Line(BaseModel):
    """What counts of a line of the log."""

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
    """What was done.

    Attributes:
        lines: that were read, of the time since the backup.
        erased: users who were in the backup and are gone again.
        merged: users who were merged into another again.
        switched: users whose switches were set again; of those who are not in the backup, too.
        revoked: keys that were good in the backup.
        sessions: of people signed in on the pages, all of which were ended.
        not_merged: users who should be part of another, who came after the backup: they stay what they are.
        other_stores: lines of other stores, which were passed over.
        bytes: of the erased, as in a receipt.
    """

    lines: int = 0
    erased: int = 0
    merged: int = 0
    switched: int = 0
    revoked: int = 0
    sessions: int = 0
    not_merged: int = 0
    other_stores: int = 0
    bytes: str = "overwritten"


def read_lines(text: Iterable[str], since: float, name: str = "the log") -> Iterator[Line]:
    """The lines that matter, of a log that may hold others, and words of a log collector in front of each.

    Args:
        text: the log's lines.
        since: seconds since 1970; what happened before is in the backup.
        name: of the file, for errors.

    Raises:
        DataError: a line that matters is not whole: nothing may be passed over by mistake.
    """
    for number, raw in enumerate(text, 1):
        where = f"{name}, line {number}"
        if any(f'\\"{event}\\"' in raw for event in EVENTS):
            raise DataError(f"{where}: popi's line is inside another line of JSON; take it out first (jq -r .log, say)")
        if not any(f'"{event}"' in raw for event in EVENTS):
            continue
        try:
            found = json.loads(raw[raw.index("{") :])
            if not isinstance(found, dict) or found.get("event") not in EVENTS:
                continue
            line = Line(**found)
        except ValueError:  # pydantic's errors are such
            raise DataError(f"{where}: is cut, or none that popi wrote; mend it, or take it out") from None
        missing = [one for one in NEEDED[line.event] if one not in found]
        if missing:
            raise DataError(f"{where}: {line.event!r} without {missing[0]}; is it of an older popi?")
        if line.at >= since - ROUNDED:
            yield line


@dataclass
class _People:
    """The users whom lines mean, by tenant and mark; several ids at one where a merge can't be done again."""

    ids: dict[tuple[str, str], list[str]]

    @classmethod
    def of(cls, database: Database, own: Marks, lines: Iterable[Line]) -> "_People":
        named = {(line.tenant, mark) for line in lines for mark in (line.user, line.source)}
        found: dict[tuple[str, str], list[str]] = {}
        for tenant in {tenant for tenant, _ in named}:
            after = None
            while page := database.read(users.list_ids, tenant, after):
                after = page[-1]
                for user_id in page:
                    if (key := (tenant, own.of(tenant, user_id))) in named:
                        found[key] = [user_id]
        return cls(found)


def replay(database: Database, lines: Iterable[Line]) -> Replayed:
    """Do again, in the order of time, what the lines say. A second time nothing is left to do.

    A user who came again after their erasure stays: they are new.

    Raises:
        DataError: every line about users is of another store, or of a backup from before there were marks.
        StoreError: the database failed. What was done by then stays done; begin again.
    """
    ordered = sorted(lines, key=lambda line: line.at)
    done = Replayed(lines=len(ordered))
    own = database.write(marks)
    of_users = [line for line in ordered if line.event in USER_EVENTS]
    mine = [line for line in of_users if line.store == own.store]
    done.other_stores = len(of_users) - len(mine)
    if of_users and not mine:
        raise DataError(
            f"all {len(of_users)} lines about users are of other stores ({of_users[0].store}), and this one is "
            f"{own.store}: the backup is of another store, or from before a gateway of this version was started on it"
        )
    people = _People.of(database, own, mine)
    for line in ordered:
        if line.event == KEY_EVENT:
            done.revoked += database.write(_revoke, line)
        elif line.event == "merged" and line.store == own.store:
            _merge_again(database, line, people, done)
        elif line.store == own.store:
            ids = people.ids.get((line.tenant, line.user), [])
            if line.event == "switched":
                done.switched += database.write(_switch, line, ids, database.now)
            else:
                gone = {user_id for user_id in ids if database.write(_erase, line, user_id, database.now)}
                done.erased += len(gone)
                ids[:] = [user_id for user_id in ids if user_id not in gone]
    done.sessions = database.write(lambda connection: connection.execute(delete(sessions)).rowcount)
    done.bytes = bytes_of(database, not scrub_now(database))
    return done


def _merge_again(database: Database, line: Line, people: _People, done: Replayed) -> None:
    into = people.ids.setdefault((line.tenant, line.user), [])
    for source in people.ids.pop((line.tenant, line.source), []):
        if not into or not database.write(_merge, line, into[0], source, database.now):
            into.append(source)
            done.not_merged += 1
        else:
            done.merged += 1


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
    found = users.find(connection, line.tenant, user_id)
    return found is not None and found.created_at <= line.at + ROUNDED


def _switch(connection: Connection, line: Line, ids: list[str], now: Callable[[Connection], float]) -> bool:
    """Of somebody whom the backup does not know, it is kept by their mark: it holds when they come."""
    wanted = Switches(line.use, line.learn)
    if not ids:
        opt_outs.store(connection, line.user, int(not line.use), int(not line.learn))
        return True
    behind = [user_id for user_id in ids if controls.find(connection, line.tenant, user_id) != wanted]
    for user_id in behind:
        controls.put(connection, line.tenant, user_id, now(connection), Debounce(), use=line.use, learn=line.learn)
    return bool(behind)


def _revoke(connection: Connection, line: Line) -> bool:
    found = keys.find(connection, line.key_id)
    if found is None or found.revoked_at is not None:
        return False  # a key from after the backup is gone with it
    keys.revoke(connection, line.key_id, line.at)
    return True
