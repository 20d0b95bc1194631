"""Two users who turn out to be one person: all of one becomes the other's, in the transaction at hand.

The one who is merged away is gone afterwards, as if erased: an id that stayed as another name would hand the summary of
one person to whoever gets that id next. What was under way for them (a chat that is to be kept, a link to their page, a
renewal) counts for nothing.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, Update, and_, bindparam, case, delete, or_, select, update

from popi.profiles.merging import merged
from popi.serving.store import audit, erasure, forbidden, jobs, outbox, summaries, users
from popi.serving.store.database import upsert
from popi.serving.store.jobs import Debounce
from popi.serving.store.summaries import VERSIONS_BYTES, VERSIONS_KEPT, Version
from popi.serving.store.tables import answers, deleted_signals, forbidden_words, keys, sessions, signals, usage
from popi.serving.store.tables import jobs as jobs_table
from popi.serving.store.tables import summaries as summaries_table
from popi.serving.store.tables import users as users_table

CHUNK = 500
"""Ids named in one statement."""


@dataclass(frozen=True)
class Moved:
    """How many rows of each kind became the other's; `known`: signals that were there already, and went."""

    signals: int
    known: int
    summary_versions: int
    answers: int
    keys: int


def merge(
    connection: Connection,
    tenant: str,
    user_id: str,
    source: str,
    now: float,
    debounce: Debounce,
    key_id: str | None = None,
    keep: tuple[int, int] = (VERSIONS_KEPT, VERSIONS_BYTES),
    bulk: bool = False,
) -> Moved | None:
    """Make all of `source` that of `user_id`, who is made if need be. What wins where both have it: docs/serving.md.

    Args:
        connection: a transaction that writes.
        tenant: whose users.
        user_id: who stays.
        source: who goes; another id than that.
        now: seconds since 1970.
        debounce: when the renewal is due that reads the signals of both.
        key_id: the key that the renewal is charged to.
        keep: how many versions of the summary stay, and their bytes.
        bulk: one of many: its renewal comes after the tenant's others.

    Returns:
        What was moved; None where there is no such source, and the transaction is to be rolled back.
    """
    for one in sorted((user_id, source)):  # in one order, so that two merges never wait for each other in a circle
        if one == user_id:
            users.lock(connection, tenant, user_id, now)
        elif not users.lock_existing(connection, tenant, source):
            return None
    of = _Pair(tenant, user_id, source)
    learns = all(users.learns(connection, tenant, one) for one in (user_id, source))
    ours, theirs = (summaries.current(connection, tenant, one) for one in (user_id, source))
    here, there = (users.reading(connection, tenant, one) for one in (user_id, source))
    newer = _newer(ours, theirs)
    first = source if newer is not None and newer is theirs else user_id  # whose summary stays current
    edited = newer is not None and summaries.by_hand(connection, tenant, first)
    renamed = ours is None and not here.upto  # there was nothing: all stays as it was, under another id
    if renamed:
        read: users.Reading | None = there
        added, known = connection.execute(of.moving(signals)).rowcount, 0
    else:
        before = (there if first == source else here).read if edited else None
        added, known, read = _signals(connection, of, first, before, again=theirs is not None)
    versions = _versions(connection, of, ours.version if ours is not None else 0)
    for apart in (forbidden_words, deleted_signals):
        there_too = select(apart.c.hash).where(*of.target(apart))
        connection.execute(delete(apart).where(*of.source(apart), apart.c.hash.in_(there_too)))
        connection.execute(of.moving(apart))
    # Whoever renews now loses the lease, and writes nothing: for the one who goes, and for the one who stays where
    # there is anything that they have not read. Before usage, since renewals lock the two in this order.
    if read is not None or not learns:
        connection.execute(delete(jobs_table).where(*of.target(jobs_table)))
    if renamed and learns:
        connection.execute(of.moving(jobs_table, lease=None, lease_until=None))
    connection.execute(delete(jobs_table).where(*of.source(jobs_table)))
    if ours is not None and theirs is not None and newer is not None:
        older = theirs if newer is ours else ours
        key, said = forbidden.secret(connection), forbidden.words(connection, tenant, user_id)
        text, clauses, banned = merged(
            newer.text, newer.clauses, newer.forbidden, older.clauses, older.forbidden, key, said
        )
        who, more = (tenant, user_id), (newer.author, now)
        put = partial(summaries.put, connection, *who, text, clauses, *more, expected=None, keep=keep)
        put(model=newer.model, forbidden=banned)
        forbidden.keep(connection, tenant, user_id, {})  # words of what no version holds any more go
    kept = _answers(connection, of, ours.version if ours is not None else 0) if learns else 0
    if not learns:
        connection.execute(delete(answers).where(or_(and_(*of.source(answers)), and_(*of.target(answers)))))
    moved = Moved(added, known, versions, kept, connection.execute(of.moving(keys)).rowcount)
    connection.execute(delete(sessions).where(*of.source(sessions)))
    _usage(connection, of)
    if learns and read is not None and read.upto and not renamed:
        jobs.request(connection, tenant, user_id, now, debounce, key_id=key_id, bulk=bulk)
    _row(connection, of, read, now)
    erasure.note(connection, tenant, source, now)
    audit.forget(connection, tenant, source)
    audit.note(connection, now, "merge", tenant, [user_id])
    audit.note(connection, now, "merge_away", tenant, [source], gone=True)
    outbox.add(connection, tenant, source, "user.erased", now, merged_into=user_id)
    if theirs is not None and (current := summaries.current(connection, tenant, user_id)) is not None:
        outbox.add(connection, tenant, user_id, "summary.changed", now, version=current.version)
    return moved


