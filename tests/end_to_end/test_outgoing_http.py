"""A gateway in a separate process, and commands, behind a forward proxy and with a private authority."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from end_to_end.gateway_process import ADMIN, GatewayProcess, running
from fake_upstream import FakeUpstream, serving
from forward_proxy import LOGIN, forward_proxy, needs_proxy
from private_ca import DAY, PrivateCa
from typer.testing import CliRunner, Result

from popi.cli import app
from popi.config.http import HttpConfig
from popi.errors import ConfigError, UpstreamError
from popi.serving.pages.settings import PageSettings
from popi.serving.pages.tryout import Tryout
from popi.serving.proxy.settings import ProxySettings

pytestmark = pytest.mark.timed

HEADERS = {"authorization": f"Bearer {ADMIN}"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())


def token(user: str) -> str:
    claims = {"sub": user, "exp": time.time() + 600}
    return jwt.encode(claims, ISSUER_KEY, "ES256", headers={"kid": "k1"})


def jwks() -> dict[str, Any]:
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ISSUER_KEY.public_key()))
    return {"keys": [public | {"kid": "k1", "use": "sig"}]}


@contextmanager
def gateway(
    folder: Path, upstream: FakeUpstream, http: dict[str, Any], env: dict[str, str] | None = None
) -> Iterator[tuple[GatewayProcess, httpx2.Client]]:
    """A gateway whose worker uses the same server, which also has the keys of its tokens."""
    upstream.pages["/keys"] = jwks()
    settings = folder / "gateway.toml"
    lines = [
        f'[proxy]\njwt = {{ jwks_url = "{upstream.url}/keys" }}',
        "[renewal]\nquiet_s = 0.1\npoll_interval_s = 0.05",
    ]
    lines += ["[page]\nmodel = 'm'", "[http]", *(f"{name} = {json.dumps(value)}" for name, value in http.items())]
    settings.write_text("\n".join(lines))
    more = ("--config", str(settings), "--inference-url", f"{upstream.url}/v1", "--inference-model", "m")
    env = {"NO_PROXY": ""} | (env or {})
    store = f"sqlite:///{folder}/popi.db"
    with (
        running(store, *more, upstream=f"{upstream.url}/v1", env=env) as process,
        httpx2.Client(base_url=process.url, headers=HEADERS, timeout=30, trust_env=False) as client,
    ):
        yield process, client


def until_renewed(client: httpx2.Client, user: str) -> str:
    client.post(f"/users/{user}/signals", json={"signals": [{"type": "statement", "text": "I like short answers."}]})
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        reply = client.get(f"/users/{user}/summary")
        if reply.status_code == 200 and reply.json()["text"]:
            return str(reply.json()["text"])
        time.sleep(0.05)
    raise AssertionError(reply.text)


def chat(client: httpx2.Client, user: str) -> httpx2.Response:
    return client.post("/v1/chat/completions", json=CHAT, headers={"x-popi-jwt": token(user)})


def until_logged(process: GatewayProcess, *words: str) -> None:
    give_up = time.monotonic() + 20
    while not any(all(word in line for word in words) for line in process.lines):
        assert time.monotonic() < give_up, "".join(process.lines)
        time.sleep(0.05)


@needs_proxy
def test_all_of_it_goes_through_a_proxy_with_a_login_to_a_private_authority(tmp_path: Path) -> None:
    authority = PrivateCa(tmp_path / "ca")
    with (
        forward_proxy(tmp_path / "proxy", login=True) as proxy,
        serving(authority.server("127.0.0.1")) as upstream,
        gateway(
            tmp_path,
            upstream,
            {"ca_bundle": str(authority.bundle)},
            {"HTTPS_PROXY": f"http://{LOGIN}@{proxy.address}"},
        ) as (process, client),
    ):
        assert until_renewed(client, "ann") == "likes short answers."
        worker = len(proxy.asked)
        answer = chat(client, "ann")
        assert (answer.status_code, answer.headers["x-popi-personalized"]) == (200, "applied")
        assert answer.json()["choices"]
        assert worker >= 1 and len(proxy.asked) >= worker + 1
        assert set(proxy.asked) == {f"CONNECT {upstream.url.partition('://')[2]} HTTP/1.1"}
        assert LOGIN.partition(":")[2] not in "".join(process.lines)


@needs_proxy
def test_a_proxy_that_refuses_is_named(tmp_path: Path) -> None:
    authority = PrivateCa(tmp_path / "ca")
    with (
        forward_proxy(tmp_path / "proxy", login=True) as proxy,
        serving(authority.server("127.0.0.1")) as upstream,
        gateway(tmp_path, upstream, {"ca_bundle": str(authority.bundle), "proxy": f"http://{proxy.address}"}) as (
            process,
            client,
        ),
    ):
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_proxy")
        assert "the forward proxy answered 407" in answer.json()["error"]["message"]
        until_logged(process, "can't use the upstream", "the forward proxy answered 407")
        client.post("/users/ann/signals", json={"signals": [{"type": "statement", "text": "I like tea."}]})
        until_logged(process, "did not answer (proxy)")
        assert upstream.received == []


@pytest.mark.parametrize("fault", ["authority", "expired", "host", "no-san"])
def test_a_certificate_that_does_not_hold_is_named(tmp_path: Path, fault: str) -> None:
    authority, other = PrivateCa(tmp_path / "ca"), PrivateCa(tmp_path / "other", "another")
    tls, words = {
        "authority": (lambda: other.server("127.0.0.1"), "an authority that is not trusted here"),
        "expired": (lambda: authority.server("127.0.0.1", valid=-DAY), "has expired"),
        "host": (lambda: authority.server("127.0.0.2"), "is not for this host"),
        "no-san": (lambda: authority.server(common_name="127.0.0.1"), "has no subjectAltName"),
    }[fault]
    with (
        serving(tls()) as upstream,
        gateway(tmp_path, upstream, {"ca_bundle": str(authority.bundle)}) as (process, client),
    ):
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_certificate")
        assert words in answer.json()["error"]["message"]
        until_logged(process, "can't use the upstream", words)
        client.post("/users/ann/signals", json={"signals": [{"type": "statement", "text": "I like tea."}]})
        until_logged(process, "did not answer (certificate)")
        assert chat(client, "ann").status_code == 503  # the token can't be verified
        until_logged(process, "can't fetch the token issuer's keys", words)
        assert upstream.received == []


def test_a_client_certificate_and_ssl_cert_file(tmp_path: Path) -> None:
    authority = PrivateCa(tmp_path / "ca")
    env = {"SSL_CERT_FILE": str(authority.bundle)}
    with serving(authority.server("127.0.0.1", wants_client=True)) as upstream:
        (tmp_path / "with").mkdir()
        certificate = {"client_certificate": str(authority.issue(common_name="gateway"))}
        with gateway(tmp_path / "with", upstream, certificate, env) as (_, client):
            assert until_renewed(client, "ann") == "likes short answers."
            assert chat(client, "ann").headers["x-popi-personalized"] == "applied"
        (tmp_path / "without").mkdir()
        with gateway(tmp_path / "without", upstream, {}, env) as (_, client):
            # TLS 1.3 refuses after the handshake: the server's message may be lost with the connection.
            errors = [client.post("/v1/chat/completions", json=CHAT).json()["error"] for _ in range(10)]
            assert {error["code"] for error in errors} <= {"upstream_certificate", "upstream_broken"}
            assert any("requires a valid client certificate" in error["message"] for error in errors)


def test_a_certificate_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ca_bundle: .*none.pem"):
        with serving() as upstream, gateway(tmp_path, upstream, {"ca_bundle": str(tmp_path / "none.pem")}):
            pass


def test_popi_infer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = PrivateCa(tmp_path / "ca")
    users, http = tmp_path / "users.jsonl", tmp_path / "http.toml"
    users.write_text('{"user_id": "ann", "signals": [{"type": "statement", "text": "I like tea."}]}\n')
    with serving(authority.server("127.0.0.1", wants_client=True)) as upstream:

        def infer() -> Result:
            return CliRunner().invoke(app, ["infer", str(users), "--api", f"{upstream.url}/v1", "--api-model", "m"])

        refused = infer()
        assert refused.exit_code == 1 and "an authority that is not trusted here" in refused.output
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
        refused = infer()
        assert refused.exit_code == 1 and "requires a valid client certificate" in refused.output
        monkeypatch.setenv("POPI_HTTP", str(http))
        http.write_text(f"client_certificate = '{authority.issue(common_name='me')}'")
        done = infer()
        assert done.exit_code == 0 and "likes short answers." in done.output
        http.write_text("ca_bundel = 'x'")
        wrong = infer()
        assert isinstance(wrong.exception, ConfigError) and "ca_bundel: no such setting" in str(wrong.exception)


def test_try_it_out(tmp_path: Path) -> None:
    authority = PrivateCa(tmp_path / "ca")
    with serving(authority.server("127.0.0.1")) as upstream:
        page, proxy = PageSettings(model="m"), ProxySettings(upstream=upstream.url)
        tryout = Tryout(page, proxy, HttpConfig(ca_bundle=str(authority.bundle)))
        assert asyncio.run(tryout.answers("shop", "hello", "Likes tea.")) == ("likes short answers.",) * 2
        with pytest.raises(UpstreamError, match="an authority that is not trusted here"):
            asyncio.run(Tryout(page, proxy, HttpConfig()).answers("shop", "hello", ""))
