"""The gateway's settings: the tables of its TOML file, except `proxy.settings` and `pages.settings`."""

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from popi.config.http import HttpConfig
from popi.config.section import VariableName
from popi.errors import ConfigError
from popi.models.remote.key import checked_url
from popi.serving.pages.settings import ORIGIN, PageSettings
from popi.serving.proxy.settings import ProxySettings, Settings, read_toml
from popi.serving.store.jobs import Debounce
from popi.serving.store.outbox import EVENTS, Event
from popi.serving.worker.inference import InferenceSettings
from popi.signals.renewal import MIN_SIGNALS


class RenewalSettings(Settings):
    """When and how summaries are renewed. Times are in seconds. `quiet_s` and `max_wait_s` apply to the process that
    receives signals (`popi serve`), the others to the one that writes summaries (`popi worker`, or `popi serve` with an
    inference model)."""

    table = "renewal"
    renamed: ClassVar[Mapping[str, str]] = {
        "back_off": "backoff_s",
        "edited": "conflict_delay_s",
        "idle": "poll_interval_s",
        "least_signals": "min_signals",
        "lease": "lease_s",
        "longest": "max_wait_s",
        "longest_back_off": "max_backoff_s",
        "quiet": "quiet_s",
        "rebuild_wait": "rebuild_interval_s",
        "tries": "max_attempts",
    }

    quiet_s: float = Field(default=30.0, ge=0)
    """A summary is renewed once no new signal has arrived for this long."""
    max_wait_s: float = Field(default=600.0, ge=0)
    """A summary is renewed at most this long after its first new signal, even if more keep arriving."""
    lease_s: float = Field(default=60.0, ge=1)
    """After this long without a heartbeat, a dead worker's job is reclaimed."""
    poll_interval_s: float = Field(default=0.5, ge=0)
    """Interval of polling for due jobs."""
    backoff_s: float = Field(default=5.0, ge=0)
    """Delay before a failed renewal is retried; doubled with each further failure."""
    max_backoff_s: float = Field(default=3600.0, ge=0)
    """Maximum of that delay."""
    max_attempts: int = Field(default=10, ge=0)
    """After this many failures in a row, a renewal waits for new signals."""
    conflict_delay_s: float = Field(default=5.0, ge=0)
    """Delay before a renewal is repeated because someone edited the summary meanwhile."""
    from_old_summary: bool = True
    """Renew from the old summary and the new signals, if the model can; otherwise every renewal reads all signals."""
    min_signals: int = Field(default=MIN_SIGNALS, ge=1)
    """Minimum number of signals before a summary is renewed from the previous one, and minimum that a renewal reads
    (docs/streaming.md); 1 always renews from the previous one."""
    reasons: bool = True
    """If the model is behind an API, ask it with a second call per new version which signals each clause rests on."""

    rebuild_interval_s: float = Field(default=300.0, ge=0)
    """Minimum time between rebuilds of a user's summary from all signals; earlier requests wait."""
    user_renewals_per_hour: int = Field(default=30, ge=1)
    """Maximum renewals per user and hour, across all workers on a store. Renewals beyond this or another quota wait
    until the hour or day (UTC) ends."""
    user_renewals_per_day: int = Field(default=200, ge=1)
    """Maximum renewals per user and day."""
    user_tokens_per_day: int = Field(default=1_000_000, ge=1)
    """Maximum input and output tokens of renewals per user and day, not counting renewals in progress."""
    key_renewals_per_day: int = Field(default=20_000, ge=1)
    """Maximum renewals per key and day, triggered by its signals, imports, feedback or rebuilds."""
    key_tokens_per_day: int = Field(default=100_000_000, ge=1)
    """Maximum tokens of these renewals per day."""
    tenant_renewals_per_day: int | None = Field(default=None, ge=1)
    """Maximum renewals per tenant and day; unlimited if unset."""
    tenant_tokens_per_day: int | None = Field(default=None, ge=1)
    """Maximum tokens of these renewals per day; unlimited if unset."""
    input_price: float = Field(default=0.0, ge=0)
    """Price per million input tokens, in any currency, for `popi_renewal_cost_total`."""
    output_price: float = Field(default=0.0, ge=0)
    """Price per million output tokens."""


