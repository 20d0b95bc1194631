"""Rows are in the file as they come, and a file is gone on with under its own settings alone."""

import json
from pathlib import Path

import pytest

from popi.errors import RunError
from popi.runs.rows import ResumableRows, RowFile, settings_of


def open_rows(path: Path, settings: dict[str, object] | None = None, **more: object) -> ResumableRows:
    return ResumableRows(path, settings or {"a": {"b": 1}}, ("n",), resume=True, **more)  # type: ignore[arg-type]


def test_rows_that_came_together_are_there_at_once_and_a_broken_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "rows.jsonl"
    kept = open_rows(path)
    assert not path.exists(), "a file that is only looked at is not made"
    kept.extend([{"n": 1, "x": "a\u2028b"}, {"n": 2, "x": None}])
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [
        {"settings": {"a": {"b": 1}}, "format": 1},
        {"n": 1, "x": "a\u2028b"},
        {"n": 2, "x": None},
    ]
    kept.close()
    path.write_text(path.read_text() + '{"n": 3, "x"')
    again = open_rows(path, again=lambda row: row["x"] is None)
    assert list(again.rows) == [(1,)]
    again.add({"n": 2, "x": 5})
    again.close()
    assert list(open_rows(path).rows.values()) == [{"n": 1, "x": "a\u2028b"}, {"n": 2, "x": 5}]


def test_other_settings_and_damage_are_told_with_the_advice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kept = open_rows(path)
    kept.add({"n": 1})
    kept.close()
    assert settings_of(path) == {"a": {"b": 1}}
    with pytest.raises(RunError, match=r"a\.b: 1 -> 2\n.*or do that"):
        open_rows(path, {"a": {"b": 2}}, advice="do that")
    path.write_text(path.read_text() + '{"n": 1}\n')
    with pytest.raises(RunError, match="duplicate row.*or do that"):
        open_rows(path, advice="do that")
    path.write_text("{")
    assert settings_of(path) is None and settings_of(tmp_path / "none") is None


def test_settings_under_an_earlier_name_are_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    open_rows(path, {"judge": {"told": "auto"}, "n": 1}).add({"n": 1})
    assert open_rows(path, {"judge": {"evidence": "auto"}, "n": 1}).rows == {(1,): {"n": 1}}
    with pytest.raises(RunError, match="judge.evidence: 'auto' -> 'signals'"):
        open_rows(path, {"judge": {"evidence": "signals"}, "n": 1})


@pytest.mark.parametrize("broken", ['{"n": 3', '{"n": 3}', '{"n": "\u2028'])
def test_a_line_that_a_kill_broke_off_is_replaced(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": "é"}\n{"n": 2}\n' + broken, encoding="utf-8")
    file = RowFile(path)
    assert list(file.read()) == [(0, {"n": "é"}), (12, {"n": 2})]
    file.append([{"n": 4}])
    file.append([{"n": 5}])
    file.close()
    assert [row["n"] for _, row in RowFile(path).read()] == ["é", 2, 4, 5]


@pytest.mark.parametrize("line", ["no JSON", "[1]", '"text"', "[" * 100_000])
def test_a_damaged_line_is_named_and_what_follows_is_replaced(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"n": 1}}\n{line}\n{{"n": 3}}\n')
    file, rows = RowFile(path), []
    with pytest.raises(ValueError, match="line 2"):
        rows.extend(row for _, row in file.read())
    file.append([{"n": 4}])
    assert [row["n"] for _, row in RowFile(path).read()] == [1, 4]
