"""In which template set a run's prompts are made, a generator behind an API included."""

import json
from pathlib import Path

import pytest

from popi.config import ApiGeneratorConfig, RunConfig, resolve
from popi.evaluation.models import Models
from popi.models.spec import ModelSpec
from popi.training.components import load_components
from popi.training.templates import template_of

SERVER = {"url": "http://127.0.0.1:9/v1", "name": "org/other"}


def config(base: str | Path = "nano", **settings: object) -> RunConfig:
    return resolve({"model": {"base": str(base), "device": "cpu"}, **settings})


def test_auto_is_the_set_that_the_base_was_saved_with(tmp_path: Path) -> None:
    assert template_of(config()) == "nano"
    assert template_of(config(tmp_path)) == "default"
    (tmp_path / "popi.json").write_text(json.dumps({"template": "elix"}))
    assert template_of(config(tmp_path)) == "elix"
    assert template_of(config(tmp_path, signals={"template": "default"})) == "default"
    assert template_of(config(tmp_path / "other", data={"source": "elix"})) == "elix"


@pytest.mark.parametrize(("asked", "expected"), [("auto", "nano"), ("default", "default")])
def test_another_generator_behind_an_api_is_asked_in_the_runs_own_set(asked: str, expected: str) -> None:
    """It was asked in `default`: the oracle then had 0.539 where it has 0.986."""
    other = ModelSpec.of_api(ApiGeneratorConfig(**SERVER), asked)
    models = Models(config(), {}, other)
    assert models.generator(models.untrained).templates.name == expected
    told = models.describe("oracle").get("templates")
    assert told == (None if expected == "default" else expected)  # rows made under another set are not reused


def test_so_is_the_generator_of_a_run(tiny_base: Path) -> None:
    run = resolve({"model": {"base": str(tiny_base), "device": "cpu", "api_generator": SERVER}})
    assert Models(run, {}).generator(Models(run, {}).untrained).templates.name == "nano"
    assert load_components(run, {"inference_model"}, None, None).generator.templates.name == "nano"
