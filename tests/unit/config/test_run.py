import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from popi.config import RunConfig, load_config, resolve
from popi.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[3] / "configs").glob("*.toml"))
CONFIGS = [path for path in SHIPPED if "[[benchmarks]]" not in path.read_text()]  # the others are grids


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [field.annotation for field in model.model_fields.values()]
    nested = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [model, *(found for kind in nested for found in sections(kind))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load_config(path).name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_name_the_loss_that_they_train_with(path: Path) -> None:
    """A default that changes must not change them."""
    named = tomllib.loads(path.read_text())["training"].get("generator", {})
    assert {"loss", "beta"} <= named.keys() or set(load_config(path).training.orders) == {"plug_and_play"}
    if path.stem.partition("_")[0] in ("alignx", "elix", "review", "roleplay"):
        assert (named["loss"], named["beta"]) == ("dpo", 0.01), "as the paper's authors released it"


def test_each_loss_has_a_beta_of_its_own() -> None:
    def beta(**generator: object) -> float:
        return resolve({"training": {"generator": generator}}).training.generator.beta

    assert RunConfig().training.generator.loss == "ipo" and RunConfig().training.generator.beta == 0.04
    assert (beta(), beta(loss="ipo"), beta(loss="dpo"), beta(loss="dpo", beta=0.3)) == (0.04, 0.04, 0.1, 0.3)
    saved = resolve({"training": {"generator": {"loss": "dpo"}}}).model_dump(mode="json")
    assert saved["training"]["generator"]["beta"] == 0.1, "a run's config.json says it"


def test_no_more_steps_of_the_generator_than_there_are() -> None:
    with pytest.raises(ConfigError, match="joint_generator_steps = 9 exceeds joint_steps = 6"):
        resolve({"training": {"joint_steps": 6, "joint_generator_steps": 9}})


@pytest.mark.parametrize("section", sections(RunConfig), ids=lambda section: section.__name__)
def test_every_setting_is_documented(section: type[BaseModel]) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []


def test_how_often_requests_are_repeated_is_no_setting_that_results_depend_on() -> None:
    config = resolve({"model": {"api_generator": {"url": "http://h", "name": "m", "retries": 25}}})
    whole = config.model_dump(mode="json", include={"model", "seed"})
    del whole["model"]["api_generator"]["retries"]
    assert config.settings("model", "seed") == whole
