import json
from pathlib import Path
from typing import Any

import pytest

from popi.errors import DataError
from popi.runs.summary_file import SummaryFile
from popi.signals.types import User
from popi.summary import Summary

USERS = [User(user_id=name, signals=[]) for name in "abc"]


def read(path: Path) -> list[str]:
    return [json.loads(line)["user_id"] for line in path.read_text().splitlines()]


def row(**changed: Any) -> str:
    return json.dumps({"user_id": "a", "summary": "x", "model": "m"} | changed) + "\n"


def test_rows_are_in_the_file_at_once_and_in_order_at_the_end(tmp_path: Path) -> None:
    file = SummaryFile(tmp_path / "out", "m")
    file.add(2, USERS[2], Summary("z\u2028\u0085", 1))
    file.add(0, USERS[0], Summary("x", 1))
    assert [json.loads(line)["user_id"] for line in (tmp_path / "out").read_text().split("\n")[:2]] == ["c", "a"]
    assert [row["user_id"] for row in file.finish()] == ["a", "c"]
    again = SummaryFile(tmp_path / "out", "m", resume=True)
    assert again.missing(USERS) == [1]
    again.add(1, USERS[1], Summary("y", 1))
    assert [row["summary"] for row in again.finish()] == ["x", "y", "z\u2028\u0085"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_made_by_the_first_summary(tmp_path: Path) -> None:
    file = SummaryFile(tmp_path / "out", "m", resume=True)
    assert file.missing(USERS) == [0, 1, 2]
    assert file.finish() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("precious\n", "line 1"),
        (row() + "[]\n", "line 2"),
        (row(model="other"), "'other', not by 'm'"),
        (json.dumps({"user_id": "a", "summary": "x"}) + "\n", "line 1"),
        (row(user_id="stranger"), "'stranger'"),
    ],
)
def test_another_file_is_not_resumed(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "out"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        SummaryFile(path, "m", resume=True).missing(USERS)
    assert path.read_text() == text


def test_users_who_repeat_are_written_but_not_resumed(tmp_path: Path) -> None:
    windows = [*USERS, USERS[0]]
    file = SummaryFile(tmp_path / "out", "m")
    for index in file.missing(windows):
        file.add(index, windows[index], Summary("x", 1))
    file.finish()
    assert read(tmp_path / "out") == ["a", "b", "c", "a"]
    with pytest.raises(DataError, match="repeat"):
        SummaryFile(tmp_path / "out", "m", resume=True).missing(windows)
