"""The options of `popi infer --engine ray`. What it does: tests/unit/population."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from popi.cli import app
from popi.cli.population import PopulationOptions
from popi.errors import ConfigError

MODEL = ["--model", "nano"]


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.jsonl"
    path.write_text(json.dumps({"user_id": "a", "signals": []}) + "\n")
    return path


def refused(*command: Any) -> str:
    done = CliRunner().invoke(app, ["infer", *map(str, command)])
    assert done.exit_code != 0
    return " ".join(f"{done.output} {done.exception or ''}".replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", 3, "--shard-users", 5], "--workers, --shard-users: only with --engine ray"),
        (["--engine", "ray"], "name it with --out"),
        (["--engine", "ray", "--out", "x", "--workers", "4-2"], "such as 2-16; got '4-2'"),
        (["--engine", "ray", "--out", "x", "--workers", "0"], "such as 2-16; got '0'"),
        (["--engine", "ray", "--out", "x", "--out-format", "csv"], "csv"),
    ],
)
def test_options_that_do_not_fit_are_refused(users: Path, options: list[Any], words: str) -> None:
    pytest.importorskip("numpy")
    assert words in refused(users, *MODEL, *options)


def test_a_pool_is_a_number_or_a_range() -> None:
    def pool(workers: str | None) -> Any:
        return PopulationOptions(None, workers, None, None, None, None).pool

    assert [pool(text) for text in (None, "8", "2-16")] == [None, (8, 8), (2, 16)]


def test_without_ray_the_message_says_what_to_install(
    users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numpy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None if name == "ray" else True)
    message = refused(users, "--engine", "ray", "--api", "https://a", "--api-model", "m", "--out", tmp_path / "out")
    assert "pip install 'popi[ray]'" in message and not (tmp_path / "out").exists()


def test_rays_client_is_refused() -> None:
    pytest.importorskip("ray")
    from popi.population.ray_engine import RayEngine

    with pytest.raises(ConfigError, match="--address auto"):
        RayEngine("ray://host:10001")
