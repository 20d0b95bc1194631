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
        quiet_s = 5
        max_wait_s = 60.5
        max_attempts = 3
        """,
    )
    found = read(file, upstream="http://other:1")
    assert found.proxy.upstream == "http://other:1" and found.proxy.identity_headers == ("x-my-user",)
    assert found.proxy.jwt is not None and found.proxy.jwt.claim == "email"
    assert (found.debounce.quiet_s, found.debounce.max_wait_s, found.renewal.max_attempts) == (5, 60.5, 3)


HOOK = "[[webhooks]]\nname = 'crm'\nurl = 'http://10.0.0.1/hook'\nsecret_env = 'HOOK'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "no such table 'x'.*\\[proxy\\], .*\\[audit\\], \\[\\[webhooks\\]\\]"),
        ("[webhooks]\nname = 'crm'", "no such table 'webhooks'; .*\\[\\[webhooks\\]\\]"),
        (HOOK + "events = []", "events.*at least 1 item"),
        (HOOK + "events = ['summary.red']", "summary.changed"),
        (HOOK + "retry_hours = 100", "less than or equal to 72"),
        (HOOK + HOOK, "the name 'crm' is used twice"),
        (HOOK.replace("http:", "ftp:"), "URL of the webhook must begin with"),
        ("[capture]\ntenant = ['a']", "tenant: no such setting.*tenants"),
        ("[capture]\ntenants = 'shop'", "capture.tenants.*valid tuple.*'shop'"),
        ("[capture]\nretention_hours = 0", "capture.retention_hours.*greater than 0; got 0"),
        ("[capture]\nretention_hours = true", "capture.retention_hours.*valid number.*True"),
        ("[page]\nname = ' '", "page.name.*match pattern"),
        ("[page]\nlink_minutes = '3'", "page.link_minutes.*valid number.*got '3'"),
        ("[page]\nlink_minutes = 61", "less than or equal to 60; got 61"),
        ("[page]\nurl = 'chat'", "chat"),
        ("[page]\nprotocol = 'x'", "'openai' or 'anthropic'.*got 'x'"),
        ("[proxi]", "'proxi'"),
        ("[renewal]\nquite = 3", "quite: no such setting.*quiet"),
        ("[renewal]\nquiet_s = '3'", "renewal.quiet_s.*valid number.*got '3'"),
        ("[renewal]\nquiet_s = -1", "got -1"),
        ("[[proxy.upstreams]]\nname = 'a'\nurl = 'http://a'", "either upstream .--upstream. or .*tables"),
        ("[renewal]\nmax_attempts = 1.5", "renewal.max_attempts.*valid integer.*got 1.5"),
        ("[renewal]\nmin_signals = 2.5", "min_signals.*valid integer"),
        ("[renewal]\nmin_signals = 0", "min_signals.*greater than or equal to 1; got 0"),
        ("[renewal]\nlease_s = 0.5", "renewal.lease_s.*greater than or equal to 1"),
        ("[renewal]\ntries = 3", "renewal.tries: no such setting; it is now called max_attempts"),
        ("[http]\nsilence_s = 3", "http.silence_s: no such setting; it is now called read_timeout_s"),
        ("[http]\nsilence = 3", "http.silence: no such setting; allowed here: .*read_timeout_s"),
        (HOOK + "hours = 3", "hours: no such setting; it is now called retry_hours"),
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
