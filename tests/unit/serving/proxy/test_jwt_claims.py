"""Tokens that name the user: what holds and what does not."""

import asyncio
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from popi.errors import AuthError, ConfigError
from popi.serving.proxy import jwt_claims
from popi.serving.proxy.jwt_claims import Tokens
from popi.serving.proxy.settings import JwtSettings

SECRET = "0123456789abcdef0123456789abcdef"
RSA, OTHER_RSA = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
EC, ED = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "ann", "exp": int(time.time()) + 86_400} | more


async def no_fetch(url: str) -> bytes:
    raise AssertionError(url)


def user_id(settings: JwtSettings, token: str) -> str:
    return asyncio.run(Tokens(settings, no_fetch).user_id(token))


SHARED = JwtSettings(key=SECRET, algorithms=("HS256",), issuer="idp", audience="popi")


def test_a_shared_secret() -> None:
    token = jwt.encode(claims(iss="idp", aud=["x", "popi"]), SECRET, "HS256")
    assert user_id(SHARED, token) == "ann"


def test_a_public_key() -> None:
    assert user_id(JwtSettings(key=PEM), jwt.encode(claims(), RSA, "RS256")) == "ann"


def test_a_claim_of_ones_own_and_numbers() -> None:
    settings = JwtSettings(key=SECRET, algorithms=("HS256",), claim="uid")
    assert user_id(settings, jwt.encode(claims(uid=42), SECRET, "HS256")) == "42"
    assert user_id(JwtSettings(key=SECRET, algorithms=("HS256",)), jwt.encode(claims(sub=7), SECRET, "HS256")) == "7"


GOOD = {"iss": "idp", "aud": "popi"}
NONE = jwt.encode(claims(**GOOD), None, "none")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b.c",
        "not a token",
        NONE,
        jwt.encode(claims(**GOOD), "another secret of thirty-two bytes", "HS256"),
        jwt.encode(claims(**GOOD), SECRET * 2, "HS512"),
        jwt.encode(claims(**GOOD), RSA, "RS256"),
        jwt.encode(claims(**GOOD) | {"exp": int(time.time()) - 60}, SECRET, "HS256"),
        jwt.encode(claims(**GOOD, nbf=int(time.time()) + 43_200), SECRET, "HS256"),
        jwt.encode({"sub": "ann", **GOOD}, SECRET, "HS256"),
        jwt.encode(claims(**GOOD) | {"sub": None}, SECRET, "HS256"),
        jwt.encode(claims(**GOOD) | {"sub": " "}, SECRET, "HS256"),
        jwt.encode(claims(**GOOD) | {"sub": ["ann"]}, SECRET, "HS256"),
        jwt.encode(claims(**GOOD) | {"sub": True}, SECRET, "HS256"),
        jwt.encode(claims(iss="another", aud="popi"), SECRET, "HS256"),
        jwt.encode(claims(iss="idp", aud="another"), SECRET, "HS256"),
        jwt.encode(claims(iss="idp"), SECRET, "HS256"),
    ],
)
def test_what_does_not_hold(token: str) -> None:
    with pytest.raises(AuthError) as error:
        user_id(SHARED, token)
    assert error.value.status == 401


def test_a_token_for_somebody_else_is_refused_where_no_audience_is_set() -> None:
    with pytest.raises(AuthError):
        user_id(JwtSettings(key=SECRET, algorithms=("HS256",)), jwt.encode(claims(aud="x"), SECRET, "HS256"))


def test_a_public_key_is_no_shared_secret() -> None:
    """The oldest trick: sign with the public key as if it were a secret."""
    import base64
    import hashlib
    import hmac

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    head = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(json.dumps(claims()).encode())
    forged = head + b"." + part(hmac.new(PEM.encode(), head, hashlib.sha256).digest())
    with pytest.raises(AuthError):
        user_id(JwtSettings(key=PEM), forged.decode())


def test_a_key_that_is_none() -> None:
    broken = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
    with pytest.raises(ConfigError, match="PEM"):
        Tokens(JwtSettings(key=broken), no_fetch)


def test_the_shared_secret_may_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a shared secret of thirty-two bytes"
    settings = JwtSettings(key_env="POPI_TEST_JWT", algorithms=("HS256",))
    with pytest.raises(ConfigError, match="POPI_TEST_JWT"):
        Tokens(settings, no_fetch)
    monkeypatch.setenv("POPI_TEST_JWT", "too short")
    with pytest.raises(ConfigError, match="POPI_TEST_JWT"):  # with a blank in it
        Tokens(settings, no_fetch)
    monkeypatch.setenv("POPI_TEST_JWT", "short")
    with pytest.raises(ConfigError, match="32 bytes"):
        Tokens(settings, no_fetch)
    monkeypatch.setenv("POPI_TEST_JWT", secret.replace(" ", "-"))
    assert user_id(settings, jwt.encode(claims(), secret.replace(" ", "-"), "HS256")) == claims()["sub"]
    with pytest.raises(ConfigError, match="one of jwks_url, key and key_env"):
        JwtSettings(key_env="POPI_TEST_JWT", key=secret, algorithms=("HS256",))
    with pytest.raises(ConfigError, match="with a shared secret"):
        JwtSettings(key_env="POPI_TEST_JWT", algorithms=("RS256",))


