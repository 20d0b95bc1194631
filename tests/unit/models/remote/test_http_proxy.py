"""Servers behind a forward proxy, which is a real one."""

import logging
from pathlib import Path

import pytest
from fake_upstream import FakeUpstream, serving
from forward_proxy import LOGIN, forward_proxy, needs_proxy
from private_ca import PrivateCa

from popi.config.http import HttpConfig
from popi.errors import PopiError, UpstreamError
from popi.models.backend import Reply
from popi.models.remote.api import ApiModel
from popi.models.remote.retries import Retries

HELLO = [{"role": "user", "content": "hello"}]
pytestmark = needs_proxy


def ask(upstream: FakeUpstream, http: HttpConfig | None = None, n: int = 1) -> list[Reply | PopiError]:
    model = ApiModel.connect(f"{upstream.url}/v1", "m", http=http, retries=Retries(0), concurrency=1)
    return model.chat_many([HELLO] * n, max_tokens=9)


@pytest.fixture(autouse=True)
def no_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("login", [False, True])
def test_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secure: bool, login: bool) -> None:
    authority = PrivateCa(tmp_path / "ca")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    tls = authority.server("127.0.0.1") if secure else None
    with forward_proxy(tmp_path / "proxy", login) as proxy, serving(tls) as upstream:
        name = "HTTPS_PROXY" if secure else "HTTP_PROXY"
        monkeypatch.setenv(name, f"http://{LOGIN + '@' if login else ''}{proxy.address}")
        assert [type(reply) for reply in ask(upstream, n=3)] == [Reply] * 3
        host = upstream.url.partition("://")[2]
        expected = f"CONNECT {host} HTTP/1.1" if secure else f"POST http://{host}/v1/chat/completions HTTP/1.1"
        assert proxy.asked and set(proxy.asked) == {expected}
        assert len(upstream.received) == 3
        assert all("Proxy-Authorization" not in request.headers for request in upstream.received)
        # Hosts in NO_PROXY are reached directly.
        before = len(proxy.asked)
        monkeypatch.setenv("NO_PROXY", "elsewhere.test,127.0.0.1")
        assert isinstance(ask(upstream)[0], Reply) and len(proxy.asked) == before
        monkeypatch.setenv("NO_PROXY", host)
        assert isinstance(ask(upstream)[0], Reply) and len(proxy.asked) == before
        monkeypatch.setenv("NO_PROXY", "elsewhere.test")
        assert isinstance(ask(upstream)[0], Reply) and len(proxy.asked) > before


def test_the_setting_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with forward_proxy(tmp_path / "proxy") as proxy, serving() as upstream:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert isinstance(ask(upstream, HttpConfig(proxy=proxy.address))[0], Reply)
        assert len(proxy.asked) == 1
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert isinstance(ask(upstream, HttpConfig(proxy=proxy.address))[0], Reply)
        assert len(proxy.asked) == 1


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    ("address", "words", "affects_all"),
    [
        ("http://{}", "the forward proxy answered 407 (it requires a valid login)", True),
        # tinyproxy says 401 where others say 407 again; over plain http that might be the server's own.
        ("http://popi:wr0ng-w0rd@{}", "the forward proxy answered 401", True),
        ("http://popi:wr0ng-w0rd@127.0.0.1:9", "the forward proxy does not respond", False),
        ("gopher://popi:wr0ng-w0rd@{}", "HTTPS_PROXY or HTTP_PROXY is not http://host:port", True),
    ],
)
def test_faults_of_the_proxy_are_said_to_be_its(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    secure: bool,
    address: str,
    words: str,
    affects_all: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    tls = PrivateCa(tmp_path / "ca").server("127.0.0.1") if secure else None
    with forward_proxy(tmp_path / "proxy", login=True) as proxy, serving(tls) as upstream:
        for name in ("HTTPS_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, address.format(proxy.address))
        (error,) = ask(upstream)
    assert isinstance(error, UpstreamError) and upstream.received == []
    if secure or "401" not in words:
        assert words in str(error) and (error.fault, error.affects_all) == ("proxy", affects_all)
    assert "wr0ng" not in str(error) + repr(error) + caplog.text


def test_a_host_that_the_proxy_does_not_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = PrivateCa(tmp_path / "ca").server("127.0.0.1")
    with forward_proxy(tmp_path / "proxy", more="ConnectPort 443") as proxy, serving(tls) as upstream:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        (error,) = ask(upstream)
    assert isinstance(error, UpstreamError) and error.fault == "proxy" and "does not allow this host" in str(error)
