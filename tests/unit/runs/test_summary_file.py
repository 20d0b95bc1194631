import json
from pathlib import Path
from typing import Any

import pytest

from popi.data.jsonl import open_users, write_users
from popi.errors import DataError, PopiError, UpstreamError
from popi.runs.summary_file import WINDOW, SummaryFile, write_summaries
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


def test_a_line_that_a_kill_broke_off_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text(row(user_id="c") + row(user_id="a")[:20])
    file = SummaryFile(path, "m", resume=True)
    assert file.missing(USERS) == [0, 1]
    file.add(1, USERS[1], Summary("y", 1))
    assert read(path) == ["c", "b"]
    assert [one["user_id"] for one in file.finish()[:2]] == ["b", "c"] and read(path) == ["b", "c"]


class Writer:
    """Writes a summary for each user in reverse order, or fails for those named."""

    name = "m"

    def __init__(self, failing: Any = lambda n: False, error: PopiError | None = None) -> None:
        self.failing, self.error, self.asked = failing, error or DataError("too long"), 0

    def summarize_each(self, users: Any, on_result: Any) -> None:
        assert len(users) <= WINDOW
        first, self.asked = self.asked, self.asked + len(users)
        for n in reversed(range(len(users))):
            on_result(n, self.error if self.failing(first + n) else Summary("x", 1))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("many") / "users.jsonl"
    write_users(path, (User(user_id=f"u{n}", signals=[]) for n in range(2 * WINDOW + 5)))
    return open_users(path)


def test_users_are_summarised_window_by_window(tmp_path: Path, many: Any) -> None:
    out, told = tmp_path / "out", list[tuple[int, int]]()
    file = SummaryFile(out, "m")
    failing = {3, WINDOW + 1}
    writer: Any = Writer(lambda n: n in failing)
    written, failures = write_summaries(writer, many, file, lambda *one: told.append(one))
    assert written == len(many) - 2 and failures == {"too long": ["u3", f"u{WINDOW + 1}"]}
    assert read(out) == [f"u{n}" for n in range(len(many)) if n not in failing]
    assert told[-1] == (len(many), len(many)) and len(told) == len(many)
    again: Any = Writer()
    assert write_summaries(again, many, SummaryFile(out, "m", resume=True)) == (len(many), {})
    assert again.asked == 2 and read(out) == [f"u{n}" for n in range(len(many))]


def test_rows_are_shown_in_order_and_not_kept(many: Any) -> None:
    shown: list[str] = []
    file = SummaryFile(None, "m", show=lambda one: shown.append(one["user_id"]))
    writer: Any = Writer(lambda n: n == 0)
    assert write_summaries(writer, many, file)[0] == len(many) - 1
    assert shown == [f"u{n}" for n in range(1, len(many))] and not file._pending


def test_a_server_that_is_down_is_not_asked_for_every_window(tmp_path: Path, many: Any) -> None:
    writer: Any = Writer(lambda n: True, UpstreamError("down", transient=True))
    written, failures = write_summaries(writer, many, SummaryFile(tmp_path / "out", "m"))
    assert written == 0 and len(failures["down"]) == len(many) and writer.asked == WINDOW
    assert list(tmp_path.iterdir()) == []
    faulty: Any = Writer(lambda n: True, DataError("too long"))
    write_summaries(faulty, many, SummaryFile(tmp_path / "out", "m"))
    assert faulty.asked == len(many)