class Issuer:
    """An issuer whose list of keys can be changed, and be out of reach."""

    def __init__(self) -> None:
        self.fetched = 0
        self.down = False
        self.entries: list[dict[str, Any]] = []
        self.list(("rsa", RSA))

    def list(self, *keys: tuple[str | None, Any]) -> None:
        makers = {
            rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
            ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
            ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
        }
        self.entries = []
        for kid, key in keys:
            maker = next(maker for kind, maker in makers.items() if isinstance(key, kind))
            entry = json.loads(maker.to_jwk(key.public_key()))
            self.entries.append(entry | ({"kid": kid} if kid else {}))

    async def fetch(self, url: str) -> bytes:
        assert url == "https://idp/keys"
        self.fetched += 1
        if self.down:
            raise OSError("down")
        return json.dumps({"keys": self.entries}).encode()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    original = jwt_claims._IssuerKeys.__init__
    monkeypatch.setattr(
        jwt_claims._IssuerKeys, "__init__", lambda self, url, fetch: original(self, url, fetch, lambda: now[0])
    )
    return now


def signed(key: Any, kid: str | None, algorithm: str = "RS256") -> str:
    return jwt.encode(claims(), key, algorithm, headers={"kid": kid} if kid else None)


def test_an_issuers_keys(clock: list[float]) -> None:
    issuer = Issuer()
    tokens = Tokens(JwtSettings(jwks_url="https://idp/keys"), issuer.fetch)

    def check(token: str) -> str | int:
        try:
            return asyncio.run(tokens.user_id(token))
        except AuthError as error:
            return error.status

    issuer.down = True
    assert check(signed(RSA, "rsa")) == 503
    issuer.down = False
    assert check(signed(RSA, "rsa")) == 503  # not asked again so soon
    clock[0] += 31
    assert check(signed(RSA, "rsa")) == "ann"
    assert check(signed(RSA, None)) == "ann"  # there is but one
    assert issuer.fetched == 2
    assert check(signed(OTHER_RSA, "rsa")) == 401
    assert check(signed(EC, "ec", "ES256")) == 401  # not listed, and just asked
    assert issuer.fetched == 2
    issuer.list(("rsa", RSA), ("ec", EC), ("ed", ED))
    issuer.entries += [
        {"kty": "oct", "kid": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"},
        {"kty": "odd", "kid": "odd"},
        {**issuer.entries[0], "kid": "enc", "use": "enc"},
    ]
    clock[0] += 31
    assert check(signed(EC, "ec", "ES256")) == "ann"
    assert check(signed(ED, "ed", "EdDSA")) == "ann"
    assert check(signed(SECRET, "oct", "HS256")) == 401
    assert check(signed(RSA, "enc")) == 401
    assert check(signed(RSA, None)) == 401  # which one is meant can't be told
    # Out of reach: the old ones count on for a day.
    issuer.down = True
    clock[0] += 3601
    assert check(signed(RSA, "rsa")) == "ann"
    clock[0] += 86_400
    assert check(signed(RSA, "rsa")) == 503
    issuer.down = False
    clock[0] += 31
    issuer.list(("rsa", RSA))
    assert check(signed(RSA, "rsa")) == "ann"
    assert check(signed(EC, "ec", "ES256")) == 401  # no longer listed


class SlowIssuer(Issuer):
    """An issuer that answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()

    async def fetch(self, url: str) -> bytes:
        answer = await super().fetch(url)
        await self.let.wait()
        return answer


async def _begun(issuer: Issuer, times: int) -> None:
    async with asyncio.timeout(5):
        while issuer.fetched < times:
            await asyncio.sleep(0)


def test_a_client_that_hangs_up_does_not_take_the_fetch_along() -> None:
    async def check() -> None:
        issuer = SlowIssuer()
        tokens = Tokens(JwtSettings(jwks_url="https://idp/keys"), issuer.fetch)
        first, second = (asyncio.create_task(tokens.user_id(signed(RSA, "rsa"))) for _ in range(2))
        await _begun(issuer, 1)
        first.cancel()
        await asyncio.wait((first,))
        issuer.let.set()
        assert await second == "ann" and first.cancelled()
        assert await tokens.user_id(signed(RSA, "rsa")) == "ann"
        assert issuer.fetched == 1

    asyncio.run(check())


def test_a_fetch_under_way_holds_back_no_token_whose_key_is_known(clock: list[float]) -> None:
    async def check() -> None:
        issuer = SlowIssuer()
        issuer.let.set()
        tokens = Tokens(JwtSettings(jwks_url="https://idp/keys"), issuer.fetch)
        assert await tokens.user_id(signed(RSA, "rsa")) == "ann"
        issuer.let.clear()
        issuer.list(("new", RSA))
        clock[0] += 3601
        async with asyncio.timeout(1):
            assert await tokens.user_id(signed(RSA, "rsa")) == "ann"
            assert await tokens.user_id(signed(RSA, None)) == "ann"
        waits = asyncio.create_task(tokens.user_id(signed(RSA, "new")))  # a key that is not known is waited for
        await _begun(issuer, 2)
        issuer.let.set()
        assert await waits == "ann" and issuer.fetched == 2
        with pytest.raises(AuthError):
            await tokens.user_id(signed(RSA, "rsa"))  # no longer listed

    asyncio.run(check())