class CaptureSettings(Settings):
    """Storing answers for a limited time, so that feedback can refer to them."""

    table = "capture"
    renamed: ClassVar[Mapping[str, str]] = {"hours": "retention_hours"}

    tenants: tuple[str, ...] = ()
    """Tenants that opted in; `*` for all."""
    retention_hours: float = Field(default=24.0, gt=0, le=24 * 30)
    """How long answers are stored, and users without any other data."""


class AuditSettings(Settings):
    """The log of who read or changed which user's data through the profile API, the pages and the command line
    (docs/serving.md)."""

    table = "audit"
    renamed: ClassVar[Mapping[str, str]] = {"days": "retention_days", "of": "roles"}

    retention_days: float = Field(default=30.0, ge=0)
    """How long entries are kept; 0 turns the log off."""
    roles: tuple[Literal["admin", "app", "user"], ...] = ("admin", "app", "user")
    """Whose reads and changes are recorded: the team's, apps', users' own. Apps that send many signals create many
    entries."""


class ProfileSettings(Settings):
    """Limits on the data of one user, and on requests that add to it. Data stored under other limits stays readable,
    exportable and erasable."""

    table = "profiles"
    renamed: ClassVar[Mapping[str, str]] = {"body_s": "body_timeout_s"}

    body_bytes: int = Field(default=4 * 2**20, ge=2**10)
    """Maximum size of a request's body."""
    import_bytes: int = Field(default=16 * 2**20, ge=2**10)
    """Maximum size of an import's body."""
    body_values: int = Field(default=250_000, ge=100)
    """Maximum number of values (strings, numbers, lists, objects) in the JSON of a body."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """Maximum seconds for a client to send a body."""
    signal_chars: int = Field(default=100_000, ge=1)
    """Maximum characters of one signal as JSON; longer ones are refused."""
    signals: int = Field(default=10_000, ge=1)
    """Maximum number of signals per user; more are refused."""
    signals_bytes: int = Field(default=16 * 2**20, ge=1)
    """Maximum stored size of a user's signals; more are refused."""
    versions: int = Field(default=100, ge=2)
    """Maximum versions of a summary to keep; older ones are removed."""
    versions_bytes: int = Field(default=4 * 2**20, ge=1)
    """Maximum size of these versions; if exceeded, older ones are removed. The newest two are always kept."""

    @property
    def keep(self) -> tuple[int, int]:
        return self.versions, self.versions_bytes


