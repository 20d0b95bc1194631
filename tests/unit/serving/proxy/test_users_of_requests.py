"""Identity over the wire: whose summary is put in, and what the upstream learns of the user."""

import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from unit.serving.proxy.recording import (
    ADMIN_KEY,
    APP_KEY,
    OTHER_KEY,
    SECRET,
    USER_KEY,
    RecordingUpstream,
    RunningGateway,
    running_gateway,
)

BODY = b'{"messages":[{"role":"user","content":"hi"}]%b}'
PLAIN = BODY % b""


def pseudonym(user_id: str, tenant: str = "acme") -> str:
    text = f"{len(tenant)}:{tenant}:{user_id}".encode()
    return hmac.new(SECRET.encode(), text, hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"x-popi-user": "ann"}, b""),
        ({"X-LiteLLM-End-User-Id": "ann"}, b""),
        ({"X-OpenWebUI-User-Id": "ann"}, b""),
        ({}, b',"safety_identifier":"ann","user":"x"'),
        ({}, b',"user":"ann","metadata":{"user_id":"x"}'),
        ({}, b',"metadata":{"user_id":"ann"}'),
        ({"x-popi-user": "ann", "x-openwebui-user-id": "x"}, b',"user":"x"'),
    ],
)
def test_every_place_in_its_order(gateway: RunningGateway, headers: dict[str, str], fields: bytes) -> None:
    answer = gateway.call(body=BODY % fields, headers=headers)
    assert answer.header("x-popi-personalized") == "applied"
    assert gateway.summaries.asked == [("acme", "ann")]
    got = gateway.upstream.last
    sent = got.body.decode() + str(got.headers)
    assert '"ann"' not in sent and "'ann'" not in sent and '"x"' not in sent and "'x'" not in sent
    if b"user" in fields and not headers:
        assert pseudonym("ann") in sent


def test_all_letters(gateway: RunningGateway) -> None:
    for body, headers in (
        (BODY % ',"user":"Bjørn ☃"'.encode(), {}),
        (BODY % b',"user":"Bj\\u00f8rn \\u2603"', {}),
        (PLAIN, {"x-popi-user": "Bjørn ☃"}),
    ):
        assert gateway.call(body=body, headers=headers).header("x-popi-personalized") == "applied"
    assert set(gateway.summaries.asked) == {("acme", "Bjørn ☃")}


def test_every_spelling_is_one_user_here_and_upstream(gateway: RunningGateway) -> None:
    """As Claude Code writes `metadata.user_id`, before and since 2.1.78; another session each time."""
    sessions = [
        "user_d1_account_c1_session_s1",
        "user_d1_account_c1_session_s2",
        '{"device_id":"d1","account_uuid":"c1","session_id":"s3"}',
    ]
    for path in ("/v1/messages", "/v1/chat/completions"):
        for user_id in sessions:
            body = {"messages": [{"role": "user", "content": "hi"}], "metadata": {"user_id": user_id}}
            gateway.call(path, json.dumps(body).encode())
            assert gateway.upstream.last.json["metadata"]["user_id"] == pseudonym("c1")
    assert gateway.summaries.asked == [("acme", "c1")] * 6
    gateway.summaries.asked.clear()
    for header in ("jose\u0301@shop.example", " Jos\u00e9@Shop.Example "):
        gateway.call(body=PLAIN, headers={"x-openwebui-user-id": header})
        assert gateway.upstream.last.header("x-openwebui-user-id") == pseudonym("jos\u00e9@shop.example")
    assert gateway.summaries.asked == [("acme", "jos\u00e9@shop.example")] * 2


def test_a_session_alone_is_nobody(gateway: RunningGateway) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "metadata": {"user_id": '{"session_id":"s1"}'}}
    assert gateway.call(body=json.dumps(body).encode()).header("x-popi-personalized") == "none"
    assert gateway.summaries.asked == [] and "s1" not in gateway.upstream.last.body.decode()


def test_of_its_tenant_only(gateway: RunningGateway) -> None:
    body = BODY % b',"user":"ann"'
    assert gateway.call(body=body, key=OTHER_KEY).header("x-popi-personalized") == "none"
    assert gateway.summaries.asked == [("other", "ann")]
    assert gateway.upstream.last.json["user"] == pseudonym("ann", "other") != pseudonym("ann")


def test_stripped(upstream: RecordingUpstream) -> None:
    with running_gateway(upstream, ids_upstream="stripped") as gateway:
        body = b'{"user":"ann","messages":[{"role":"user","content":"hi"}],"metadata":{"user_id":"x","a":1}}'
        headers = {"x-litellm-end-user-id": "ann"}
        assert gateway.call(body=body, headers=headers).header("x-popi-personalized") == "applied"
        assert gateway.call("/v1/messages", b'{"user":"ann"}').header("x-popi-personalized") == "applied"
        gateway.call(body=body, headers=headers | {"x-popi-personalize": "off"})
    first, second, third = upstream.received
    assert third.body == b'{"messages":[{"role":"user","content":"hi"}],"metadata":{"a":1}}'
    assert set(first.json) == {"messages", "metadata"} and first.json["metadata"] == {"a": 1}
    assert list(second.json) == ["system"]
    assert first.header("x-litellm-end-user-id") is None


