"""Positions in JSON bodies, against what `json` reads."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popi.serving.proxy.members import (
    Edit,
    Unreadable,
    apply,
    body_text,
    item,
    last,
    read_body,
    string,
    without,
)
from popi.serving.proxy.refusals import Refusal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
STYLES: list[dict[str, Any]] = [{}, {"indent": 3}, {"separators": (",", ":")}, {"separators": (" ,\r\n", "\t: ")}]


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=5), VALUES, max_size=5),
    st.sampled_from(STYLES),
    st.booleans(),
    st.sampled_from(["", " ", "\n\t\r "]),
)
def test_every_member_is_where_it_is_said_to_be(
    whole: dict[str, Any], style: dict[str, Any], ascii_: bool, blank: str
) -> None:
    body = (blank + json.dumps(whole, ensure_ascii=ascii_, **style) + blank).encode("utf-8", "surrogatepass")
    if not ascii_:
        try:
            body.decode()
        except UnicodeDecodeError:
            return  # halves of surrogate pairs are no JSON text
    start, members = read_body(body_text(body))
    assert body[start : start + 1] == b"{"
    assert [json.loads(body[m.start : m.end]) for m in members] == list(whole.values())
    # A name's bytes end where blanks and the colon begin.
    assert [json.JSONDecoder().raw_decode(body[m.key :].decode())[0] for m in members] == list(whole)


@settings(deadline=None)
@given(st.lists(VALUES, max_size=5), st.sampled_from(STYLES))
def test_items_of_an_array(values: list[Any], style: dict[str, Any]) -> None:
    body = b" " + json.dumps(values, **style).encode()
    text = body_text(body)
    decoder = json.JSONDecoder()
    assert [decoder.raw_decode(text, item(text, 1, number))[0] for number in range(len(values))] == values


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "user", "é"]), VALUES), max_size=6),
    st.sampled_from(STYLES[:3]),
    st.data(),
)
def test_members_taken_out_leave_the_others(pairs: list[tuple[str, Any]], style: dict[str, Any], data: Any) -> None:
    comma, colon = style.get("separators", (", ", ": "))
    lines = [json.dumps(name) + colon + json.dumps(value, **style) for name, value in pairs]
    body = ("{ " + comma.join(lines) + " }").encode()
    _, members = read_body(body_text(body))
    drop = data.draw(st.lists(st.sampled_from(range(len(pairs))), unique=True)) if pairs else []
    rest = apply(body, without(members, [members[i] for i in drop]))
    kept = "{" + ",".join(line for i, line in enumerate(lines) if i not in drop) + "}"
    # Pairs, not dictionaries: of doubles the right one must be gone.
    assert json.loads(rest, object_pairs_hook=list) == json.loads(kept, object_pairs_hook=list)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_bytes_that_are_no_object_are_refused_and_nothing_else_happens(body: bytes) -> None:
    try:
        read_body(body_text(body))
    except Unreadable:
        return
    assert isinstance(json.loads(body.decode("latin-1"), strict=False), dict)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"user"',
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a":1',
        b'{"a":1,',
        b'{"a":1,}',
        b'{"a" 1}',
        b"{a:1}",
        b'{"a":1}}',
        b'{"a":1} x',
        b'{"a":[1}',
        b'{"a":"b}',
        b" \xef\xbb\xbf{}",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_broken_bodies_are_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        read_body(body_text(body))


def test_a_mark_of_utf8_stands_before_the_object() -> None:
    body = b'\xef\xbb\xbf {"user": "ann"}'
    start, (member,) = read_body(body_text(body))
    assert body[start:] == b'{"user": "ann"}' and body[member.start : member.end] == b'"ann"'


def test_a_body_may_be_nested_too_deep() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(Refusal, match="too deep"):
        read_body('{"a":' + deep + "}")
    with pytest.raises(Refusal, match="too deep"):
        item(f"[{deep}, 1]", 0, 1)


def test_what_python_would_refuse_and_json_allows() -> None:
    body = b'{"n": ' + b"9" * 5000 + b', "control": "a\x01b", "not utf-8": "\xff\xfe", "s": "\\ud800"}'
    _, members = read_body(body_text(body))
    assert [member.name for member in members] == ["n", "control", "not utf-8", "s"]
    assert members[0].value == b"9" * 5000


def test_doubles_and_escapes() -> None:
    body = '{"user": "a", "us\\u0065r": "bøb ☃"}'.encode()
    _, members = read_body(body_text(body))
    assert [member.name for member in members] == ["user", "user"]
    found = last(members, "user")
    assert found is not None
    assert string(body, found) == "bøb ☃"
    assert last(members, "none") is None


def test_edits_at_one_place() -> None:
    assert apply(b"abcd", [Edit(1, 3, b""), Edit(1, 1, b"X"), Edit(4, 4, b"!")]) == b"aXd!"
