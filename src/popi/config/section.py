"""The base class of all config sections, and field types that several of them use."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, get_args

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


def no_such_setting(root: type[BaseModel], path: tuple[str | int, ...]) -> str:
    """What to do about an unknown setting at `path` in a `root`: its new name if it was renamed (`renamed` of its
    section), otherwise the allowed ones."""
    section: Any = root
    for part in path[:-1]:
        if isinstance(part, int):  # index into a list of sections
            section = next(iter(get_args(section)), None)
        else:
            field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
            section = field.annotation if field else None
    renamed: Mapping[str, str] = getattr(section, "renamed", {})
    if (new := renamed.get(str(path[-1]))) is not None:
        return f"no such setting; it is now called {new}"
    allowed = ", ".join(section.model_fields) if hasattr(section, "model_fields") else "nothing"
    return f"no such setting; allowed here: {allowed}"


class Section(BaseModel):
    """A table of settings.

    Attributes:
        renamed: old name → new name of settings, for the error about an old one.
    """

    renamed: ClassVar[Mapping[str, str]] = {}
    # Strict: `seed = true` or `steps = "3"` is a mistake to report, not a number to guess.
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, frozen=True, strict=True, allow_inf_nan=False
    )
