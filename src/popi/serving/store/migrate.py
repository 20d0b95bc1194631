"""Bring a database to this popi's schema: numbered SQL files, each applied once, none ever changed.

A file is `migrations/NNNN_name.sql`, in SQL that SQLite and PostgreSQL both run; a statement ends with `;` at the end
of a line; a line that begins with `-- postgresql: ` is one there alone. A file that begins with `-- only: postgresql`
does nothing on SQLite; one that begins with `-- then: NAME` goes on in Python (`_then`). All of it happens in one
transaction under a lock: two processes may start together.
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
    """One change of the schema."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return sha256(self.sql.encode()).hexdigest()

    def statements(self, dialect: str) -> list[str]:
        """What it does on `sqlite` or `postgresql`."""
        if (only := re.match(r"-- only: (\w+)$", self.sql, flags=re.MULTILINE)) and only[1] != dialect:
            return []
        sql = re.sub(rf"^-- {dialect}: ", "", self.sql, flags=re.MULTILINE)
        without_comments = re.sub(r"^--.*$", "", sql, flags=re.MULTILINE)
        return [part.strip() for part in re.split(r";\s*$", without_comments, flags=re.MULTILINE) if part.strip()]


def known() -> list[Migration]:
    """The migrations that this popi brings, in their order."""
    found = []
    for file in files("popi.serving.store").joinpath("migrations").iterdir():
        if named := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name):
            found.append(Migration(int(named[1]), named[2], file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.number)


def migrate(connection: Connection, now: float) -> list[str]:
    """Apply what is missing; returns the names of what was applied.

    The connection is in a transaction that writes; the caller commits.

    Raises:
        StoreError: the database was made by a newer popi, or its history is not ours.
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
    there = {row.number: row for row in connection.execute(select(migrations))}
    if newer := sorted(set(there) - {migration.number for migration in ours}):
        raise StoreError(
            f"the store was made by a newer popi (its schema has step {newer[-1]}, this popi knows {ours[-1].number}); "
            "upgrade popi, or go back to the backup from before the upgrade"
        )
    applied: list[Migration] = []
    for migration in ours:
        if (row := there.get(migration.number)) is not None:
            if row.sha256 != migration.sha256:
                raise StoreError(
                    f"the store's schema step {migration.number} ({row.name}) is not the one that this popi brings; "
                    "the database belongs to another build"
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
    """What a migration does beside its SQL, once the schema is the queries' own."""
    named = re.match(r"-- then: (\w+)$", migration.sql, flags=re.MULTILINE)
    if named and named[1] == "normal_ids":
        from popi.serving.store.normal_ids import rename_all  # it works by the queries, which need a database

        rename_all(connection, now)
