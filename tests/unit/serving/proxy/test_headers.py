"""Headers in both directions."""

from typing import Any

import pytest

from popi.serving.proxy.headers import HeaderRules, Raw, RequestHeaders, answer_headers
from popi.serving.proxy.refusals import Refusal
from popi.serving.proxy.settings import JwtSettings, ProxySettings


def read(raw: list[Raw], **settings: Any) -> RequestHeaders:
    return RequestHeaders(raw, HeaderRules(ProxySettings(upstream="http://up", **settings)))


def test_what_is_passed_on() -> None:
    kept = [
        (b"accept-encoding", b"gzip, br"),
        (b"x-stainless-lang", b"python"),
        (b"traceparent", b"00-1"),
        (b"x", b"1"),
    ]
    dropped = [
        (b"host", b"gateway"),
        (b"content-length", b"7"),
        (b"connection", b"keep-alive, X-Hop"),
        (b"connection", b"upgrade"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"te", b"trailers"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"expect", b"100-continue"),
        (b"proxy-authorization", b"Basic x"),
        (b"x-popi-user", b"ann"),
        (b"x-popi-personalize", b"OFF"),
        (b"x-popi-anything", b"1"),
        (b"x-openwebui-user-id", b"ann"),
        (b"x-openwebui-user-email", b"ann@example.org"),
        (b"x-litellm-end-user-id", b"ann"),
        (b"x-litellm-user_api_key_end_user_id", b"ann"),
        (b"x-litellm-user_api_key_user_email", b"ann@example.org"),
    ]
    headers = read([*kept, *dropped])
    assert headers.passed == kept
    assert headers.off and headers.length == 7


def test_keys() -> None:
    bearer, key, ours = (b"authorization", b"Bearer k1"), (b"x-api-key", b"k2"), (b"x-popi-key", b"k3")
    azures = (b"api-key", b"k4")
    for raw, expected, passed in (
        ([bearer], "k1", []),
        ([key], "k2", []),
        ([bearer, key], "k1", []),
        ([(b"authorization", b"Basic eA=="), key], "k2", []),
        ([ours], "k3", []),
        ([bearer, key, ours], "k3", [bearer, key]),
        ([azures], "k4", []),
        ([key, azures], "k2", []),
        ([azures, ours], "k3", [azures]),
        ([bearer, (b"x-popi-key", b"")], None, [bearer]),  # not the upstream's key in place of an empty one
        ([], None, []),
    ):
        headers = read(raw)
        assert (headers.key, headers.passed, headers.own_upstream_key) == (expected, passed, bool(passed))


def test_tokens() -> None:
    token, ours = (b"authorization", b"Bearer t"), (b"x-popi-key", b"k")
    jwt = JwtSettings(key="x" * 32, algorithms=("HS256",), header="Authorization")
    assert read([token, ours], jwt=jwt).jwt == "t"
    assert read([token, ours], jwt=jwt).passed == []
    assert read([token], jwt=jwt).jwt is None
    assert read([token], jwt=jwt).key == "t"
    jwt = JwtSettings(key="x" * 32, algorithms=("HS256",), header="X-Id")
    assert read([(b"x-id", b"Bearer t")], jwt=jwt).jwt == "t"
    assert read([(b"x-id", b"t")], jwt=jwt).jwt == "t"
    assert read([(b"x-id", b"t")], jwt=jwt).passed == []


def test_ids_in_their_order_and_with_all_their_letters() -> None:
    raw = [(b"x-litellm-end-user-id", "Bjørn".encode()), (b"x-popi-user", b" ann "), (b"x-openwebui-user-id", b"")]
    headers = read(raw)
    assert list(headers.ids.items()) == [("x-popi-user", "ann"), ("x-litellm-end-user-id", "Bjørn")]
    assert read(raw, identity_headers=()).ids == {}
    assert read(raw, identity_headers=()).named == {b"x-litellm-end-user-id": "Bjørn"}
    assert read([(b"x-popi-user", b"\xe9")]).ids == {"x-popi-user": "é"}


def test_what_litellm_says_of_its_own_key_stays_here_even_hashed() -> None:
    raw = [(b"x-litellm-user_api_key_end_user_id", b"ann"), (b"x-litellm-user_api_key_alias", b"the team's")]
    headers = read(raw, ids_upstream="hashed")
    assert headers.ids == {"x-litellm-user_api_key_end_user_id": "ann"} and headers.passed == []
    rules = HeaderRules(ProxySettings(upstream="http://up", ids_upstream="hashed"))
    assert rules.hashed == {b"x-litellm-end-user-id", b"x-openwebui-user-id"}


def test_two_that_differ_are_refused() -> None:
    assert read([(b"x-popi-user", b"a"), (b"x-popi-user", b"a")]).ids == {"x-popi-user": "a"}
    with pytest.raises(Refusal, match="x-popi-user was sent twice"):
        read([(b"x-popi-user", b"a"), (b"x-popi-user", b"b")])


def test_of_the_answer() -> None:
    raw = [
        (b"Content-Type", b"text/event-stream"),
        (b"Connection", b"x-hop"),
        (b"X-Hop", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Set-Cookie", b"a=1"),
        (b"Set-Cookie", b"b=2"),
        (b"X-Popi-Personalized", b"applied"),
        (b"Content-Encoding", b"br"),
        (b"Retry-After", b"7"),
    ]
    assert answer_headers(raw) == [
        (b"content-type", b"text/event-stream"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"content-encoding", b"br"),
        (b"retry-after", b"7"),
    ]