@dataclass(frozen=True)
class _Pair:
    tenant: str
    user_id: str
    gone: str

    def target(self, table: Table) -> tuple[ColumnElement[bool], ...]:
        return (table.c.tenant == self.tenant, table.c.user_id == self.user_id)

    def source(self, table: Table) -> tuple[ColumnElement[bool], ...]:
        return (table.c.tenant == self.tenant, table.c.user_id == self.gone)

    def moving(self, table: Table, **values: object) -> Update:
        return update(table).where(*self.source(table)).values(user_id=self.user_id, **values)


def _newer(ours: Version | None, theirs: Version | None) -> Version | None:
    if ours is None or theirs is None:
        return ours or theirs
    return theirs if theirs.created_at > ours.created_at else ours


def _signals(
    connection: Connection, of: _Pair, first: str, reading: int | None, again: bool
) -> tuple[int, int, users.Reading | None]:
    """Move the signals, and number all of them anew where any is new, or in any case (`again`): by time, but first
    those that the current summary has read.

    Returns:
        How many were moved, how many were known, and how far they are read now; None: as before.
    """
    columns = (signals.c.user_id, signals.c.signal_id, signals.c.position, signals.c.added_at)
    rows: list[Any] = [*connection.execute(select(*columns).where(*of.target(signals)))]
    there = {row.signal_id for row in rows}
    new: list[Any] = []
    known: list[str] = []
    for row in connection.execute(select(*columns).where(*of.source(signals))):
        if row.signal_id in there:
            known.append(row.signal_id)
        else:
            new.append(row)
    for start in range(0, len(known), CHUNK):
        named = signals.c.signal_id.in_(known[start : start + CHUNK])
        connection.execute(delete(signals).where(*of.source(signals), named))
    if not (new or again):
        return 0, len(known), None

    def in_summary(row: Any) -> bool:
        return reading is not None and row.user_id == first and row.position < reading

    rows += new
    rows.sort(key=lambda row: (not in_summary(row), row.added_at, row.user_id != first, row.position))
    connection.execute(of.moving(signals))
    moves = [{"named": row.signal_id, "at": position} for position, row in enumerate(rows) if row.position != position]
    if moves:
        one = update(signals).where(*of.target(signals), signals.c.signal_id == bindparam("named"))
        connection.execute(one.values(position=bindparam("at")), moves)
    read = None if reading is None else sum(map(in_summary, rows))
    return len(new), len(known), users.Reading(len(rows), read)


def _versions(connection: Connection, of: _Pair, behind: int) -> int:
    """Move the versions of the summary behind those that are there, so that these keep their numbers."""
    columns = summaries_table.c
    moving = of.moving(summaries_table, version=columns.version + behind, restores=columns.restores + behind)
    return connection.execute(moving).rowcount


def _answers(connection: Connection, of: _Pair, behind: int) -> int:
    there = select(answers.c.answer_id).where(*of.target(answers))
    connection.execute(delete(answers).where(*of.source(answers), answers.c.answer_id.in_(there)))
    version = case((answers.c.version > 0, answers.c.version + behind), else_=0)
    return connection.execute(of.moving(answers, version=version)).rowcount


def _usage(connection: Connection, of: _Pair) -> None:
    """Add up what both used: a quota is not had twice."""
    for row in connection.execute(select(usage).where(*of.source(usage))).all():
        add = upsert(connection, usage).values(**{**row._mapping, "user_id": of.user_id})
        counts = ("renewals", "calls", "input_tokens", "output_tokens")
        more = {name: usage.c[name] + add.excluded[name] for name in counts}
        connection.execute(add.on_conflict_do_update(index_elements=[*usage.primary_key], set_=more))
    connection.execute(delete(usage).where(*of.source(usage)))


def _row(connection: Connection, of: _Pair, reading: users.Reading | None, now: float) -> None:
    """The user's own row; what either has switched off is off."""
    theirs = connection.execute(select(users_table).where(*of.source(users_table))).one()
    ours = connection.execute(select(users_table).where(*of.target(users_table))).one()
    values: dict[str, Any] = {
        "created_at": min(ours.created_at, theirs.created_at),
        "paused": max(ours.paused, theirs.paused),
        "learn_off": max(ours.learn_off, theirs.learn_off),
        "resumed_at": max(ours.resumed_at, theirs.resumed_at),
        "rebuilt_at": max(ours.rebuilt_at, theirs.rebuilt_at),
    }
    # One of whom only captured answers are stored goes with those (store.expiry), unless the other stays.
    times = [row.expires_at for row in (ours, theirs) if row is theirs or row.created_at != now]
    values["expires_at"] = None if None in times or values["learn_off"] else max(times)
    if reading is not None:
        values |= {"next_position": reading.upto, "signals_read": reading.read}
        values |= {"base_version": reading.base_version, "base_read": reading.base_read}
    connection.execute(update(users_table).where(*of.target(users_table)).values(**values))
    connection.execute(delete(users_table).where(*of.source(users_table)))
