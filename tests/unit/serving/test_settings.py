from pathlib import Path

import pytest

from popi.errors import ConfigError
from popi.serving.settings import read


def write(folder: Path, text: str) -> Path:
    (folder / "gateway.toml").write_text(text)
    return folder / "gateway.toml"


def test_a_file_with_everything(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [proxy]
        upstream = "http://localhost:8000/v1"
        identity_headers = ["X-My-User"]
        jwt = { jwks_url = "https://issuer.example/keys", claim = "email", algorithms = ["RS256"] }
        [renewal]
        quiet = 5
        longest = 60.5
        tries = 3
        """,
    )
    found = read(file, upstream="http://other:1")
    assert found.proxy.upstream == "http://other:1" and found.proxy.identity_headers == ("x-my-user",)
    assert found.proxy.jwt is not None and found.proxy.jwt.claim == "email"
    assert (found.debounce.quiet, found.debounce.longest, found.renewal.tries) == (5, 60.5, 3)


HOOK = "[[webhooks]]\nname = 'crm'\nurl = 'http://10.0.0.1/hook'\nsecret_env = 'HOOK'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "no such table 'x'.*\\[proxy\\], .*\\[audit\\], \\[\\[webhooks\\]\\]"),
        ("[webhooks]\nname = 'crm'", "no such table 'webhooks'; .*\\[\\[webhooks\\]\\]"),
        (HOOK + "events = []", "events.*at least 1 item"),
        (HOOK + "events = ['summary.red']", "summary.changed"),
        (HOOK + "hours = 100", "less than or equal to 72"),
        (HOOK + HOOK, "the name 'crm' is used twice"),
        (HOOK.replace("http:", "ftp:"), "URL of the webhook must begin with"),
        ("[capture]\ntenant = ['a']", "tenant: no such setting.*tenants"),
        ("[capture]\ntenants = 'shop'", "capture.tenants.*valid tuple.*'shop'"),
        ("[capture]\nhours = 0", "capture.hours.*greater than 0; got 0"),
        ("[capture]\nhours = true", "capture.hours.*valid number.*True"),
        ("[page]\nname = ' '", "page.name.*match pattern"),
        ("[page]\nlink_minutes = '3'", "page.link_minutes.*valid number.*got '3'"),
        ("[page]\nlink_minutes = 61", "less than or equal to 60; got 61"),
        ("[page]\nurl = 'chat'", "chat"),
        ("[page]\nprotocol = 'x'", "'openai' or 'anthropic'.*got 'x'"),
        ("[proxi]", "'proxi'"),
        ("[renewal]\nquite = 3", "quite: no such setting.*quiet"),
        ("[renewal]\nquiet = '3'", "renewal.quiet.*valid number.*got '3'"),
        ("[renewal]\nquiet = -1", "got -1"),
        ("[[proxy.upstreams]]\nname = 'a'\nurl = 'http://a'", "either upstream .--upstream. or .*tables"),
        ("[renewal]\ntries = 1.5", "renewal.tries.*valid integer.*got 1.5"),
        ("[renewal]\nleast_signals = 2.5", "least_signals.*valid integer"),
        ("[renewal]\nleast_signals = 0", "least_signals.*greater than or equal to 1; got 0"),
        ("[renewal]\nlease = 0.5", "renewal.lease.*greater than or equal to 1"),
        ("[", "not valid TOML"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(write(tmp_path, text), upstream="http://127.0.0.1:9")


def test_the_proxys_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="issuers: no such setting; allowed here: .*issuer"):
        read(write(tmp_path, "[proxy]\nupstream = 'http://a'\njwt = { jwks_url = 'https://a', issuers = 'b' }"))
    with pytest.raises(ConfigError, match="upstreem"):
        read(write(tmp_path, "[proxy]\nupstream = 'http://a'\nupstreem = 'http://a'"))
    with pytest.raises(ConfigError, match="--upstream"):
        read(None)
    with pytest.raises(ConfigError, match="can't be read"):
        read(tmp_path / "nothing.toml")
