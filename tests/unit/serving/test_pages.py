"""What docs/serving.md, docs/gateway_proxy.md and docs/profiles.md say is what the code takes."""

import re
from pathlib import Path

import pytest

import popi
from popi.config.http import HttpConfig
from popi.profiles.requests import Feedback
from popi.serving.proxy.settings import JwtSettings, ProxySettings, UpstreamSettings
from popi.serving.settings import ServerSettings, read

DOCS = Path(__file__).parents[3] / "docs"
PAGES = ("serving.md", "gateway_proxy.md")
SOURCE = "\n".join(file.read_text(encoding="utf-8") for file in (Path(popi.__file__).parent / "serving").rglob("*.py"))


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_settings_are_good_files(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", text(page), re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "gateway.toml").write_text(block, encoding="utf-8")
        upstream = None if "[[proxy.upstreams]]" in block else "http://127.0.0.1:9"
        found = read(tmp_path / "gateway.toml", upstream=upstream)
        assert found != read(None, upstream="http://127.0.0.1:9")


def test_examples_of_profiles_are_good_files_and_bodies(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", text("profiles.md"), re.DOTALL)
    (tmp_path / "gateway.toml").write_text("\n".join(blocks), encoding="utf-8")
    settings = read(tmp_path / "gateway.toml", upstream="http://127.0.0.1:9")
    assert settings.page.name == "Teahouse" and settings.capture.tenants == ("shop",)
    bodies = re.findall(r'^\| `(\{"answer".*?\})`', text("profiles.md"), re.MULTILINE)
    assert len(bodies) == 4
    for body in bodies:
        Feedback.model_validate_json(body)


@pytest.mark.parametrize("page", PAGES)
def test_headers_and_numbers_are_those_of_the_code(page: str) -> None:
    named = set(re.findall(r"`((?:x-popi|x-litellm|X-OpenWebUI)-[\w-]+)", text(page)))
    assert len(named) > 4
    unknown = {name for name in named if name.lower().rstrip("-") not in SOURCE.lower()}
    assert unknown == set()
    counted = set(re.findall(r"`(popi_\w+?)(?:_total)?`", text(page)))
    assert {name for name in counted if f'"{name}"' not in SOURCE} == set()


def test_every_header_of_ours_is_told() -> None:
    ours = {name.rstrip("-") for name in re.findall(r'b?"(x-popi-[a-z-]+)"', SOURCE)}
    assert {name for name in ours if name not in text("gateway_proxy.md")} == set()


def test_settings_that_are_named_are_there() -> None:
    tables = (ProxySettings, JwtSettings, UpstreamSettings, ServerSettings, HttpConfig)
    fields = {name for table in tables for name in table.model_fields}
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", text("gateway_proxy.md")))
    others = {"safety_identifier", "cache_control", "upstream_unreachable", "upstream_broken", "upstream_timeout"}
    others |= {"upstream_certificate", "upstream_proxy", "x_popi_user"}
    others |= {"previous_response_id", "extra_headers", "default_headers", "model_kwargs"}  # of APIs and their clients
    others |= {*re.findall(r'Refusal\(\s*\d{3},\s*"(\w+)"', SOURCE)}
    metrics = {name for name in named if name.startswith("popi_")}  # see above
    assert named - fields - others - metrics == set() and {"ids_upstream", "upstream_auth", "identity_fields"} <= named
