import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from popi.data.jsonl import Problem, read_lines, read_users, write_rows, write_users
from popi.errors import DataError
from popi.signals.types import InteractionSignal, Message, PairSignal, PostSignal, StatementSignal, TargetPair, User

PAIR = {"type": "pair", "prompt": "p", "chosen": "c", "rejected": "r"}


def user(**fields: Any) -> dict[str, Any]:
    return {"user_id": "a", "signals": [PAIR], **fields}


def signal(**fields: Any) -> dict[str, Any]:
    return user(signals=[{k: v for k, v in {**PAIR, **fields}.items() if v is not ...}])


def problems(path: Path, line: Any) -> list[Problem]:
    path.write_bytes(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    [(number, found)] = read_lines(path)
    assert number == 1
    assert isinstance(found, list), found
    return found


@pytest.mark.parametrize(
    ("line", "field", "message", "arrived"),
    [
        (b"{", "", "Invalid JSON", "{"),
        (b"nonsense\n", "", "Invalid JSON", "nonsense"),
        (b'{"user_id": "\xff", "signals": []}', "", "", ""),
        (b'{"user_id": "\\ud800", "signals": []}', "", "Invalid JSON", "ud800"),
        ([], "", "must be a JSON object with user_id, signals, targets", "[]"),
        ({"signals": []}, "user_id", "required", ""),
        ({"user_id": "a"}, "signals", "required", ""),
        (user(user_id=5), "user_id", "must be text", "5"),
        (user(user_id=" "), "user_id", "must not be empty", "' '"),
        (user(age=3), "age", "no such field", "3"),
        (user(signals={}), "signals", "valid", "{}"),
        (user(signals=["likes cats"]), "signals[0]", "must be a JSON object", "likes cats"),
        (user(signals=[PAIR, {"text": "x"}]), "signals[1]", "has no type; allowed: pair, interaction", "text"),
        (user(signals=[{"type": "tweet"}]), "signals[0].type", "no such signal type; allowed: 'pair'", "tweet"),
        (signal(chosen=...), "signals[0].chosen", "required", ""),
        (signal(chosen=""), "signals[0].chosen", "must not be empty", "''"),
        (signal(chosen=None), "signals[0].chosen", "must be text", "null"),
        (signal(prompt=7), "signals[0].prompt", "must be text or a list of chat messages", "7"),
        (signal(prompt=[]), "signals[0].prompt", "must not be empty", "[]"),
        (signal(prompt=[{"role": "robot", "content": "x"}]), "signals[0].prompt[0].role", "'user'", "robot"),
        (signal(prompt=[{"role": "user"}]), "signals[0].prompt[0].content", "required", ""),
        (signal(pair=1), "signals[0].pair", "no such field", "1"),
        (signal(time="yesterday"), "signals[0].time", "ISO 8601", "yesterday"),
        (signal(id=5), "signals[0].id", "must be text", "5"),
        (user(targets=[{"prompt": "p", "chosen": "c"}]), "targets[0].rejected", "required", ""),
        (
            user(signals=[{"type": "interaction", "prompt": "p", "response": "r", "rating": "5"}]),
            "signals[0].rating",
            "number",
            "'5'",
        ),
        (
            b'{"user_id": "a", "signals": [{"type": "interaction", "prompt": "p", "response": "r", "rating": NaN}]}',
            "signals[0].rating",
            "finite",
            "NaN",
        ),
    ],
)
def test_a_bad_line_names_field_reason_and_what_arrived(
    tmp_path: Path, line: Any, field: str, message: str, arrived: str
) -> None:
    [problem] = problems(tmp_path / "users.jsonl", line)
    assert (problem.line, problem.kind, problem.field) == (1, "bad line", field)
    assert message in problem.message
    assert arrived in problem.arrived


def test_every_wrong_field_of_a_line_is_named(tmp_path: Path) -> None:
    found = problems(tmp_path / "u", {"signals": [{**PAIR, "chosen": "", "extra": 1}, {"type": "post"}]})
    assert [problem.field for problem in found] == [
        "user_id",
        "signals[0].chosen",
        "signals[0].extra",
        "signals[1].text",
    ]


def test_what_arrived_is_shortened(tmp_path: Path) -> None:
    [problem] = problems(tmp_path / "u", user(age="x" * 10_000))
    assert len(str(problem)) < 200


def test_users_survive_writing_and_reading(tmp_path: Path) -> None:
    users = [
        User(
            user_id="ä\u2028b",
            signals=[
                PairSignal(id="1", time=12.5, prompt="p", chosen="c\nc", rejected="r"),
                InteractionSignal(
                    time="2026-01-31T08:00:00Z",
                    prompt=[Message(role="system", content="s"), Message(role="user", content="u")],
                    response="r",
                    rating=4,
                    edit="e",
                ),
                PostSignal(text="t", context="c"),
            ],
            targets=[TargetPair(prompt="p2", chosen="c", rejected="r")],
        ),
        User(user_id="b", signals=[]),
    ]
    path = tmp_path / "users.jsonl"
    write_users(path, users)
    assert read_users(path) == users
    assert "null" not in path.read_text()


def test_bom_blank_lines_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    first, second = (json.dumps(user(user_id=name)).encode() for name in "ab")
    path.write_bytes(b"\xef\xbb\xbf" + first + b"\r\n\r\n" + second)
    assert len(read_users(path)) == 2
    assert [number for number, _ in read_lines(path)] == [1, 3]


def test_reading_bad_lines_lists_them_and_stops_listing(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text(json.dumps(user()) + "\n" + "{\n" * 30)
    with pytest.raises(DataError) as error:
        read_users(path)
    text = str(error.value)
    assert "30 problems" in text
    assert "line 2: " in text and "line 1: " not in text
    assert "and 10 more" in text


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="no users"):
        read_users(path)


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_rows(path, [{"a": 1}])
    with pytest.raises(DataError, match="--force"):
        write_rows(path, [{"a": 2}])
    assert path.read_text() == '{"a": 1}\n'

    def rows() -> Any:
        yield {"a": 3}
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_rows(path, rows(), force=True)
    assert path.read_text() == '{"a": 1}\n'
    assert list(tmp_path.iterdir()) == [path]
    write_rows(path, [{"a": 4}], force=True)
    assert path.read_text() == '{"a": 4}\n'


def test_writing_where_nothing_can_be_written_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        write_users(tmp_path / "missing" / "out.jsonl", [User(user_id="a", signals=[StatementSignal(text="x")])])
    with pytest.raises(DataError, match="is a folder"):
        write_rows(tmp_path, [])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[" * 100_000, "Invalid JSON: recursion"),
        (b'{"user_id": "a", "signals": ' + b"[" * 100_000, "Invalid JSON: recursion"),
        (b'{"user_id": "a", "chosen": ' + b"[" * 100_000, "Invalid JSON: recursion"),
        (b'{"user_id": "caf\xe9"}', "not UTF-8 text"),
        (b'\xff\xfe{"user_id"', "not UTF-8 text"),
        (b"{", "Invalid JSON: EOF while parsing an object at column 1"),
        (b"x" * 1_000_000, "Invalid JSON"),
    ],
)
def test_a_line_that_no_parser_takes_is_a_problem_of_that_line(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "users.jsonl"
    path.write_bytes(json.dumps(user()).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=f"line 2: {words}") as error:
        read_users(path)
    assert len(str(error.value)) < 1000


def test_a_user_on_two_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text((json.dumps(user()) + "\n") * 2)
    with pytest.raises(DataError, match="line 2, user_id: .* already appears on line 1"):
        read_users(path)


def test_a_problem_of_the_whole_file_names_no_line() -> None:
    assert str(Problem(0, "nothing to use", "", "no users in this file")) == "no users in this file"


TWO = [
    {
        "user_id": "a",
        "signals": [{"type": "statement", "text": "keep it short"}, {"type": "post", "text": "hm", "id": "p"}],
    },
    {"user_id": "b", "signals": [{"type": "demographic", "text": "retired", "time": 5.0}]},
]


def test_packed_files_and_parquet_hold_the_same_users(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in TWO)
    (tmp_path / "u.jsonl").write_text(lines)
    with gzip.open(tmp_path / "u.jsonl.gz", "wt") as file:
        file.write("\ufeff" + lines)
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.Table.from_pylist(TWO), tmp_path / "u.parquet")
    plain, packed, table = (read_users(tmp_path / f"u.{kind}") for kind in ("jsonl", "jsonl.gz", "parquet"))
    assert [user.user_id for user in plain] == ["a", "b"]
    assert plain == packed == table


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [TWO[0], TWO[1] | {"user_id": None}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "u.parquet")
    with pytest.raises(DataError, match="line 2.*user_id.*required"):
        read_users(tmp_path / "u.parquet")


@pytest.mark.parametrize("name", ["u.jsonl.gz", "u.parquet"])
@pytest.mark.parametrize("content", [b"not packed", gzip.compress(b"x" * 9999, mtime=0)[:-9]])
def test_files_that_are_not_what_their_name_says(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: can't be read"):
        read_users(tmp_path / name)
