"""One description of a model, wherever one is named."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from popi.config import ApiGeneratorConfig, resolve
from popi.errors import ConfigError, ModelError
from popi.evaluation.grid.settings import GridGenerator, GridJudge
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.models.local.model import LocalModel
from popi.models.remote.api import ApiModel
from popi.models.remote.retries import Retries
from popi.models.remote.usage import Prices
from popi.models.spec import NANO, ModelSpec, model_path
from popi.serving.worker.inference import InferenceSettings

SERVER = "https://example.org/v1"


def test_it_can_say_all_that_a_backend_takes() -> None:
    said = {one.name for one in fields(ModelSpec)} | {"self", "name_or_path", "model"}
    for takes in (LocalModel.load, ApiModel.connect):
        assert set(inspect.signature(takes).parameters) <= said


def test_a_local_model_is_loaded_as_it_says(tiny_base: Path) -> None:
    spec = ModelSpec(str(tiny_base), dtype="bfloat16", device="cpu")
    local = spec.load().local
    assert str(local.model.dtype) == "torch.bfloat16" and spec.label == str(tiny_base)
    assert Generator.from_spec(spec).templates.name == "nano", "the set that it was saved with"
    assert InferenceModel.from_spec(spec, max_tokens=7).max_tokens == 7
    with pytest.raises(ConfigError, match="is not behind an API"):
        spec.connect()
    assert model_path("nano") == str(NANO)


def test_a_model_behind_an_api_is_asked_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "secret")
    prices = Prices(1, 2)
    spec = ModelSpec("m", url=SERVER, key_env="KEY", concurrency=3, extra={"top_p": 0.5}, prices=prices, total_s=4.0)
    api = spec.connect()
    assert (api.name, api.extra, api.usage.prices) == ("m", {"top_p": 0.5}, prices)
    assert (api.upstream.concurrency, api.upstream.total_s) == (3, 4.0)
    assert spec.label == f"m at {SERVER}"
    generator = Generator.from_spec(spec)
    assert not generator.trainable and generator.templates.name == "default"
    with pytest.raises(ModelError, match="m: is behind an API"):
        generator.prompt_ids("hello", None)
    with pytest.raises(ConfigError, match="protocol='openai'"):
        _ = Generator.from_api(SERVER, "m", "anthropic").scorer


def test_every_place_that_names_a_model_describes_it_so() -> None:
    run = resolve({"model": {"base": "base", "dtype": "float32", "device": "cpu", "attn_implementation": "eager"}})
    local = ModelSpec("base", dtype="float32", device="cpu", attn_implementation="eager")
    assert ModelSpec.of(run) == local
    assert ModelSpec.of(run, Path("phases/one")).name == "phases/one"
    api = ApiGeneratorConfig(url=SERVER, name="m", key_env="KEY")
    asked = ModelSpec("m", url=SERVER, key_env="KEY", concurrency=32, retries=Retries(5))
    assert ModelSpec.of_api(api) == asked
    assert ModelSpec.of_api(api.model_copy(update={"retries": 25})).retries == Retries(25)
    with pytest.raises(ConfigError, match="needs both url and name"):
        ModelSpec.of_api(ApiGeneratorConfig(url=SERVER))
    grid = {"model": "m", "url": SERVER, "key_env": "KEY", "concurrency": 32}
    fields_ = {"extra": {"top_p": 1}, "omit": ["temperature"], "input_price": 1.0, "output_price": 2.0}
    more = {"extra": {"top_p": 1, "temperature": None}, "prices": Prices(1.0, 2.0)}
    described = ModelSpec("m", url=SERVER, key_env="KEY", concurrency=32, **more)  # type: ignore[arg-type]
    assert GridGenerator(name="g", **grid, **fields_).spec == described  # type: ignore[arg-type]
    assert GridJudge(name="j", **grid, **fields_).spec_of("m") == described  # type: ignore[arg-type]
    assert GridGenerator(name="g", model="base", chat_template="x").spec == ModelSpec("base", chat_template="x")
    written = InferenceSettings(url=SERVER, model="m", structured=False).connect(concurrency=5)
    assert written.backend.name == "m" and not written.backend.trainable
