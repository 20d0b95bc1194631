"""From files and command-line overrides to a `RunConfig`, and what is wrong with them in words."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from popi.config.run import RunConfig
from popi.errors import ConfigError


def _set_dotted(tree: dict[str, Any], override: str, root: type[BaseModel]) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a setting, not a section")
    kind = _annotation(key.split("."), root)
    if not raw.strip() and (last in tree or kind is not Any):
        tree.pop(last, None)  # TOML has no null: an empty value takes the setting out, and its default applies
    else:
        tree[last] = _value(raw, kind)


def _annotation(path: list[str], root: type[BaseModel]) -> Any:
    """The type of the setting at `path`; Any where there is none."""
    kind: Any = root
    for part in path:
        field = kind.model_fields.get(part) if hasattr(kind, "model_fields") else None
        if field is None:
            return Any
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return kind


def _value(raw: str, kind: Any) -> Any:
    """What `raw` means where a `kind` is due: TOML, or text without quotes, or a list without brackets."""
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw  # a bare word is a string: run names and paths need no quotes
    if _fits(value, kind):
        return value
    if not isinstance(value, str | list | dict) and _fits(raw, kind):  # name=2026
        return raw
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    a_list = any(get_origin(one) is list for one in (bare, *get_args(bare)))
    return raw.split(",") if a_list and value == raw else value


def _fits(value: Any, kind: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _allowed(path: tuple[str | int, ...], root: type[BaseModel]) -> str:
    """The keys allowed where `path` ends, for the message about a wrong key."""
    section: Any = root
    for part in path[:-1]:
        if isinstance(part, int):  # of a list of sections
            section = (get_args(section) or (None,))[0]
        else:
            field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
            section = field.annotation if field else None
    return ", ".join(section.model_fields) if hasattr(section, "model_fields") else "nothing"


def explain(error: ValidationError, source: str, root: type[BaseModel]) -> ConfigError:
    """Each wrong key, type or value of settings that should be a `root`, as one error."""
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{name}: no such setting; allowed here: {_allowed(item['loc'], root)}")
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            # Settings that do not go together are told by the message; their whole section would drown it.
            whole = item["type"] in ("value_error", "missing") and isinstance(item["input"], dict)
            lines.append(f"{name}: {message}".removeprefix(": ") + ("" if whole else f"; got {item['input']!r}"))
    return ConfigError(f"{source}:\n  " + "\n  ".join(lines))


def resolve(tree: dict[str, Any], source: str = "config") -> RunConfig:
    """Validate a plain dictionary. Raises ConfigError naming each wrong key, type or value."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise explain(error, source, RunConfig) from None


def load_config(
    path: str | Path | None, overrides: list[str] | None = None, *, tree: dict[str, Any] | None = None
) -> RunConfig:
    """Read a TOML (or a run's saved JSON) config, or start from `tree`, and apply `section.key=value` overrides.

    Raises:
        ConfigError: the file can't be read, or a key, type or value is wrong.
    """
    tree = read_tree(path, overrides) if path is not None else set_all(tree or {}, overrides, RunConfig)
    return resolve(tree, source=str(path or "config"))


def read_tree(
    path: str | Path, overrides: list[str] | None = None, root: type[BaseModel] = RunConfig
) -> dict[str, Any]:
    """The tables of a TOML or JSON file that describes a `root`, with `section.key=value` overrides.

    Raises:
        ConfigError: the file can't be read, or an override is none.
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
    except (ValueError, RecursionError) as error:  # both parsers' errors
        raise ConfigError(f"{path}: not valid {kind}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a table of settings; got {type(tree).__name__}")
    return set_all(tree, overrides, root)


def set_all(tree: dict[str, Any], overrides: list[str] | None, root: type[BaseModel]) -> dict[str, Any]:
    """The tree with `section.key=value` overrides set in it; what each value means depends on the setting's type."""
    for override in overrides or []:
        _set_dotted(tree, override, root)
    return tree
