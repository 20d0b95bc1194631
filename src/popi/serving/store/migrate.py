"""Migrate a database to this version's schema: numbered SQL files, each applied once and never changed.

A file is `migrations/NNNN_name.sql`, in SQL that both SQLite and PostgreSQL run. Statements end with `;` at the end of
a line. A line that begins with `-- postgresql: ` runs on PostgreSQL only. A file that begins with `-- only: postgresql`
does nothing on SQLite; one that begins with `-- then: NAME` continues in Python (`_then`).

A line `-- works with: NNNN` says that a popi whose last step is NNNN keeps working after this one, and may even start:
then old and new processes run side by side. Without it, older versions refuse the store. docs/compatibility.md has the
rules for such steps.

Each call of `migrate` takes one step, in a separate transaction, so that no table is locked for the time of several.
A new store, and the steps from before the first with `works with`, are one transaction. All of it happens under a lock,
since two processes may start at the same time; on PostgreSQL no statement waits longer than LOCK_SECONDS for another
one's, since everybody else's queue behind it. The caller then tries again.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from itertools import takewhile

from sqlalchemy import Connection, delete, insert, select, text

from popi.errors import StoreError
from popi.serving.store.tables import migrations, settings

LOCK = 0x706F7069
"""The advisory lock of PostgreSQL that migrations take: `popi` in ASCII."""
LOCK_SECONDS = 1
"""Maximum wait of a step's statement for a lock on PostgreSQL."""
OLDEST = "oldest_step"
"""Name of the setting with the last step of the oldest popi that works on the store, and the step that said so."""


@dataclass(frozen=True)
class Migration:
    """One schema change."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return sha256(self.sql.encode()).hexdigest()

    @property
    def works_with(self) -> int:
        """The last step of the oldest popi that works after this one."""
        match = re.search(r"^-- works with: (\d+)$", self.sql, flags=re.MULTILINE)
        return int(match[1]) if match else self.number

    def statements(self, dialect: str) -> list[str]:
        """Its SQL statements on `sqlite` or `postgresql`."""
        if (only := re.match(r"-- only: (\w+)$", self.sql, flags=re.MULTILINE)) and only[1] != dialect:
            return []
        sql = re.sub(rf"^-- {dialect}: ", "", self.sql, flags=re.MULTILINE)
        without_comments = re.sub(r"^--.*$", "", sql, flags=re.MULTILINE)
        return [part.strip() for part in re.split(r";\s*$", without_comments, flags=re.MULTILINE) if part.strip()]


def known() -> list[Migration]:
    """The migrations that ship with this version, in order."""
    shipped = []
    for file in files("popi.serving.store").joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            shipped.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(shipped, key=lambda migration: migration.number)


def migrate(connection: Connection, now: float) -> list[str]:
    """Apply the next missing migrations; returns their names, or nothing if there are none.

    The connection is in a write transaction, which the caller commits before it calls again.

    Raises:
        StoreError: the database was migrated by a newer popi that this one does not work with, or has a different
            history.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS popi_migrations (number BIGINT PRIMARY KEY, name TEXT NOT NULL, "
            "sha256 TEXT NOT NULL, applied_at DOUBLE PRECISION NOT NULL)"
        )
    )
    ours = known()
    recorded = {row.number: row for row in connection.execute(select(migrations))}
    newer = sorted(set(recorded) - {migration.number for migration in ours})
    if newer and not _works(connection, ours[-1].number, newer[-1]):
        raise StoreError(
            f"the store was made by a newer popi (its schema has step {newer[-1]}, this popi knows {ours[-1].number}); "
            "upgrade popi, or restore the backup from before the upgrade"
        )
    missing: list[Migration] = []
    for migration in ours:
        if (row := recorded.get(migration.number)) is not None:
            if row.sha256 != migration.sha256:
                raise StoreError(
                    f"the store's schema step {migration.number} ({row.name}) differs from this popi's; the database "
                    "belongs to another build"
                )
        else:
            missing.append(migration)
    if recorded and missing and missing[0].works_with < missing[0].number:
        missing = missing[:1]
    elif recorded:
        missing = list(takewhile(lambda one: one.works_with == one.number, missing))
    for migration in missing:
        for statement in migration.statements(connection.dialect.name):
            connection.execute(text(statement))
        connection.execute(
            insert(migrations).values(
                number=migration.number, name=migration.name, sha256=migration.sha256, applied_at=now
            )
        )
    for migration in missing:
        _then(migration, connection, now)
    now_there = ours[: ours.index(missing[-1]) + 1] if missing else []
    if any(one.works_with < one.number for one in now_there):  # earlier stores may lack the table
        connection.execute(delete(settings).where(settings.c.name == OLDEST))
        oldest = max(one.works_with for one in now_there)
        connection.execute(insert(settings).values(name=OLDEST, value=f"{oldest} {missing[-1].number}"))
    return [migration.name for migration in missing]


def _works(connection: Connection, step: int, last: int) -> bool:
    """Whether a popi whose last step is `step` works on a store whose last one is `last`."""
    value = connection.execute(select(settings.c.value).where(settings.c.name == OLDEST)).scalar()
    oldest, said_by = (int(one) for one in (value or "0 0").split())
    return said_by == last and oldest <= step


def _then(migration: Migration, connection: Connection, now: float) -> None:
    """The Python part of a migration, run once the schema is up to date."""
    match = re.match(r"-- then: (\w+)$", migration.sql, flags=re.MULTILINE)
    if match and match[1] == "normal_ids":
        from popi.serving.store.normal_ids import rename_all  # uses the queries, which import this module

        rename_all(connection, now)