def test_a_user_key(gateway: RunningGateway) -> None:
    assert gateway.call(body=PLAIN, key=USER_KEY).header("x-popi-personalized") == "applied"
    assert gateway.call(body=BODY % b',"user":"ann"', key=USER_KEY).status == 200
    gateway.upstream.received.clear()
    for headers, fields in (
        ({"x-popi-user": "bert"}, b""),
        ({}, b',"user":"bert"'),
        ({}, b',"us\\u0065r":"bert"'),
        ({"x-popi-user": "bert", "x-popi-personalize": "off"}, b""),
    ):
        answer = gateway.call(body=BODY % fields, headers=headers, key=USER_KEY)
        assert (answer.status, answer.json["error"]["type"]) == (403, "permission_error")
    assert gateway.upstream.received == []
    assert {user for _, user in gateway.summaries.asked} == {"ann"}


def test_an_admin_key_speaks_for_users(gateway: RunningGateway) -> None:
    assert gateway.call(body=BODY % b',"user":"ann"', key=ADMIN_KEY).header("x-popi-personalized") == "applied"


def test_an_admin_may_name_another_tenant(gateway: RunningGateway) -> None:
    body = BODY % b',"user":"ann"'
    assert gateway.call(body=body, headers={"x-popi-tenant": "other"}, key=ADMIN_KEY).status == 200
    assert gateway.summaries.asked == [("other", "ann")]
    assert gateway.upstream.last.header("x-popi-tenant") is None
    for key in (APP_KEY, USER_KEY):
        assert gateway.call(body=body, headers={"x-popi-tenant": "other"}, key=key).status == 403
        assert gateway.call(body=body, headers={"x-popi-tenant": "acme"}, key=key).status == 200


def test_two_headers_that_differ(gateway: RunningGateway) -> None:
    answer = gateway.call(body=PLAIN, headers=[("x-popi-user", "ann"), ("x-popi-user", "bert")])
    assert (answer.status, answer.json["error"]["code"]) == (400, "ambiguous_header")


def token(user: str = "ann", secret: str = SECRET, **more: Any) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + 60} | more, secret, "HS256")


def test_a_token_comes_first_and_must_hold(upstream: RecordingUpstream) -> None:
    settings = {"key": SECRET, "algorithms": ("HS256",)}
    with running_gateway(upstream, jwt=settings) as gateway:
        headers = {"x-popi-jwt": token(), "x-popi-user": "bert"}
        assert gateway.call(body=PLAIN, headers=headers).header("x-popi-personalized") == "applied"
        assert gateway.summaries.asked == [("acme", "ann")]
        assert "jwt" not in str(upstream.last.headers)
        for wrong in (token(secret=SECRET + "x"), token(exp=time.time() - 60), "made up", ""):
            answer = gateway.call(body=PLAIN, headers=headers | {"x-popi-jwt": wrong})
            assert (answer.status, answer.json["error"]["code"]) == (401, "not_authenticated"), wrong
        assert len(upstream.received) == 1
        assert gateway.call(body=PLAIN, headers={"x-popi-user": "ann"}).status == 200  # without a token: as before
        assert gateway.call(body=PLAIN, headers={"x-popi-jwt": token("bert")}, key=USER_KEY).status == 403
        assert gateway.call(body=PLAIN, headers={"x-popi-jwt": token()}, key=None).status == 401  # no key


def test_a_token_in_authorization(upstream: RecordingUpstream) -> None:
    settings = {"key": SECRET, "algorithms": ("HS256",), "header": "Authorization"}
    with running_gateway(upstream, jwt=settings, upstream_key="sk-ours") as gateway:
        answer = gateway.call(body=PLAIN, headers={"x-popi-key": APP_KEY}, key=token())
        assert answer.header("x-popi-personalized") == "applied"
    assert upstream.last.header("authorization") == "Bearer sk-ours"


def test_an_issuers_keys_over_http(upstream: RecordingUpstream) -> None:
    import json

    from cryptography.hazmat.primitives.asymmetric import ec
    from unit.serving.proxy.recording import fixed

    key = ec.generate_private_key(ec.SECP256R1())
    entry = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": "1"}
    upstream.reply = fixed(json.dumps({"keys": [entry]}).encode())
    with running_gateway(upstream, jwt={"jwks_url": f"{upstream.url}/keys"}) as gateway:
        signed = jwt.encode({"sub": "ann", "exp": time.time() + 60}, key, "ES256", headers={"kid": "1"})
        for _ in range(2):
            answer = gateway.call(body=PLAIN, headers={"x-popi-jwt": signed})
            assert answer.header("x-popi-personalized") == "applied"
    assert [got.target for got in upstream.received].count("/keys") == 1
