"""JSON bodies: what is read, what is refused, and that nothing changes on the way through."""

import json
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.strict_json import parse, serialise


def read(raw: bytes, values: int = 1000, levels: int = 100) -> dict[str, Any]:
    return parse(raw, values, levels)


def refused(raw: bytes, values: int = 1000, levels: int = 100) -> str:
    with pytest.raises(Refusal) as refusal:
        read(raw, values, levels)
    assert refusal.value.status == 400
    return refusal.value.code


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5), st.sampled_from([None, 3]))
def test_there_and_back(whole: dict[str, Any], indent: int | None) -> None:
    again = serialise(read(json.dumps(whole, indent=indent).encode()))
    assert json.loads(again) == whole
    assert list(json.loads(again)) == list(whole)
    assert again == serialise(read(again))


NUMBERS = ["1e400", "-0", "1.0", "0.10000000000000000001", "9" * 5000, "1E+2", "-1.50e-07", "12345678901234567890"]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_keep_their_digits(number: str) -> None:
    raw = b'{"n":[%b],"m":%b}' % (number.encode(), number.encode())
    assert serialise(read(raw)) == raw


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_any_number_keeps_its_digits(number: Decimal) -> None:
    raw = b'{"n":%b}' % str(number).encode()
    assert serialise(read(raw)) == raw


def test_text_stays_what_it_was() -> None:
    raw = '{"é☃😀":"\\ud800 \\udc00\\u0000\\u001f\\"\\\\/\u2028\x7f","a":"\\ud83d\\ude00"}'.encode()
    again = serialise(read(raw))
    assert json.loads(again) == json.loads(raw)
    assert b"\\ud800" in again and "😀".encode() in again


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "body_json"),
        (b" ", "body_json"),
        (b"[]", "body_json"),
        (b'"user"', "body_json"),
        (b"null", "body_json"),
        (b"{", "body_json"),
        (b'{"a"', "body_json"),
        (b'{"a":1,}', "body_json"),
        (b'{"a":[1,]}', "body_json"),
        (b"{a:1}", "body_json"),
        (b"{'a':1}", "body_json"),
        (b'{"a":1}}', "body_json"),
        (b'{"a":1} x', "body_json"),
        (b'{"a":1}\x00', "body_json"),
        (b'{"user":"bob"}{"user":"ann"}', "body_json"),
        (b'{"user":"bob"}\n{"user":"ann"}', "body_json"),
        (b"\x0b{}", "body_json"),
        (b"\xc2\xa0{}", "body_json"),
        (b"{}//", "body_json"),
        (b"/**/{}", "body_json"),
        (b'{"a":NaN}', "body_json"),
        (b'{"a":Infinity}', "body_json"),
        (b'{"a":-Infinity}', "body_json"),
        (b'{"a":01}', "body_json"),
        (b'{"a":+1}', "body_json"),
        (b'{"a":1.}', "body_json"),
        (b'{"a":.5}', "body_json"),
        (b'{"a":0x1}', "body_json"),
        (b'{"a":1e}', "body_json"),
        ('{"a":١}'.encode(), "body_json"),
        (b'{"a":True}', "body_json"),
        (b'{"a":"b\x01c"}', "body_json"),
        (b'{"a":"b\nc"}', "body_json"),
        (b'{"a":"\\x41"}', "body_json"),
        (b'{"a":"\\u00g0"}', "body_json"),
        (b'{"a":"\xff"}', "body_encoding"),
        (b'{"a":"\xed\xa0\x80"}', "body_encoding"),
        (b'{"a":"\xc0\xaf"}', "body_encoding"),
        ('{"user":"bob"}'.encode("utf-16"), "body_encoding"),
        ('{"user":"bob"}'.encode("utf-16-le"), "body_encoding"),
        ('{"user":"bob"}'.encode("utf-32-be"), "body_encoding"),
        (b"\xef\xbb\xbf{}", "body_json"),  # a second mark: the first was dropped before
        (b'{"user":"a","user":"b"}', "body_duplicate_name"),
        (b'{"user":"a","us\\u0065r":"b"}', "body_duplicate_name"),
        (b'{"a":[{"b":{"c":1,"d":2,"c":1}}]}', "body_duplicate_name"),
        (b'{"a":' * 99 + b"1" + b"}" * 99, ""),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "body_too_deep"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body_too_many_values"),
    ],
)
def test_one_object_of_json_and_nothing_else(raw: bytes, code: str) -> None:
    if code:
        assert refused(raw) == code
    else:
        read(raw)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_whatever_comes_is_read_or_refused(raw: bytes) -> None:
    try:
        body = read(raw)
    except Refusal:
        return
    assert json.loads(raw.decode()) == json.loads(serialise(body))


def test_levels_are_counted_where_brackets_stand_in_texts() -> None:
    assert read(b'{"a":"%b","b":[[],[],[]]}' % (b"[{" * 200))
    assert refused(b'{"a":"%b","b":[[],[],[]]}' % (b"[{" * 200), levels=2) == "body_too_deep"
    assert read(b'{"a":[%b]}' % b",".join([b"[]"] * 300), levels=3)
    with_limit = b'{"a":' + b"[" * 499 + b"]" * 499 + b"}"
    assert serialise(read(with_limit, levels=500)) == with_limit
    assert refused(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", values=10_000) == "body_too_deep"


def test_values_are_counted_exactly_and_not_those_in_texts() -> None:
    assert read(b'{"a":[%b]}' % b",".join([b"0"] * 98), values=100)  # the object, the list and 98 numbers
    assert refused(b'{"a":[%b]}' % b",".join([b"0"] * 99), values=100) == "body_too_many_values"
    assert read(b'{"a":"%b","b":"\\",[,{,\\\\"}' % (b",[{" * 10_000), values=3)
    assert refused(b'{"a":"\\\\",b:"",c:"",d:""', values=3) == "body_too_many_values"


def test_a_usual_chat_takes_a_moment() -> None:
    turns = [{"role": "user", "content": 'Some "words" of a chat: naïve café.\n' * 12} for _ in range(9)]
    raw = json.dumps({"model": "m", "temperature": 0.7, "messages": turns, "user": "ann"}).encode()

    def seconds() -> float:
        began = time.perf_counter()
        serialise(read(raw, 500_000, 128))
        return time.perf_counter() - began

    assert 5000 < len(raw) < 6000
    assert min(seconds() for _ in range(200)) < 0.001  # 0.1 ms, on a machine with nothing else to do
