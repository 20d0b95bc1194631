"""What a gateway is started with; the proxy's own settings are in `proxy.settings`."""

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from popi.errors import ConfigError
from popi.serving.capture.recorder import CaptureSettings
from popi.serving.pages.settings import PageSettings
from popi.serving.proxy.settings import JwtSettings, ProxySettings
from popi.serving.renewal import Pace
from popi.serving.store.jobs import Debounce

T = TypeVar("T")
TABLES = ("proxy", "renewal", "capture", "page")


@dataclass(frozen=True)
class GatewaySettings:
    """All of it.

    Attributes:
        proxy: of what is passed through.
        debounce: when new signals lead to a renewal.
        pace: how a worker goes about renewals.
        capture: whose answers are kept for feedback.
        page: of `/me` and `/admin`.
    """

    proxy: ProxySettings
    debounce: Debounce = field(default_factory=Debounce)
    pace: Pace = field(default_factory=Pace)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    page: PageSettings = field(default_factory=PageSettings)


def read(file: Path | None, **proxy: Any) -> GatewaySettings:
    """Settings from a TOML file; those in `proxy` that are not None come before the file's.

    Raises:
        ConfigError: the file can't be read, or has a setting that there is not.
    """
    tables = _tables(file)
    proxied = tables.get("proxy", {}) | {name: value for name, value in proxy.items() if value is not None}
    if isinstance(proxied.get("jwt"), dict):
        proxied["jwt"] = JwtSettings(**_tuples(proxied["jwt"]))
    if "upstream" not in proxied:
        raise ConfigError("name the model API behind the gateway with --upstream URL (or try `popi serve --demo`)")
    debounce, pace = renewal(file)
    capture = _made(CaptureSettings, "capture", tables, file)
    page = _made(PageSettings, "page", tables, file)
    return GatewaySettings(ProxySettings(**_tuples(proxied)), debounce, pace, capture, page)


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
        if name == "from_old_summary":
            if not isinstance(value, bool):
                raise ConfigError(f"{file}: renewal.{name} must be true or false; got {value!r}")
            continue
        whole = name in ("tries", "least_signals")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 <= value < 1e9:
            raise ConfigError(
                f"{file}: renewal.{name} must be {'a whole number' if whole else 'seconds'}; got {value!r}"
            )
    for name, what in (("lease", "1 second"), ("least_signals", "1")):
        if given.get(name, 1) < 1:
            raise ConfigError(f"{file}: renewal.{name} must be at least {what}; got {given[name]!r}")
    kinds = {of: {name: value for name, value in given.items() if names[name] is of} for of in (Debounce, Pace)}
    return Debounce(**kinds[Debounce]), Pace(**kinds[Pace])


def _made(of: type[T], table: str, tables: dict[str, dict[str, Any]], file: Path | None) -> T:
    given = _tuples(tables.get(table, {}))
    names = [one.name for one in fields(of)]  # type: ignore[arg-type]
    for name in given:
        if name not in names:
            raise ConfigError(f"{file}: [{table}] has no setting {name!r}; it has {', '.join(names)}")
    return of(**given)


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
