"""Settings of the proxy."""

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from popi.errors import ConfigError
from popi.serving.proxy.settings import JwtSettings, ProxySettings

PEM = (
    rsa.generate_private_key(65537, 2048)
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    .decode()
)


def test_names_of_headers_in_lower_case() -> None:
    assert ProxySettings(upstream="http://h", identity_headers=("X-User",)).identity_headers == ("x-user",)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "upstream"),
        ({"upstream": "ftp://host"}, "https:// or http://"),
        ({"upstream": "http://user:s3cr3t@host"}, "no user, password"),
        ({"upstream": "http://h", "upstreams": ({"name": "a", "url": "http://h"},)}, "either upstream"),
        ({"upstreams": ({"name": "a", "url": "http://h"},), "upstream_key": "sk-s3cr3t"}, "key_env"),
        (
            {"upstreams": ({"name": "a", "url": "http://h"}, {"name": "a", "url": "http://i"})},
            "the name 'a' is used twice",
        ),
        ({"upstreams": ({"name": "a", "url": "http://u:s3cr3t@h"},)}, "upstream 'a' at h must have no user"),
        ({"upstreams": ({"name": "a", "url": "http://h/v1/chat/completions"},)}, "without /chat/completions"),
        ({"upstreams": ({"name": "a b", "url": "http://h"},)}, "upstreams.name"),
        (
            {"upstreams": ({"name": "a", "url": "http://h", "key": "s3cr3t", "key_env": "K"},)},
            "only one of key and key_env",
        ),
        ({"upstreams": ({"name": "a", "url": "http://h", "model": "m"},)}, "model: no such setting; allowed here: "),
        ({"upstreams": ("http://h",)}, "upstreams"),
        ({"upstream": "http://h", "nonsense": 1}, "nonsense"),
        ({"upstream": "http://h", "block": "no place"}, "{summary} exactly once"),
        ({"upstream": "http://h", "identity_headers": ("a b",)}, "not a valid header name"),
        ({"upstream": "http://h", "concurrency": 0}, "concurrency"),
        ({"upstream": "http://h", "upstream_key": "a\r\nb"}, "can't be in a key"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        ProxySettings(**settings)
    assert named in str(error.value)
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "one of jwks_url, key and key_env"),
        ({"jwks_url": "https://h/k", "key": "x" * 32}, "one of jwks_url, key and key_env"),
        ({"jwks_url": "https://h/k", "algorithms": ("HS256",)}, "with public keys"),
        ({"key": PEM, "algorithms": ("HS256",)}, "with public keys"),
        ({"key": PEM, "algorithms": ("RS256", "HS256")}, "with public keys"),
        ({"key": "x" * 32}, "with a shared secret"),
        ({"key": "short", "algorithms": ("HS256",)}, "32 bytes"),
        ({"jwks_url": "https://h/k", "algorithms": ("none",)}, "algorithms must be from"),
        ({"jwks_url": "https://h/k", "algorithms": ()}, "algorithms must be from"),
    ],
)
def test_unsafe_token_settings_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        JwtSettings(**settings)


def test_secrets_are_not_shown() -> None:
    settings = ProxySettings(upstream="http://h", upstream_key="sk-hidden", id_secret="sk-hidden")
    assert "hidden" not in repr(settings) + settings.model_dump_json()
