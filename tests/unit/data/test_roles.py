"""The order of a task prompt's messages, seen when the data are read."""

import json
from pathlib import Path
from typing import Any

import pytest

from popi.data.check import check
from popi.data.jsonl import read_users
from popi.errors import DataError

BAD = [
    ("user assistant", "must end with a user message"),
    ("user system user", "a system message must be the first"),
    ("system system user", "a system message must be the first"),
    ("user user", "two user messages in a row"),
    ("user assistant assistant user", "two assistant messages in a row"),
    ("assistant user", "must begin with a user message"),
    ("system", "has no user message"),
]


def messages(roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles.split())]


def user(name: str, target: Any = "p", signal: Any = "q") -> str:
    pair = {"chosen": "c", "rejected": "r"}
    signals = [
        {"type": "pair", "prompt": signal, "chosen": "one", "rejected": "other"},
        {"type": "statement", "text": "s"},
    ]
    return json.dumps({"user_id": name, "signals": signals, "targets": [{"prompt": target, **pair}]}) + "\n"


@pytest.mark.parametrize(("roles", "message"), BAD)
@pytest.mark.parametrize(("part", "field"), [("target", "targets[0].prompt"), ("signal", "signals[0].prompt")])
def test_bad_roles_name_line_and_field(tmp_path: Path, roles: str, message: str, part: str, field: str) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text(user("a") + user("b", **{part: messages(roles)}))
    [problem] = check(file).problems
    assert (problem.line, problem.field, problem.kind) == (2, field, "bad roles")
    assert message in problem.message and roles.replace(" ", ", ") in problem.arrived
    with pytest.raises(DataError, match=message):
        read_users(file)


@pytest.mark.parametrize("roles", ["user", "system user", "user assistant user", "system user assistant user"])
def test_good_roles(tmp_path: Path, roles: str) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text(user("a", messages(roles), messages(roles)))
    assert check(file).ok


def test_preference_rows_too(tmp_path: Path) -> None:
    """`[user, assistant]` before the assistant's last message."""
    start, end = messages("user assistant"), [{"role": "assistant", "content": "x"}]
    row = {"user_id": "a", "chosen": [*start, *end], "rejected": [*start, {"role": "assistant", "content": "y"}]}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    [problem, *_] = check(file).problems
    assert problem.line == 1 and "prompt: must end with a user message" in problem.message
