"""The SQL of earlier versions runs on today's schema: what their processes do while new ones have already migrated it.

Each file holds what a version sent to PostgreSQL in `record_statements.use`, recorded by running that version. What is
shown: all these statements are accepted, and return or change as many rows as then. Not shown: that they mean the same,
and statements outside that scenario.
"""

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from serving_client import empty_store, without_postgres
from unit.serving.store.record_statements import recorded

from popi.serving.store.database import Database
from popi.serving.store.migrate import known

FILES = sorted(Path(__file__).parent.glob("statements_*.jsonl"))


def oldest() -> int:
    """The last step of the oldest version that works on today's schema."""
    return max(one.works_with for one in known() if one.number > 16)


def rows_of(connection: psycopg.Connection, line: dict[str, Any]) -> int:
    return connection.execute(line["sql"], line["values"]).rowcount


@without_postgres
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_statements_are_taken(file: Path, tmp_path: Path) -> None:
    step = int(file.stem.removeprefix("statements_"))
    if step < oldest():
        pytest.skip(f"step {oldest()} is the oldest that works now")
    with empty_store("postgresql", tmp_path, schema=False) as url:
        Database.open(url).close()
        with psycopg.connect(url, autocommit=True) as connection:
            for number, line in enumerate(map(json.loads, file.read_text(encoding="utf-8").splitlines()), 1):
                try:
                    rows = rows_of(connection, line)
                except psycopg.Error as error:
                    raise AssertionError(f"{file.name}, line {number}: {error}\n{line['sql']}") from None
                assert line["rows"] in (-1, rows), f"{file.name}, line {number}: {line['sql']}\n{line['values']}"
            assert number > 100


@without_postgres
def test_a_step_that_breaks_them_is_noticed(tmp_path: Path) -> None:
    """As if a step renamed a column, dropped a default or removed a table."""
    lines = [json.loads(line) for line in FILES[0].read_text(encoding="utf-8").splitlines()]
    for broken in (
        "ALTER TABLE summaries RENAME COLUMN author TO writer",
        "ALTER TABLE users ADD COLUMN region TEXT NOT NULL",
        "DROP TABLE opt_outs",
    ):
        with empty_store("postgresql", tmp_path, schema=False) as url:
            Database.open(url).close()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(broken)  # type: ignore[call-overload]
                with pytest.raises(psycopg.Error):
                    for line in lines:
                        rows_of(connection, line)


def test_there_is_a_record_of_each_version_that_works() -> None:
    assert {int(file.stem.removeprefix("statements_")) for file in FILES} >= {oldest()}


@without_postgres
def test_todays_statements_can_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPI_ADMIN_KEY", "an-admin-key-of-the-tests")
    with empty_store("postgresql", tmp_path) as url:
        assert len({line["sql"] for line in recorded(url)}) > 100
