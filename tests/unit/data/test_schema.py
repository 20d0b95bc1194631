import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from popi.data.jsonl import read_lines
from popi.data.schema import FOLDER, as_text, schemas

PAIR = {"type": "pair", "prompt": "p", "chosen": "c", "rejected": "r"}
TOOLS = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome"}}}]},
    {"role": "tool", "content": "21"},
]


def test_shipped_schemas_are_those_of_the_types() -> None:
    for name, schema in schemas().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == as_text(schema), "run `make docs`"
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ({"user_id": "a", "signals": []}, True),
        ({"user_id": "a", "signals": [PAIR], "targets": [{"prompt": "p", "chosen": "c", "rejected": "r"}]}, True),
        ({"user_id": "a", "signals": [{**PAIR, "id": "1", "time": "2026-01-31"}]}, True),
        ({"user_id": "a", "signals": [{**PAIR, "prompt": [{"role": "user", "content": "p"}], "time": 5}]}, True),
        ({"user_id": "a", "signals": [{"type": "interaction", "prompt": "p", "response": "r", "rating": 4}]}, True),
        ({"user_id": "a", "signals": [{"type": "demographic", "text": "t"}]}, True),
        ({"user_id": "a", "signals": [{**PAIR, "prompt": TOOLS}]}, True),
        (
            {"user_id": "a", "signals": [{**PAIR, "prompt": [TOOLS[0], {**TOOLS[1], "tool_calls": []}, TOOLS[2]]}]},
            False,
        ),
        ({"user_id": "a"}, False),
        ({"user_id": "", "signals": []}, False),
        ({"user_id": " ", "signals": []}, False),
        ({"user_id": "a", "signals": [{**PAIR, "type": "post"}]}, False),
        ({"user_id": "a", "signals": [{**PAIR, "prompt": []}]}, False),
        ({"user_id": "a", "signals": [{**PAIR, "prompt": [{"role": "robot", "content": "p"}]}]}, False),
        ({"user_id": "a", "signals": [], "age": 3}, False),
        ({"user_id": "a", "signals": [], "targets": [PAIR]}, False),
    ],
)
def test_schema_and_reader_agree(tmp_path: Path, line: dict[str, Any], good: bool) -> None:
    validator = jsonschema.Draft202012Validator(schemas()["user.schema.json"])
    assert validator.is_valid(line) is good
    path = tmp_path / "users.jsonl"
    path.write_text(json.dumps(line))
    [(_, parsed)] = read_lines(path)
    assert (not isinstance(parsed, list)) is good
