"""Servers behind a private authority: who is trusted, and what is said of those who are not."""

import datetime
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import serving
from private_ca import DAY, PrivateCa

from popi.config.http import HttpConfig
from popi.errors import ConfigError, PopiError, UpstreamError
from popi.models.backend import Reply
from popi.models.remote.api import ApiModel
from popi.models.remote.http import HttpClient
from popi.models.remote.retries import Retries

HELLO = [{"role": "user", "content": "hello"}]


def ask(tls: ssl.SSLContext, http: HttpConfig | None = None, host: str = "127.0.0.1") -> Reply | PopiError:
    """As a judge, an inference model or a generator behind an API is asked."""
    with serving(tls) as upstream:
        url = upstream.url.replace("127.0.0.1", host) + "/v1"
        return ApiModel.connect(url, "m", http=http, retries=Retries(0)).chat_many([HELLO], max_tokens=9)[0]


@pytest.fixture
def authority(tmp_path: Path) -> PrivateCa:
    return PrivateCa(tmp_path / "ca")


def trusting(authority: PrivateCa, **more: Any) -> HttpConfig:
    return HttpConfig(ca_bundle=str(authority.bundle), **more)


def test_the_setting_and_the_environment(authority: PrivateCa, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tls = authority.server("127.0.0.1", "localhost")
    assert isinstance(ask(tls, trusting(authority)), Reply)
    assert isinstance(ask(tls, trusting(authority), "localhost"), Reply)
    assert isinstance(ask(tls), UpstreamError)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    assert isinstance(ask(tls), Reply)
    # The setting comes before the environment.
    other = PrivateCa(tmp_path / "other")
    assert isinstance(ask(tls, trusting(other)), UpstreamError)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match="SSL_CERT_FILE: there is no file"):
        ask(tls)


def test_by_default_the_systems_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    system = ssl.create_default_context().cert_store_stats()["x509_ca"]
    if system < 2:
        pytest.skip("this machine's OpenSSL trusts nobody")
    assert HttpClient(HttpConfig())._tls.cert_store_stats()["x509_ca"] == system


@pytest.mark.parametrize(
    ("server", "host", "words"),
    [
        (lambda ca, other: other.server("127.0.0.1"), "127.0.0.1", "an authority that is not trusted here"),
        (lambda ca, other: ca.server("127.0.0.1", valid=-DAY), "127.0.0.1", "has expired"),
        (lambda ca, other: ca.server("127.0.0.2"), "127.0.0.1", "is not for this host"),
        (lambda ca, other: ca.server("elsewhere.test"), "localhost", "is not for this host"),
        # A name in the subject alone is none.
        (lambda ca, other: ca.server(common_name="localhost"), "localhost", "has no subjectAltName"),
        (lambda ca, other: ca.server(common_name="127.0.0.1"), "127.0.0.1", "has no subjectAltName"),
    ],
    ids=["authority", "expired", "address", "host", "no-san", "no-san-address"],
)
def test_what_is_wrong_is_said(
    authority: PrivateCa, tmp_path: Path, server: Callable[..., ssl.SSLContext], host: str, words: str
) -> None:
    error = ask(server(authority, PrivateCa(tmp_path / "other", "another")), trusting(authority), host)
    assert isinstance(error, UpstreamError) and words in str(error)
    assert (error.fault, error.affects_all, error.transient) == ("certificate", True, False)


def test_not_valid_yet(authority: PrivateCa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("private_ca.DAY", datetime.timedelta(days=-1))  # the start is nine of these ago
    error = ask(authority.server("127.0.0.1", valid=datetime.timedelta(days=20)), trusting(authority))
    assert "is not valid yet" in str(error)


def refused(tls: Any, config: Any) -> UpstreamError:
    """What is said where a server wants another client certificate.

    TLS 1.3 refuses after the handshake, so that what the server says may be lost with the connection.
    """
    for _ in range(20):
        error = ask(tls, config)
        assert isinstance(error, UpstreamError) and error.fault in ("certificate", "broken"), error
        if error.fault == "certificate":
            assert "requires a valid client certificate" in str(error)
            return error
    raise AssertionError("never named")


def test_a_client_certificate(authority: PrivateCa, tmp_path: Path) -> None:
    tls = authority.server("127.0.0.1", wants_client=True)
    assert refused(tls, trusting(authority)).affects_all
    both = authority.issue(common_name="a client")
    assert isinstance(ask(tls, trusting(authority, client_certificate=str(both))), Reply)
    private, _, certificate = both.read_text().partition("-----BEGIN CERTIFICATE")
    (tmp_path / "key.pem").write_text(private)
    (tmp_path / "client.pem").write_text("-----BEGIN CERTIFICATE" + certificate)
    apart = {"client_certificate": str(tmp_path / "client.pem"), "client_key": str(tmp_path / "key.pem")}
    assert isinstance(ask(tls, trusting(authority, **apart)), Reply)
    stranger = PrivateCa(tmp_path / "other", "another").issue(common_name="a client")
    refused(tls, trusting(authority, client_certificate=str(stranger)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"ca_bundle": "no.pem"}, "ca_bundle: no.pem"),
        ({"ca_bundle": __file__}, "ca_bundle"),
        ({"client_certificate": "no.pem"}, "client_certificate: no.pem"),
        ({"client_certificate": __file__}, "client_certificate"),
        ({"proxy": "gopher://x"}, "proxy must be http://host:port"),
        ({"proxy": "http://user:s3cret@proxy:3128"}, "put a login into HTTPS_PROXY"),
    ],
)
def test_settings_that_can_not_be(config: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        HttpClient(HttpConfig(**config))
    assert "s3cret" not in str(error.value)


def test_an_encrypted_key_is_refused_without_asking_for_its_password(authority: PrivateCa, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    path = authority.issue()
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"word")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (tmp_path / "locked.pem").write_bytes(pem)
    with pytest.raises(ConfigError, match="unencrypted"):
        HttpClient(HttpConfig(client_certificate=str(path), client_key=str(tmp_path / "locked.pem")))


def test_a_key_without_its_certificate() -> None:
    with pytest.raises(ValueError, match="client_key needs client_certificate"):
        HttpConfig(client_key="key.pem")
