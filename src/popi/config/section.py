"""What every section of the settings is, and the kinds of text that several have."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _folder_name(value: str) -> str:
    if value in ("", ".", "..") or "/" in value or "\\" in value or not value.isprintable():
        raise ValueError("must be the name of one folder, without slashes; where runs live is said by `root`")
    return value


FolderName = Annotated[str, AfterValidator(_folder_name)]
Filled = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    # Strict: `seed = true` or `steps = "3"` is a mistake to be named, not a number to be guessed.
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, frozen=True, strict=True, allow_inf_nan=False
    )
