"""`[page.oidc]`: what is refused at the start, and that nothing of it is loaded where it is not set."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from popi.config.http import HttpConfig
from popi.errors import ConfigError
from popi.serving.pages.app import _oidc
from popi.serving.pages.settings import OidcSettings, PageSettings
from popi.serving.settings import read

GOOD: dict[str, Any] = {"issuer": "https://login.example", "client_id": "popi", "admins": ["a"]}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"issuer": "login.example"}, "login.example"),
        ({"client_id": " "}, "client_id"),
        ({"scopes": ["email"]}, "openid"),
        ({"admins": []}, "nobody can sign in"),
        ({"secret": "x"}, "secret"),
    ],
)
def test_what_is_wrong_is_said_at_the_start(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    file = tmp_path / "gateway.toml"
    lines = [f"{name} = {value!r}" for name, value in (GOOD | changed).items()]
    file.write_text('[page]\nurl = "https://chat.example"\n[page.oidc]\n' + "\n".join(lines))
    with pytest.raises(ConfigError, match=named):
        read(file, upstream="http://127.0.0.1:9")


def test_it_needs_the_gateways_own_address() -> None:
    with pytest.raises(ConfigError, match="oidc needs url"):
        PageSettings(oidc=OidcSettings(**GOOD))


def test_a_secret_that_is_not_set_is_missed_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("authlib", reason="authlib is not installed")
    monkeypatch.delenv("POPI_OIDC_SECRET", raising=False)
    page = PageSettings(url="https://chat.example", oidc=OidcSettings(**GOOD, client_secret_env="POPI_OIDC_SECRET"))
    with pytest.raises(ConfigError, match="POPI_OIDC_SECRET is not set"):
        _oidc(page, HttpConfig())


def test_without_it_authlib_is_not_loaded_and_with_it_it_is_asked_for() -> None:
    code = """
import sys
sys.modules["authlib"] = None  # as if it were not installed
from popi.config.http import HttpConfig
from popi.errors import ConfigError
from popi.serving.pages.app import _oidc
from popi.serving.pages.settings import OidcSettings, PageSettings
page = PageSettings(url="https://chat.example", oidc=OidcSettings(issuer="https://a.b", client_id="c", admins=("a",)))
try:
    _oidc(page, HttpConfig())
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'popi[serve]'" in done.stdout
