"""What a gateway is started with: the tables of its TOML file. The proxy's own settings are in `proxy.settings`."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from popi.backends.key import checked_url
from popi.errors import ConfigError
from popi.serving.inference import InferenceSettings
from popi.serving.proxy.settings import ProxySettings, Settings, read_toml
from popi.serving.store.jobs import Debounce
from popi.signals.base import LEAST


class RenewalSettings(Settings):
    """When summaries are renewed, and how a worker goes about it. Times are in seconds. `quiet` and `longest` matter
    where signals come in (`popi serve`), the others where summaries are written (`popi worker`, or `popi serve` with an
    inference model)."""

    table = "renewal"

    quiet: float = Field(default=30.0, ge=0)
    """A summary is renewed once no new signal has come for this long."""
    longest: float = Field(default=600.0, ge=0)
    """After the first signal that it has not seen, a summary is renewed within this time, however many still come."""
    lease: float = Field(default=60.0, ge=1)
    """How long a job stays a worker's own without a sign of life; after this, a dead worker's job is reclaimed."""
    idle: float = Field(default=0.5, ge=0)
    """Pause between two looks for due jobs."""
    back_off: float = Field(default=5.0, ge=0)
    """Wait before a failed renewal is tried again; doubled with each further failure."""
    longest_back_off: float = Field(default=3600.0, ge=0)
    """Maximum of that wait."""
    tries: int = Field(default=10, ge=0)
    """After this many failures in a row, a renewal waits for new signals."""
    edited: float = Field(default=5.0, ge=0)
    """Wait before a renewal is repeated because a person edited the summary meanwhile."""
    from_old_summary: bool = True
    """Whether a renewal reads an old summary and the signals since, if the model can; otherwise it reads all signals
    each time."""
    least_signals: int = Field(default=LEAST, ge=1)
    """Minimum number of signals before a summary is renewed from the one before, and minimum that a renewal reads
    (docs/streaming.md); 1 renews every summary from the one before."""
    reasons: bool = True
    """Ask a model behind an API, in a second call per new version, which signals each clause rests on."""

    rebuild_wait: float = Field(default=300.0, ge=0)
    """A user's summary is not rebuilt from all signals more often than this; a further request waits."""
    user_renewals_per_hour: int | None = Field(default=30, ge=1)
    """Renewals of one user per hour, over all workers on a store. What is over this or another quota waits until the
    hour or day (UTC) ends."""
    user_renewals_per_day: int | None = Field(default=200, ge=1)
    """Renewals of one user per day."""
    user_tokens_per_day: int | None = Field(default=1_000_000, ge=1)
    """Tokens, read and written, that one user's renewals may take per day. Those of renewals under way come on top."""
    key_renewals_per_day: int | None = Field(default=20_000, ge=1)
    """Renewals per day that one key may call for, with signals, imports, feedback or rebuilds."""
    key_tokens_per_day: int | None = Field(default=100_000_000, ge=1)
    """Tokens per day that these may take."""
    tenant_renewals_per_day: int | None = Field(default=None, ge=1)
    """Renewals of one tenant's users per day; unlimited if unset."""
    tenant_tokens_per_day: int | None = Field(default=None, ge=1)
    """Tokens per day that these may take; unlimited if unset."""
    input_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens read, in any currency, for `popi_renewal_cost_total`."""
    output_price: float = Field(default=0.0, ge=0)
    """Price of a million tokens written."""


class CaptureSettings(Settings):
    """Whose answers are kept, so that feedback can name them."""

    table = "capture"

    tenants: tuple[str, ...] = ()
    """Tenants that opted in; `*` stands for all."""
    hours: float = Field(default=24.0, gt=0, le=24 * 30)
    """How long answers are kept."""


class PageSettings(Settings):
    """The pages `/me` and `/admin`."""

    table = "page"

    name: str = Field(default="Your assistant", pattern=r"\S")
    """The product's name, as users know it."""
    url: str | None = None
    """Where users reach the gateway (`https://chat.example`); unset: the host that asked for a link."""
    link_minutes: float = Field(default=10.0, gt=0, le=60)  # an erasure is noted for an hour, and ends older links
    """How long a link to a user's page can be opened, once."""
    session_minutes: float = Field(default=60.0, gt=0, le=7 * 24 * 60)
    """How long somebody stays signed in."""
    model: str | None = Field(default=None, pattern=r"\S")
    """The upstream's model that answers on "Try it"; unset: no such page."""
    protocol: Literal["openai", "anthropic"] = "openai"
    """What the upstream speaks, for that page."""

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        return value if value is None else checked_url(value).rstrip("/")


class GatewaySettings(Settings):
    """All tables."""

    proxy: ProxySettings
    inference: InferenceSettings = InferenceSettings()
    renewal: RenewalSettings = RenewalSettings()
    capture: CaptureSettings = CaptureSettings()
    page: PageSettings = PageSettings()

    @property
    def debounce(self) -> Debounce:
        return Debounce(self.renewal.quiet, self.renewal.longest, self.renewal.rebuild_wait)


def read(file: Path | None, **proxy: Any) -> GatewaySettings:
    """Settings from a TOML file; those in `proxy` that are not None override the file's.

    Raises:
        ConfigError: the file can't be read, or has a setting that does not exist.
    """
    tables = _tables(file)
    given = tables.get("proxy", {}) | {name: value for name, value in proxy.items() if value is not None}
    if "upstream" not in given:
        raise ConfigError("name the model API behind the gateway with --upstream URL (or try `popi serve --demo`)")
    values: dict[str, Any] = tables | {"proxy": given}
    return GatewaySettings(**values)


def renewal(file: Path | None) -> RenewalSettings:
    """The settings of renewals alone.

    Raises:
        ConfigError: as `read`.
    """
    return RenewalSettings(**_tables(file).get("renewal", {}))


def _tables(file: Path | None) -> dict[str, dict[str, Any]]:
    tables = read_toml(file) if file is not None else {}
    for name, table in tables.items():
        if name not in GatewaySettings.model_fields or not isinstance(table, dict):
            known = "], [".join(GatewaySettings.model_fields)
            raise ConfigError(f"{file}: has tables [{known}] alone; got {name!r}")
    return tables
