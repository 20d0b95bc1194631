"""What a gateway is started with; the proxy's own settings are in `proxy.settings`."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from popi.errors import ConfigError
from popi.serving.proxy.settings import JwtSettings, ProxySettings
from popi.serving.renewal import Pace
from popi.serving.store.jobs import Debounce

TABLES = ("proxy", "renewal")


@dataclass(frozen=True)
class GatewaySettings:
    """All of it.

    Attributes:
        proxy: of what is passed through.
        debounce: when new signals lead to a renewal.
        pace: how a worker goes about renewals.
    """

    proxy: ProxySettings
    debounce: Debounce = field(default_factory=Debounce)
    pace: Pace = field(default_factory=Pace)


def read(file: Path | None, **proxy: Any) -> GatewaySettings:
    """Settings from a TOML file; those in `proxy` that are not None come before the file's.

    Raises:
        ConfigError: the file can't be read, or has a setting that there is not.
    """
    tables = _tables(file)
    fields = tables.get("proxy", {}) | {name: value for name, value in proxy.items() if value is not None}
    if isinstance(fields.get("jwt"), dict):
        fields["jwt"] = JwtSettings(**_tuples(fields["jwt"]))
    if "upstream" not in fields:
        raise ConfigError("name the model API behind the gateway with --upstream URL (or try `popi serve --demo`)")
    debounce, pace = renewal(file)
    return GatewaySettings(ProxySettings(**_tuples(fields)), debounce, pace)


def renewal(file: Path | None) -> tuple[Debounce, Pace]:
    """The settings of renewals alone.

    Raises:
        ConfigError: as `read`.
    """
    given = _tables(file).get("renewal", {})
    names = {one: one_of for one_of in (Debounce, Pace) for one in one_of.__dataclass_fields__}
    for name, value in given.items():
        if name not in names:
            raise ConfigError(f"{file}: [renewal] has no setting {name!r}; it has {', '.join(names)}")
        whole = name == "tries"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 <= value < 1e9:
            raise ConfigError(
                f"{file}: renewal.{name} must be {'a whole number' if whole else 'seconds'}; got {value!r}"
            )
    if given.get("lease", 1) < 1:
        raise ConfigError(f"{file}: renewal.lease must be at least 1 second; got {given['lease']!r}")
    kinds = {of: {name: value for name, value in given.items() if names[name] is of} for of in (Debounce, Pace)}
    return Debounce(**kinds[Debounce]), Pace(**kinds[Pace])


def _tables(file: Path | None) -> dict[str, dict[str, Any]]:
    if file is None:
        return {}
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: can't be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: is not TOML ({error})") from None
    for name, table in tables.items():
        if name not in TABLES or not isinstance(table, dict):
            raise ConfigError(f"{file}: has tables [{'], ['.join(TABLES)}] alone; got {name!r}")
    return tables


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
