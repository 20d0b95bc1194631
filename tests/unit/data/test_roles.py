"""The order of a task prompt's messages, seen when the data are read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from popi.data.check import check
from popi.data.jsonl import read_users
from popi.data.windows import PreferenceRow, cut_windows
from popi.errors import DataError

BAD = [
    ("user assistant", "must end with a user or tool message"),
    ("user system user", "a system message must come first"),
    ("system system user", "a system message must come first"),
    ("user user", "two user messages in a row"),
    ("user assistant assistant user", "two assistant messages in a row"),
    ("assistant user", "must begin with a user message"),
    ("system", "has no user message"),
    ("user tool", "a tool message must follow an assistant message with as many tool_calls"),
    ("user calls", "the call of 'weather' has no tool message with its result"),
    ("user calls user", "the call of 'weather' has no tool message with its result"),
    ("user calls tool tool", "with as many tool_calls"),
    ("user calls tool user", "a user message follows a tool message"),
    ("user calls tool assistant", "must end with a user or tool message"),
]


def messages(roles: str) -> list[dict[str, Any]]:
    """`calls`: the assistant's call of one tool."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    return [
        {"role": "assistant", "tool_calls": [call]} if role == "calls" else {"role": role, "content": f"{role} {i}"}
        for i, role in enumerate(roles.split())
    ]


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
    assert message in problem.message and roles.replace("calls", "assistant").replace(" ", ", ") in problem.arrived
    with pytest.raises(DataError, match=message):
        read_users(file)


@pytest.mark.parametrize(
    "roles",
    [
        "user",
        "system user",
        "user assistant user",
        "system user assistant user",
        "user calls tool",
        "system user assistant user calls tool calls tool assistant user",
    ],
)
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
    assert problem.line == 1 and "prompt: must end with a user or tool message" in problem.message


@pytest.mark.parametrize(
    ("call", "result", "message"),
    [
        ({"id": "1"}, {"tool_call_id": "2"}, "tool_call_id '2' does not answer the call '1'"),
        ({"function": {"name": "weather", "arguments": "Rome"}}, {}, "must be a JSON object, or the text of one"),
        ({"function": {"name": "weather", "arguments": "[1]"}}, {}, "must be a JSON object|valid dictionary"),
        ({"type": "code"}, {}, "function"),
    ],
)
def test_bad_tool_turns(tmp_path: Path, call: dict[str, Any], result: dict[str, Any], message: str) -> None:
    turns = messages("user calls tool")
    turns[1]["tool_calls"][0] |= call
    turns[2] |= result
    file = tmp_path / "users.jsonl"
    file.write_text(user("a", turns))
    [problem] = check(file).problems
    assert problem.field.startswith("targets[0].prompt") and re.search(message, problem.message)
    assert "message" not in problem.field


def test_tool_turns_of_preference_rows() -> None:
    """The prompt is implicit: what both conversations begin with."""
    start = messages("user calls tool")
    ends = ([*start, {"role": "assistant", "content": end}] for end in "xy")
    row = {"user_id": "a"} | dict(zip(("chosen", "rejected"), ends, strict=True))
    [read], _ = cut_windows([PreferenceRow(**row), PreferenceRow(**row)], 1, 1)
    assert [turn.role for turn in read.targets[0].prompt] == ["user", "assistant", "tool"]
    assert read.targets[0].chosen == "x"
