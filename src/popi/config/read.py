"""Read a `RunConfig` from files and command-line overrides, with readable errors."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from popi.config.run import RunConfig
from popi.config.section import no_such_setting
from popi.errors import ConfigError


def _set_dotted(tree: dict[str, Any], override: str, root: type[BaseModel]) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r} does not have the form section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a setting, not a section")
    kind = _annotation(key.split("."), root)
    if not raw.strip() and (last in tree or kind is not Any):
        tree.pop(last, None)  # TOML has no null: an empty value removes the setting, so that its default applies
    else:
        tree[last] = _value(raw, kind)


def _annotation(path: list[str], root: type[BaseModel]) -> Any:
    """The type of the setting at `path`; Any if there is no such setting."""
    kind: Any = root
    for part in path:
        field = kind.model_fields.get(part) if hasattr(kind, "model_fields") else None
        if field is None:
            return Any
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return kind


def _value(raw: str, kind: Any) -> Any:
    """Parse `raw` for a setting of type `kind`: TOML, or text without quotes, or a list without brackets."""
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw  # a bare word is a string: run names and paths need no quotes
    if _fits(value, kind):
        return value
    if not isinstance(value, str | list | dict) and _fits(raw, kind):  # name=2026
        return raw
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    is_list = any(get_origin(option) is list for option in (bare, *get_args(bare)))
    return raw.split(",") if is_list and value == raw else value


def _fits(value: Any, kind: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def explain(error: ValidationError, source: str, root: type[BaseModel]) -> ConfigError:
    """One error that lists every wrong key, type or value found while validating a `root`."""
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{name}: {no_such_setting(root, item['loc'])}")
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            # A message about incompatible settings names their values; printing the whole section would drown it.
            is_section = item["type"] in ("value_error", "missing") and isinstance(item["input"], dict)
            # Instead of the variable's name somebody may have given the key itself.
            hidden = is_section or name.endswith("key_env")
            lines.append(f"{name}: {message}".removeprefix(": ") + ("" if hidden else f"; got {item['input']!r}"))
    return ConfigError(f"{source}:\n  " + "\n  ".join(lines))


def resolve(tree: dict[str, Any], source: str = "config") -> RunConfig:
    """Validate a plain dictionary. Raises ConfigError listing each wrong key, type or value."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, source, RunConfig) from None


def load_config(
    path: str | Path | None, overrides: list[str] | None = None, *, tree: dict[str, Any] | None = None
) -> RunConfig:
    """Read a TOML (or a run's saved JSON) config, or start from `tree`, and apply `section.key=value` overrides.

    Raises:
        ConfigError: if the file can't be read, or a key, type or value is wrong.
    """
    tree = read_tree(path, overrides) if path is not None else set_all(tree or {}, overrides, RunConfig)
    return resolve(tree, source=str(path or "config"))


def read_tree(
    path: str | Path, overrides: list[str] | None = None, root: type[BaseModel] = RunConfig
) -> dict[str, Any]:
    """The tables of a TOML or JSON file that describes a `root`, with `section.key=value` overrides applied.

    Raises:
        ConfigError: if the file can't be read, or an override is malformed.
    """
    path = Path(path)
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        tree = parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        hint = "; settings come after the file: configs/nano.toml " + str(path) if "=" in path.name else ""
        raise ConfigError(f"{path}: can't be read ({error.strerror or error}){hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:  # what either parser may raise
        raise ConfigError(f"{path}: not valid {kind}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a table of settings; got {type(tree).__name__}")
    return set_all(tree, overrides, root)


def set_all(tree: dict[str, Any], overrides: list[str] | None, root: type[BaseModel]) -> dict[str, Any]:
    """Apply `section.key=value` overrides to the tree and return it; each value is parsed for its setting's type."""
    for override in overrides or []:
        _set_dotted(tree, override, root)
    return tree