class ServerSettings(Settings):
    """Limits for clients before their key is checked (docs/security.md, "Hostile clients")."""

    table = "server"
    renamed: ClassVar[Mapping[str, str]] = {
        "drain_s": "drain_timeout_s",
        "head_s": "header_timeout_s",
        "notice_s": "shutdown_delay_s",
        "stall_s": "stall_timeout_s",
    }

    connections: int = Field(default=4096, ge=1)
    """Maximum open connections. Beyond this, an idle one is closed, preferably one that never sent a request; if none
    is idle, the new one gets 503."""
    connections_per_address: int = Field(default=1024, ge=1)
    """Maximum open connections per client address (per /64 for IPv6). Does not apply to `trusted_proxies`."""
    header_bytes: int = Field(default=32_768, ge=1024)
    """Maximum size of a request's line and headers; beyond this, 431."""
    headers: int = Field(default=100, ge=1)
    """Maximum number of headers of a request; beyond this, 431."""
    header_timeout_s: float = Field(default=20.0, gt=0)
    """Maximum seconds from a connection's start, or a later request's first byte, to the end of its headers."""
    stall_timeout_s: float = Field(default=60.0, gt=0)
    """Maximum seconds without progress while a client sends a body or reads a response."""
    wrong_keys_per_s: float = Field(default=2.0, gt=0)
    """Maximum wrong keys, page links and cookies per second and client address (20 at once); beyond this, 429. Keys
    that were valid before keep working."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks (`10.0.0.0/8`) of reverse proxies in front of the gateway. Only from them is
    `X-Forwarded-For` accepted; without it, all clients behind a proxy count as one address."""

    drain_timeout_s: int = Field(default=30, ge=1)
    """Seconds to finish responses in progress after SIGTERM or Ctrl-C; longer ones are cut off. Your process manager's
    grace period (`stop_grace_period`, `terminationGracePeriodSeconds`) must exceed this plus `shutdown_delay_s`."""
    shutdown_delay_s: float = Field(default=0.0, ge=0)
    """Seconds after SIGTERM during which `/readyz` returns 503 but new requests are still served, so that a load
    balancer has time to notice. Then the gateway stops listening."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the model APIs and the profile API from a browser (`https://app.example`); `*`
    for all. Give such pages user keys, never app keys."""

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one != "*" and not ORIGIN.fullmatch(one):
                raise ValueError(
                    f"an origin must be https://host or https://host:port in lower case, or '*'; got {one!r}"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            ip_network(one)
        return value


class WebhookSettings(Settings):
    """Endpoints to call when a summary changes or a user is erased (docs/serving.md, "Webhooks"), from both `popi
    serve` and `popi worker`. Private addresses are allowed, since you choose the URL."""

    table = "webhooks"
    renamed: ClassVar[Mapping[str, str]] = {"hours": "retry_hours"}

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """Its name in logs and metrics, and for its pending events in the store."""
    url: str
    """URL to POST events to."""
    secret_env: VariableName
    """Environment variable that holds the signing secret: `whsec_` and 24 to 64 bytes in base64. To rotate it, set
    several, separated by spaces."""
    events: tuple[Event, ...] = Field(default=EVENTS, min_length=1)
    """Events to send."""
    retry_hours: float = Field(default=24.0, gt=0, le=72)
    """How long a failed event is retried. An erased user's id may stay stored for that time."""

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        checked_url(value, "webhook")
        return value


class GatewaySettings(Settings):
    """All settings of the gateway."""

    server: ServerSettings = ServerSettings()
    proxy: ProxySettings
    http: HttpConfig = HttpConfig()
    inference: InferenceSettings = InferenceSettings()
    renewal: RenewalSettings = RenewalSettings()
    capture: CaptureSettings = CaptureSettings()
    page: PageSettings = PageSettings()
    profiles: ProfileSettings = ProfileSettings()
    audit: AuditSettings = AuditSettings()
    webhooks: tuple[WebhookSettings, ...] = ()
    """Endpoints to call when something changes."""

    @field_validator("webhooks")
    @classmethod
    def _unique_names(cls, value: tuple[WebhookSettings, ...]) -> tuple[WebhookSettings, ...]:
        names = [one.name for one in value]
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the name {min(duplicates)!r} is used twice; each webhook needs a unique name")
        return value

    @property
    def debounce(self) -> Debounce:
        return Debounce(self.renewal.quiet_s, self.renewal.max_wait_s, self.renewal.rebuild_interval_s)


def read(file: Path | None, **proxy: Any) -> GatewaySettings:
    """Read settings from a TOML file; those in `proxy` that are not None override the file's.

    Raises:
        ConfigError: the file can't be read or is not valid.
    """
    tables = _tables(file)
    proxy_table = tables.get("proxy", {}) | {name: value for name, value in proxy.items() if value is not None}
    if "upstream" not in proxy_table and not proxy_table.get("upstreams"):
        raise ConfigError("set the model API behind the gateway with --upstream URL (or try `popi serve --demo`)")
    values: dict[str, Any] = tables | {"proxy": proxy_table}
    return GatewaySettings(**values)


def of_worker(file: Path | None) -> GatewaySettings:
    """Read settings for a process that needs no upstream.

    Raises:
        ConfigError: as in `read`.
    """
    proxy = _tables(file).get("proxy", {})
    return read(file, upstream=None if "upstream" in proxy or "upstreams" in proxy else "http://localhost")


def _tables(file: Path | None) -> dict[str, Any]:
    tables = read_toml(file) if file is not None else {}
    for name, table in tables.items():
        is_array = name == "webhooks"
        if name not in GatewaySettings.model_fields or not isinstance(table, list if is_array else dict):
            known = ", ".join(f"[[{one}]]" if one == "webhooks" else f"[{one}]" for one in GatewaySettings.model_fields)
            raise ConfigError(f"{file}: no such table {name!r}; allowed here: {known}")
    return tables
