"""User ids in bodies."""

import hashlib
import hmac
import json
from functools import partial
from typing import Any

import pytest

from popi.serving.proxy.ids import Pseudonyms, replace_ids, user_ids
from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.strict_json import parse, serialise

PSEUDONYMS = Pseudonyms(b"secret")


def read(raw: str) -> dict[str, Any]:
    return parse(raw.encode(), 1000, 100)


def rewritten(raw: str, mode: str) -> str:
    body = read(raw)
    before = serialise(body)
    changed = replace_ids(body, partial(PSEUDONYMS.of, "acme") if mode == "hashed" else None)
    assert changed == (serialise(body) != before)
    return serialise(body).decode()


def hashed(user_id: str) -> str:
    return hmac.new(b"secret", f"4:acme:{user_id}".encode(), hashlib.sha256).hexdigest()


def test_pseudonyms_keep_tenants_and_users_apart() -> None:
    assert PSEUDONYMS.of("acme", "ann") == hashed("ann")
    assert len(PSEUDONYMS.of("acme", "ann")) == 64
    ids = {PSEUDONYMS.of(*pair) for pair in (("a", "b:c"), ("a:b", "c"), ("b", "b:c"), ("a", "c"))}
    assert len(ids | {Pseudonyms(b"other").of("a", "c")}) == 5
    assert PSEUDONYMS.of("a", "\ud800")


def test_a_pseudonym_is_of_the_user_however_they_are_spelt() -> None:
    spelt = ["josé@shop.example", " Jose\u0301@Shop.Example\n"]
    assert {PSEUDONYMS.of("acme", one) for one in spelt} == {hashed("josé@shop.example")}
    sessions = [f"user_ab12_account_c-1_session_{n}" for n in range(3)]
    assert {PSEUDONYMS.of("acme", one) for one in sessions} == {hashed("c-1")}
    assert PSEUDONYMS.of("acme", "a\x00") == hashed("a\x00")


def test_pseudonyms_of_endless_ids_are_not_kept() -> None:
    pseudonyms = Pseudonyms(b"secret")
    for length in (200, 201, 1_000_000):
        assert pseudonyms.of("acme", "x" * length) == hashed("x" * length)
    assert pseudonyms._cached.cache_info().currsize == 1
    pseudonyms.forget()
    assert pseudonyms._cached.cache_info().currsize == 0


def test_all_fields_are_found() -> None:
    body = (
        '{"us\\u0065r":"ü","metadata":{"user_id":7,"x":1},"safety_identifier":" s ","messages":[{"user":"not this"}]}'
    )
    assert user_ids(read(body)) == {"user": "ü", "metadata.user_id": "7", "safety_identifier": " s "}
    assert user_ids(read('{"user":null,"safety_identifier":" ","metadata":"user_id"}')) == {}
    assert user_ids(read('{"metadata":null}')) == user_ids({}) == {}


@pytest.mark.parametrize("value", ['["bob"]', '{"id":"bob"}', "true"])
@pytest.mark.parametrize("body", ['{"user":%s}', '{"metadata":{"user_id":%s}}', '{"safety_identifier":%s}'])
def test_what_is_no_id_is_refused(body: str, value: str) -> None:
    with pytest.raises(Refusal, match="must be a string"):
        user_ids(read(body % value))


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ('{"User":"bob"}', "user"),
        ('{"u\u017fer":"bob"}', "user"),
        ('{"SAFETY_IDENTIFIER":"bob"}', "safety_identifier"),
        ('{"metadata":{"User_Id":"bob"}}', "user_id"),
        ('{"Metadata":{"user_id":"bob"}}', "metadata"),
        ('{"user":"ann","uSer":"bob"}', "user"),
        ('{"Messages":[]}', "messages"),
        ('{"Input":"hi"}', "input"),
        ('{"In\u017ftructions":"hi"}', "instructions"),
        ('{"System":"hi"}', "system"),
    ],
)
def test_names_in_other_case_are_refused(body: str, right: str) -> None:
    with pytest.raises(Refusal, match=f"'{right}'") as refusal:
        user_ids(read(body))
    assert (refusal.value.status, refusal.value.code) == (400, "body_name")


def test_hashed() -> None:
    body = '{ "user" : "ü" , "n":1.0, "metadata":{"user_id": 42 ,"k":"v"} }'
    expected = f'{{"user":"{hashed("ü")}","n":1.0,"metadata":{{"user_id":"{hashed("42")}","k":"v"}}}}'
    assert rewritten(body, "hashed") == expected


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ('{"user":"a","m":1}', '{"m":1}'),
        ('{"m":1, "user":"a", "n":2}', '{"m":1,"n":2}'),
        ('{"user":"a"}', "{}"),
        ('{"metadata":{"user_id":"a"},"user":"b"}', '{"metadata":{}}'),
        ('{"user":"b","metadata":{"x":1,"user_id":"a","y":[2]}}', '{"metadata":{"x":1,"y":[2]}}'),
        ('{"user":null,"metadata":"user_id"}', '{"user":null,"metadata":"user_id"}'),
    ],
)
def test_stripped(body: str, left: str) -> None:
    assert rewritten(body, "stripped") == left


def test_in_the_requests_of_a_batch() -> None:
    body = {
        "requests": [{"params": {"metadata": {"user_id": "ann"}}}, {"params": None}, 7, {"params": {"user": "bob"}}]
    }
    done = json.loads(rewritten(json.dumps(body), "hashed"))["requests"]
    assert [done[0]["params"]["metadata"]["user_id"], done[3]["params"]["user"]] == [hashed("ann"), hashed("bob")]
    assert rewritten('{"requests":{"user":"ann"}}', "hashed") == '{"requests":{"user":"ann"}}'
