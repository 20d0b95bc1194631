"""Changes to one user, shared by the API, `popi users` and `popi replay`; `…_now` is the command line's form."""

import logging
from collections.abc import Callable

from sqlalchemy import Connection

from popi.errors import DataError
from popi.profiles.answers import Deleted, Receipt, Removed, moment
from popi.serving.api.stored import NotFound, OverBound, check_bounds, no_user
from popi.serving.settings import ProfileSettings
from popi.serving.store import audit, controls, erasure, jobs, merging, outbox, summaries, users
from popi.serving.store.changes import wait_for_all
from popi.serving.store.controls import Switches
from popi.serving.store.database import Database
from popi.serving.store.deletion import Deleter, Deletion
from popi.serving.store.jobs import Debounce
from popi.serving.store.marks import marks
from popi.serving.store.merging import Moved

log = logging.getLogger("popi.gateway.profiles")

Line = dict[str, object]
"""The fields of a log line."""


def merge(
    connection: Connection,
    tenant: str,
    user_id: str,
    source: str,
    now: float,
    debounce: Debounce,
    key_id: str | None = None,
    bounds: ProfileSettings | None = None,
) -> Moved:
    """`merging.merge` within `bounds`; unlimited without them.

    Raises:
        NotFound: the source does not exist.
        OverBound: the user would have too many signals.
        DataError: both are the same user.
    """
    if user_id == source:
        raise DataError("both ids are the same user: there is nothing to merge")
    keep = bounds.keep if bounds is not None else (summaries.VERSIONS_KEPT, summaries.VERSIONS_BYTES)
    moved = merging.merge(connection, tenant, user_id, source, now, debounce, key_id, keep)
    if moved is None:
        raise NotFound("no_user", "the user to merge into this one does not exist")
    if bounds is not None and moved.signals:
        check_bounds(connection, tenant, user_id, bounds)
    return moved


def erase(connection: Connection, tenant: str, user_id: str, now: float) -> tuple[erasure.Removed, Line, bool]:
    """Erase a user. Returns the counts, the log line, and whether a webhook still has to be delivered."""
    line = marks(connection).line(tenant, user_id, now)
    removed = erasure.erase(connection, tenant, user_id, now)
    return removed, line, outbox.has_pending(connection, tenant, user_id)


def erase_now(database: Database, tenant: str, user_id: str) -> Receipt:
    """Erase a user from the command line: waits for running gateways, and until the bytes are overwritten, however
    large the file."""

    def write(connection: Connection) -> tuple[float, tuple[erasure.Removed, Line, bool]]:
        now = database.now(connection)
        return now, erase(connection, tenant, user_id, now)

    at, (removed, line, webhook_pending) = database.write(write)
    log.info("erased", extra={"fields": {**line, **removed.__dict__}})
    wait_for_all(database)
    return receipt(database, removed, at, not scrub_now(database) or webhook_pending)


def merge_now(database: Database, tenant: str, user_id: str, source: str) -> Moved:
    """Merge two users from the command line, without limits.

    Raises:
        NotFound, DataError: as in `merge`.
    """

    def write(connection: Connection) -> tuple[Moved, Line]:
        now = database.now(connection)
        moved = merge(connection, tenant, user_id, source, now, Debounce())
        return moved, merged_line(connection, tenant, user_id, source, now)

    moved, line = database.write(write)
    log.info("merged", extra={"fields": {**line, **moved.__dict__}})
    wait_for_all(database)
    return moved


def switch_now(database: Database, tenant: str, user_id: str, use: bool | None, learn: bool | None) -> Switches:
    """Set a user's switches from the command line."""

    def write(connection: Connection) -> tuple[Switches, Line]:
        now = database.now(connection)
        after = controls.put(connection, tenant, user_id, now, Debounce(), use=use, learn=learn)
        audit.note(connection, now, "set_controls", tenant, [user_id])
        return after, switched_line(connection, tenant, user_id, after, now)

    after, line = database.write(write)
    log.info("switched", extra={"fields": line})
    if use is False:
        wait_for_all(database)
    return after


def switched_line(connection: Connection, tenant: str, user_id: str, after: Switches, now: float) -> Line:
    """The log line for switches, read by serving.replay."""
    return {**marks(connection).line(tenant, user_id, now), "use": after.use, "learn": after.learn}


def merged_line(connection: Connection, tenant: str, user_id: str, source: str, now: float) -> Line:
    """The log line for a merge, read by serving.replay."""
    store_marks = marks(connection)
    return {**store_marks.line(tenant, user_id, now), "source": store_marks.of(tenant, source)}


def delete_now(
    database: Database,
    tenant: str,
    user_id: str,
    *,
    signal: str | None = None,
    clause: str | None = None,
    version: int | None = None,
) -> Deleted:
    """Delete a signal, clause or version from the command line: waits until the bytes are overwritten.

    Raises:
        NotFound: no such user, signal, clause or version.
    """

    def write(connection: Connection) -> Deletion:
        if not users.lock_existing(connection, tenant, user_id):
            raise no_user()
        deleting = Deleter(connection, tenant, user_id, database.now(connection), Debounce())
        if signal is not None:
            deleted = deleting.signal(signal)
        elif clause is not None:
            deleted = deleting.clause(clause, "admin")
        else:
            deleted = deleting.version(version or 0, "admin")
        if not deleted:
            raise NotFound("nothing", "this user has nothing with that id; `popi users show` lists what is stored")
        kind = "signal" if signal is not None else "clause" if clause is not None else "version"
        audit.note(connection, database.now(connection), f"delete_{kind}", tenant, [user_id])
        return deleting.done

    done = database.write(write)
    wait_for_all(database)
    return Deleted.model_validate(done.__dict__ | {"data_on_disk": data_on_disk(database, not scrub_now(database))})


def scrub_now(database: Database) -> bool:
    """Overwrite deleted bytes, however large the file. Returns whether none are left."""
    if (due := database.read(erasure.scrub_due)) is None:
        return True
    done = database.scrub()
    if done:
        database.write(erasure.scrubbed, due)
    return done


def receipt(database: Database, removed: erasure.Removed, at: float, pending: bool) -> Receipt:
    """The receipt of an erasure."""
    fields = {
        "erased_at": moment(at),
        "removed": Removed(**removed.__dict__),
        "data_on_disk": data_on_disk(database, pending),
    }
    return Receipt.model_validate(fields)


def data_on_disk(database: Database, pending: bool) -> str:
    """The state of deleted bytes, as receipts name it."""
    return "left_to_postgresql" if database.kind == "postgresql" else "scheduled" if pending else "overwritten"


def rebuild(
    connection: Connection,
    tenant: str,
    user_id: str,
    clock: Callable[[Connection], float],
    wait: float = 0.0,
    key_id: str | None = None,
) -> None:
    """Request a renewal that reads all of a user's signals, at least `wait` seconds after the last rebuild. Locked
    clauses stay.

    Raises:
        NotFound: no such user.
        OverBound: 409, the user has turned learning off.
    """
    if not users.lock_existing(connection, tenant, user_id):
        raise no_user()
    if not users.learns(connection, tenant, user_id):
        message = "the user has turned learning off: no summary is written until it is on again"
        raise OverBound(409, "learning_off", message)
    users.set_signals_read(connection, tenant, user_id, None)
    now = clock(connection)
    at = users.next_rebuild(connection, tenant, user_id, now, wait)
    jobs.request(connection, tenant, user_id, now, Debounce(), key_id=key_id, at=at)
    audit.note(connection, now, "rebuild", tenant, [user_id])
