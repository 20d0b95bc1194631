"""User ids in bodies."""

import hashlib
import hmac
import json
from typing import Literal

import pytest

from popi.serving.proxy.ids import Pseudonyms, find_ids, id_edits
from popi.serving.proxy.members import apply, body_text, read_body

PSEUDONYMS = Pseudonyms(b"secret")


def rewritten(body: bytes, mode: Literal["hashed", "stripped"]) -> bytes:
    text = body_text(body)
    _, members = read_body(text)
    return apply(body, id_edits(find_ids(body, text, members), PSEUDONYMS, "acme", mode))


def hashed(user_id: str) -> str:
    return hmac.new(b"secret", f"4:acme:{user_id}".encode(), hashlib.sha256).hexdigest()


def test_pseudonyms_keep_tenants_and_users_apart() -> None:
    assert PSEUDONYMS.of("acme", "ann") == hashed("ann")
    assert len(PSEUDONYMS.of("acme", "ann")) == 64
    ids = {PSEUDONYMS.of(*pair) for pair in (("a", "b:c"), ("a:b", "c"), ("b", "b:c"), ("a", "c"))}
    assert len(ids | {Pseudonyms(b"other").of("a", "c")}) == 5
    assert PSEUDONYMS.of("a", "\ud800")


def test_pseudonyms_of_endless_ids_are_not_kept() -> None:
    pseudonyms = Pseudonyms(b"secret")
    for length in (200, 201, 1_000_000):
        assert pseudonyms.of("acme", "x" * length) == hashed("x" * length)
    assert pseudonyms._kept.cache_info().currsize == 1
    pseudonyms.forget()
    assert pseudonyms._kept.cache_info().currsize == 0


def test_all_fields_and_doubles_are_found() -> None:
    body = (
        '{"user":"a","metadata":{"user_id":"ü","x":1,"user_id":7},"safety_identifier":" s ","user":null,"user":" ",'
        '"messages":[{"user":"not this"}],"metadata":{"us\\u0065r_id":"z"}}'
    ).encode()
    text = body_text(body)
    found = find_ids(body, text, read_body(text)[1])
    assert [(one.field, one.user_id) for one in found] == [
        ("user", "a"),
        ("metadata.user_id", "ü"),
        ("metadata.user_id", "7"),
        ("safety_identifier", " s "),
        ("user", ""),
        ("user", ""),
        ("metadata.user_id", "z"),
    ]


def test_hashed_to_the_byte() -> None:
    body = '{ "user" : "ü" , "n":1.0, "metadata":{"user_id": 42 ,"k":"v"} }'.encode()
    expected = f'{{ "user" : "{hashed("ü")}" , "n":1.0, "metadata":{{"user_id": "{hashed("42")}" ,"k":"v"}} }}'
    assert rewritten(body, "hashed") == expected.encode()


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (b'{"user":"a","m":1}', b'{"m":1}'),
        (b'{"m":1, "user":"a"}', b'{"m":1}'),
        (b'{"m":1, "user":"a", "n":2}', b'{"m":1, "n":2}'),
        (b'{ "user":"a" }', b"{  }"),
        (b'{"user":"a","safety_identifier":"b","m":1,"user":"c"}', b'{"m":1}'),
        (b'{"m":1,"user":"a","safety_identifier":"b"}', b'{"m":1}'),
        (b'{"metadata":{"user_id":"a"},"user":"b"}', b'{"metadata":{}}'),
        (b'{"user":"b","metadata":{"x":1,"user_id":"a","y":[2]}}', b'{"metadata":{"x":1,"y":[2]}}'),
        (b'{"user":null,"metadata":"user_id"}', b'{"user":null,"metadata":"user_id"}'),
    ],
)
def test_stripped_to_the_byte(body: bytes, left: bytes) -> None:
    assert rewritten(body, "stripped") == left
    json.loads(left)
