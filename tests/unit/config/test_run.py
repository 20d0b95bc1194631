from pathlib import Path

import pytest
from pydantic import BaseModel

from popi.config import RunConfig, load_config

SHIPPED = sorted((Path(__file__).parents[3] / "configs").glob("*.toml"))
CONFIGS = [path for path in SHIPPED if "[[benchmarks]]" not in path.read_text()]  # the others are grids


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [field.annotation for field in model.model_fields.values()]
    nested = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [model, *(found for kind in nested for found in sections(kind))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load_config(path).name


@pytest.mark.parametrize("section", sections(RunConfig), ids=lambda section: section.__name__)
def test_every_setting_is_documented(section: type[BaseModel]) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []
