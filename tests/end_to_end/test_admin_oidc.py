"""The team signs in at an OpenID provider (oidc-provider-mock, in a process), in Chromium and without a browser."""

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from chromium import accessible, chromium, needs_chromium, new_page, press, shot
from page_stack import ADMIN, Stack, served, stack

from popi.serving.app import Gateway
from popi.serving.pages.login import CALLBACK
from popi.serving.pages.settings import OidcSettings, PageSettings
from popi.serving.proxy.settings import ProxySettings
from popi.serving.server import free_port, listens
from popi.serving.settings import GatewaySettings
from popi.serving.store import audit
from popi.serving.store.database import Database

pytest.importorskip("oidc_provider_mock", reason="oidc-provider-mock is not installed: no test with an OpenID provider")
pytest.importorskip("authlib", reason="authlib is not installed")

USERS = [
    {"sub": "anna", "email": "anna@team.example", "groups": ["staff", "popi-admins"]},
    {"sub": "otto", "email": "otto@team.example", "groups": ["popi-readers"]},
    {"sub": "eve", "email": "eve@elsewhere.example", "groups": ["staff"]},
]


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    port = free_port()
    claims = [word for one in USERS for word in ("--user-claims", json.dumps(one))]
    # `localhost`, while the gateway is at 127.0.0.1: another site, as in production.
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce", "true", *claims]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 60
        while not listens(port):
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.05)
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def tea(issuer: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A gateway whose settings need its URL, which is known only once it is listening."""
    oidc = OidcSettings(
        issuer=issuer,
        client_id="popi",
        client_secret_env="POPI_TEST_OIDC_SECRET",
        admins=("popi-admins",),
        viewers=("popi-readers",),
    )
    os.environ["POPI_TEST_OIDC_SECRET"] = "the-gateways-own"
    with stack(tmp_path_factory.mktemp("oidc"), url="http://127.0.0.1:1", model=None, oidc=oidc) as running:
        provider = running.gateway.pages._sessions.oidc
        assert provider is not None
        provider._redirect = provider._client.redirect_uri = running.url + CALLBACK
        running.say("ada", "i cook at home for two")
        running.settled("ada")
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


def sign_in(page: Any, tea: Stack, who: str) -> None:
    page.goto(f"{tea.url}/admin")
    page.get_by_role("link", name="Sign in with your organisation").click()
    with page.expect_navigation():
        page.get_by_role("button", name=who, exact=True).click()


@needs_chromium
def test_an_admin_signs_in_and_changes_something(browser: Any, tea: Stack) -> None:
    page = new_page(browser)
    page.goto(f"{tea.url}/admin")
    accessible(page)
    shot(page, "admin-sign-in")
    sign_in(page, tea, "anna")
    page.get_by_role("heading", name="Users").wait_for()
    assert page.url == f"{tea.url}/admin"
    page.goto(f"{tea.url}/admin/users/shop/ada")
    page.get_by_label("Your sentence").fill("Has a teapot.")
    press(page, page, "Add")
    assert "Has a teapot." in tea.summary("ada")["text"]
    changed = [one for one in tea.gateway.store.database.read(audit.list_entries) if one.action == "edit_summary"]
    assert [(one.actor, one.role, one.user_id) for one in changed] == [("oidc:anna@team.example", "admin", "ada")]
    page.goto(f"{tea.url}/admin")
    press(page, page, "Sign out")
    page.goto(f"{tea.url}/admin")
    assert page.get_by_role("link", name="Sign in with your organisation").is_visible()


@needs_chromium
def test_a_viewer_reads_everything_and_changes_nothing(browser: Any, tea: Stack) -> None:
    page = new_page(browser)
    sign_in(page, tea, "otto")
    page.get_by_role("heading", name="Users").wait_for()
    for path in ("tenants", "renewals", "activity"):
        assert page.goto(f"{tea.url}/admin/{path}").status == 200
    page.goto(f"{tea.url}/admin/users/shop/ada")
    before = tea.summary("ada")
    page.get_by_label("Your sentence").fill("Has a samovar.")
    press(page, page, "Add")
    assert page.get_by_role("heading", name="You may look, but change nothing").is_visible()
    accessible(page)
    assert tea.summary("ada") == before
    page.goto(f"{tea.url}/admin")
    press(page, page, "Sign out")
    assert page.get_by_role("heading", name="Goodbye").is_visible()


@needs_chromium
def test_who_has_no_role_or_says_no_does_not_get_in(browser: Any, tea: Stack) -> None:
    page = new_page(browser)
    sign_in(page, tea, "eve")
    assert page.get_by_role("heading", name="You have no role here").is_visible()
    accessible(page)
    page.goto(f"{tea.url}/admin")
    page.get_by_role("link", name="Sign in with your organisation").click()
    with page.expect_navigation():
        page.get_by_role("button", name="Deny").click()
    assert page.get_by_role("heading", name="You are not signed in").is_visible()
    page.goto(f"{tea.url}/admin")
    assert page.get_by_label("Admin key").is_visible()  # the key still works


# -- without a browser: tampering by an attacker ---------------------------------------------------------------------


def begun(tea: Stack) -> tuple[httpx2.Client, str]:
    """A client that has started a sign-in, and the URL it was redirected to."""
    client = httpx2.Client(base_url=tea.url)
    reply = client.get("/admin/oidc")
    assert reply.status_code == 303, reply.text
    return client, reply.headers["location"]


def come_back(url: str, who: str = "anna") -> str:
    """The URL that the provider redirects a browser back to."""
    reply = httpx2.post(url, data={"sub": who})
    assert reply.status_code in (302, 303), reply.text
    return str(reply.headers["location"])


def test_what_goes_to_the_provider(tea: Stack) -> None:
    client, url = begun(tea)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert asked["code_challenge_method"] == "S256" and len(asked["code_challenge"]) == 43
    assert asked["response_type"] == "code" and asked["scope"] == "openid email profile"
    assert len(asked["state"]) >= 32 and len(asked["nonce"]) >= 32 and asked["redirect_uri"] == tea.url + CALLBACK
    cookie = client.get("/admin/oidc").headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and f"Path={CALLBACK}" in cookie


def test_a_sign_in_counts_once_and_in_its_own_browser(tea: Stack) -> None:
    client, url = begun(tea)
    back = come_back(url)
    assert httpx2.get(back).status_code == 403  # another browser, without a sign-in in progress
    other, _ = begun(tea)
    assert other.get(back).status_code == 403  # one with another sign-in: the state does not match
    done = client.get(back)
    assert done.status_code == 200 and "popi_admin=" in done.headers["set-cookie"]
    assert "SameSite=strict" in done.headers["set-cookie"]
    assert client.get(back).status_code == 403  # the provider accepts a code once, and the cookie is gone


@pytest.mark.parametrize("wrong", ["state", "code"])
def test_a_changed_answer_is_refused(tea: Stack, wrong: str) -> None:
    client, url = begun(tea)
    back = urlsplit(come_back(url))
    query = {name: values[0] for name, values in parse_qs(back.query).items()} | {wrong: "x"}
    reply = client.get(f"{back.path}?{urlencode(query)}")
    assert reply.status_code == 403 and "popi_admin" not in reply.headers.get("set-cookie", "")


@pytest.mark.parametrize("part", [0, 1])
def test_a_changed_cookie_is_refused(tea: Stack, part: int) -> None:
    client, url = begun(tea)
    parts = client.cookies["popi_login"].strip('"').split(".")
    parts[part] = parts[part][:-2] + ("AA" if parts[part][-2:] != "AA" else "BB")
    reply = httpx2.get(come_back(url), cookies={"popi_login": ".".join(parts)})
    assert reply.status_code == 403


def test_another_nonce_than_the_one_asked_with_is_refused(tea: Stack) -> None:
    client, url = begun(tea)
    changed = re.sub(r"nonce=[^&]+", "nonce=" + "x" * 43, url)
    assert client.get(come_back(changed)).status_code == 403
    assert client.get(come_back(url)).status_code == 200


def test_the_code_goes_with_the_verifier_of_its_challenge(tea: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked in transit, since this provider does not check it."""
    provider = tea.gateway.pages._sessions.oidc
    assert provider is not None
    sent, ask = [], provider._request

    async def asked(method: str, url: str, headers: Any = (), body: bytes | None = None) -> dict[str, Any]:
        sent.append(body)
        return await ask(method, url, headers, body)

    monkeypatch.setattr(provider, "_request", asked)
    client, url = begun(tea)
    assert client.get(come_back(url)).status_code == 200
    (form,) = [parse_qs(body.decode()) for body in sent if body is not None]
    challenge = base64.urlsafe_b64encode(sha256(form["code_verifier"][0].encode()).digest()).decode().rstrip("=")
    assert parse_qs(urlsplit(url).query)["code_challenge"] == [challenge]
    assert "client_secret" not in form  # it goes in a header


def test_a_provider_that_is_not_there_leaves_the_key(tmp_path: Path) -> None:
    oidc = OidcSettings(issuer="http://127.0.0.1:9", client_id="popi", admins=("x",))
    page = PageSettings(url="http://127.0.0.1:1", oidc=oidc)
    settings = GatewaySettings(proxy=ProxySettings(upstream="http://127.0.0.1:9"), page=page)
    with served(Gateway(Database.open(f"sqlite:///{tmp_path}/popi.db"), settings, admin_key=ADMIN)) as url:
        reply = httpx2.get(f"{url}/admin/oidc")
        assert reply.status_code == 403 and "You are not signed in" in reply.text
        assert httpx2.get(f"{url}{CALLBACK}?code=x&state=y").status_code == 403
        assert httpx2.post(f"{url}/admin/sign-in", data={"key": ADMIN}).status_code == 303
