"""Migrate a database to this version's schema: numbered SQL files, each applied once and never changed.

A file is `migrations/NNNN_name.sql`, in SQL that both SQLite and PostgreSQL run. Statements end with `;` at the end of
a line. A line that begins with `-- postgresql: ` runs on PostgreSQL only. A file that begins with `-- only: postgresql`
does nothing on SQLite; one that begins with `-- then: NAME` continues in Python (`_then`). Everything happens in one
transaction under a lock, since two processes may start at the same time.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from sqlalchemy import Connection, insert, select, text

from popi.errors import StoreError
from popi.serving.store.tables import migrations

LOCK = 0x706F7069
"""The advisory lock of PostgreSQL that migrations take: `popi` in ASCII."""


@dataclass(frozen=True)
class Migration:
    """One schema change."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return sha256(self.sql.encode()).hexdigest()

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
    """Apply missing migrations; returns their names.

    The connection is in a write transaction, which the caller commits.

    Raises:
        StoreError: the database was created by a newer popi, or has a different history.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS popi_migrations (number BIGINT PRIMARY KEY, name TEXT NOT NULL, "
            "sha256 TEXT NOT NULL, applied_at DOUBLE PRECISION NOT NULL)"
        )
    )
    ours = known()
    recorded = {row.number: row for row in connection.execute(select(migrations))}
    if newer := sorted(set(recorded) - {migration.number for migration in ours}):
        raise StoreError(
            f"the store was made by a newer popi (its schema has step {newer[-1]}, this popi knows {ours[-1].number}); "
            "upgrade popi, or restore the backup from before the upgrade"
        )
    applied: list[Migration] = []
    for migration in ours:
        if (row := recorded.get(migration.number)) is not None:
            if row.sha256 != migration.sha256:
                raise StoreError(
                    f"the store's schema step {migration.number} ({row.name}) differs from this popi's; the database "
                    "belongs to another build"
                )
            continue
        for statement in migration.statements(connection.dialect.name):
            connection.execute(text(statement))
        connection.execute(
            insert(migrations).values(
                number=migration.number, name=migration.name, sha256=migration.sha256, applied_at=now
            )
        )
        applied.append(migration)
    for migration in applied:
        _then(migration, connection, now)
    return [migration.name for migration in applied]


def _then(migration: Migration, connection: Connection, now: float) -> None:
    """The Python part of a migration, run once the schema is up to date."""
    match = re.match(r"-- then: (\w+)$", migration.sql, flags=re.MULTILINE)
    if match and match[1] == "normal_ids":
        from popi.serving.store.normal_ids import rename_all  # uses the queries, which import this module

        rename_all(connection, now)
