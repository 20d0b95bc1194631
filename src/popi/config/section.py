"""The base class of all config sections, and field types that several of them use."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _folder_name(value: str) -> str:
    if value in ("", ".", "..") or "/" in value or "\\" in value or not value.isprintable():
        raise ValueError("must be the name of a single folder, without slashes; set `root` for its parent folder")
    return value


def _variable_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("must be the name of an environment variable, which holds the key; not the key itself")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]
VariableName = Annotated[str, AfterValidator(_variable_name)]
Filled = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    # Strict: `seed = true` or `steps = "3"` is a mistake to report, not a number to guess.
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, frozen=True, strict=True, allow_inf_nan=False
    )
