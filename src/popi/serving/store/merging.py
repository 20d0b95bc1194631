"""Merging two users who turn out to be one person: everything of one becomes the other's, in the caller's transaction.

The merged user is gone afterwards, as if erased: if the id remained as an alias, the next person to get that id would
receive someone else's summary. Anything in progress for it (a chat to store, a link to the page, a renewal) is
discarded.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, Update, and_, bindparam, case, delete, or_, select, update

from popi.profiles.merging import merged
from popi.serving.store import audit, changes, erasure, forbidden, jobs, outbox, summaries, users
from popi.serving.store.database import upsert
from popi.serving.store.jobs import Debounce
from popi.serving.store.summaries import VERSIONS_BYTES, VERSIONS_KEPT, Version
from popi.serving.store.tables import answers, deleted_signals, forbidden_words, keys, sessions, signals, usage
from popi.serving.store.tables import jobs as jobs_table
from popi.serving.store.tables import summaries as summaries_table
from popi.serving.store.tables import users as users_table

CHUNK = 500
"""Ids per SQL statement."""


@dataclass(frozen=True)
class Moved:
    """How many rows of each kind were moved. `duplicates` are signals that the remaining user already had; they were
    deleted."""

    signals: int
    duplicates: int
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
    """Move everything from `source` to `user_id`, creating that user if necessary. For conflicts see docs/serving.md.

    Args:
        connection: a write transaction.
        tenant: the users' tenant.
        user_id: the user who stays.
        source: the user who is merged away; a different id.
        now: seconds since 1970.
        debounce: when the renewal from both users' signals is due.
        key_id: the key to charge for the renewal.
        keep: maximum number of summary versions, and of their bytes.
        bulk: one merge of many; its renewal comes after the tenant's others.

    Returns:
        What was moved; `None` if `source` does not exist, and then the transaction must be rolled back.
    """
    for one in sorted((user_id, source)):  # in a fixed order, so that two merges can't deadlock
        if one == user_id:
            users.lock(connection, tenant, user_id, now)
        elif not users.lock_existing(connection, tenant, source):
            return None
    of = _Pair(tenant, user_id, source)
    learns = all(users.learns(connection, tenant, one) for one in (user_id, source))
    target_summary, source_summary = (summaries.current(connection, tenant, one) for one in (user_id, source))
    target_reading, source_reading = (users.reading(connection, tenant, one) for one in (user_id, source))
    newer = _newer(target_summary, source_summary)
    first = source if newer is not None and newer is source_summary else user_id  # owner of the summary to keep
    edited = newer is not None and summaries.by_hand(connection, tenant, first)
    renamed = target_summary is None and not target_reading.next_position  # the target is new: only the id changes
    if renamed:
        read: users.Reading | None = source_reading
        added, known = connection.execute(of.moving(signals)).rowcount, 0
    else:
        before = (source_reading if first == source else target_reading).read if edited else None
        added, known, read = _signals(connection, of, first, before, renumber=source_summary is not None)
    versions = _versions(connection, of, target_summary.version if target_summary is not None else 0)
    for hashes in (forbidden_words, deleted_signals):
        duplicates = select(hashes.c.hash).where(*of.target(hashes))
        connection.execute(delete(hashes).where(*of.source(hashes), hashes.c.hash.in_(duplicates)))
        connection.execute(of.moving(hashes))
    # Running renewals lose their lease and write nothing: always for the source, and for the target if there is
    # anything unread. This comes before usage because renewals lock the two in this order.
    if read is not None or not learns:
        connection.execute(delete(jobs_table).where(*of.target(jobs_table)))
    if renamed and learns:
        connection.execute(of.moving(jobs_table, lease=None, lease_until=None))
    connection.execute(delete(jobs_table).where(*of.source(jobs_table)))
    if target_summary is not None and source_summary is not None and newer is not None:
        older = source_summary if newer is target_summary else target_summary
        key, words = forbidden.secret(connection), forbidden.words(connection, tenant, user_id)
        text, clauses, banned = merged(
            newer.text, newer.clauses, newer.forbidden, older.clauses, older.forbidden, key, words
        )
        user, more = (tenant, user_id), (newer.author, now)
        put = partial(summaries.put, connection, *user, text, clauses, *more, expected=None, keep=keep)
        put(model=newer.model, forbidden=banned)
        forbidden.store_words(connection, tenant, user_id, {})  # delete words that no version refers to any more
    moved_answers = 0
    if learns:
        moved_answers = _answers(connection, of, target_summary.version if target_summary is not None else 0)
    if not learns:
        connection.execute(delete(answers).where(or_(and_(*of.source(answers)), and_(*of.target(answers)))))
    key_ids = list(connection.execute(of.moving(keys).returning(keys.c.key_id)).scalars())
    changes.add_keys(connection, key_ids)
    changes.add_user(connection, tenant, user_id)
    changes.add_user(connection, tenant, source, "erased")
    moved = Moved(added, known, versions, moved_answers, len(key_ids))
    connection.execute(delete(sessions).where(*of.source(sessions)))
    _usage(connection, of)
    if learns and read is not None and read.next_position and not renamed:
        jobs.request(connection, tenant, user_id, now, debounce, key_id=key_id, bulk=bulk)
    _row(connection, of, read, now)
    erasure.note(connection, tenant, source, now)
    audit.forget(connection, tenant, source)
    audit.note(connection, now, "merge", tenant, [user_id])
    audit.note(connection, now, "merge_away", tenant, [source], gone=True)
    outbox.add(connection, tenant, source, "user.erased", now, merged_into=user_id)
    if source_summary is not None and (current := summaries.current(connection, tenant, user_id)) is not None:
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


def _newer(target: Version | None, source: Version | None) -> Version | None:
    if target is None or source is None:
        return target or source
    return source if source.created_at > target.created_at else target


def _signals(
    connection: Connection, of: _Pair, first: str, reading: int | None, renumber: bool
) -> tuple[int, int, users.Reading | None]:
    """Move the signals. If any are new, or if `renumber` is set, renumber all of them by time, with those that the
    current summary has read first.

    Returns:
        How many were moved, how many were duplicates, and how far they have been read; `None` if unchanged.
    """
    columns = (signals.c.user_id, signals.c.signal_id, signals.c.position, signals.c.added_at)
    rows: list[Any] = [*connection.execute(select(*columns).where(*of.target(signals)))]
    existing = {row.signal_id for row in rows}
    new: list[Any] = []
    known: list[str] = []
    for row in connection.execute(select(*columns).where(*of.source(signals))):
        if row.signal_id in existing:
            known.append(row.signal_id)
        else:
            new.append(row)
    for start in range(0, len(known), CHUNK):
        duplicates = signals.c.signal_id.in_(known[start : start + CHUNK])
        connection.execute(delete(signals).where(*of.source(signals), duplicates))
    if not (new or renumber):
        return 0, len(known), None

    def in_summary(row: Any) -> bool:
        return reading is not None and row.user_id == first and row.position < reading

    rows += new
    rows.sort(key=lambda row: (not in_summary(row), row.added_at, row.user_id != first, row.position))
    connection.execute(of.moving(signals))
    moves = [{"of_id": row.signal_id, "at": position} for position, row in enumerate(rows) if row.position != position]
    if moves:
        one = update(signals).where(*of.target(signals), signals.c.signal_id == bindparam("of_id"))
        connection.execute(one.values(position=bindparam("at")), moves)
    read = None if reading is None else sum(map(in_summary, rows))
    return len(new), len(known), users.Reading(len(rows), read)


def _versions(connection: Connection, of: _Pair, offset: int) -> int:
    """Move the summary versions, adding `offset` to their numbers so that the target's versions keep theirs."""
    columns = summaries_table.c
    moving = of.moving(summaries_table, version=columns.version + offset, restores=columns.restores + offset)
    return connection.execute(moving).rowcount


def _answers(connection: Connection, of: _Pair, offset: int) -> int:
    existing = select(answers.c.answer_id).where(*of.target(answers))
    connection.execute(delete(answers).where(*of.source(answers), answers.c.answer_id.in_(existing)))
    version = case((answers.c.version > 0, answers.c.version + offset), else_=0)
    return connection.execute(of.moving(answers, version=version)).rowcount


def _usage(connection: Connection, of: _Pair) -> None:
    """Add up the usage of both users, so that merging doesn't double a quota."""
    for row in connection.execute(select(usage).where(*of.source(usage))).all():
        add = upsert(connection, usage).values(**{**row._mapping, "user_id": of.user_id})
        counts = ("renewals", "calls", "input_tokens", "output_tokens")
        sums = {name: usage.c[name] + add.excluded[name] for name in counts}
        connection.execute(add.on_conflict_do_update(index_elements=[*usage.primary_key], set_=sums))
    connection.execute(delete(usage).where(*of.source(usage)))


def _row(connection: Connection, of: _Pair, reading: users.Reading | None, now: float) -> None:
    """Merge the users' own rows; anything that either switched off is off."""
    source = connection.execute(select(users_table).where(*of.source(users_table))).one()
    target = connection.execute(select(users_table).where(*of.target(users_table))).one()
    values: dict[str, Any] = {
        "created_at": min(target.created_at, source.created_at),
        "paused": max(target.paused, source.paused),
        "learn_off": max(target.learn_off, source.learn_off),
        "resumed_at": max(target.resumed_at, source.resumed_at),
        "rebuilt_at": max(target.rebuilt_at, source.rebuilt_at),
    }
    # A user with only captured answers expires together with them (store.expiry), unless the other one doesn't.
    times = [row.expires_at for row in (target, source) if row is source or row.created_at != now]
    values["expires_at"] = None if None in times or values["learn_off"] else max(times)
    if reading is not None:
        values |= {"next_position": reading.next_position, "signals_read": reading.read}
        values |= {"base_version": reading.base_version, "base_read": reading.base_read}
    connection.execute(update(users_table).where(*of.target(users_table)).values(**values))
    connection.execute(delete(users_table).where(*of.source(users_table)))
