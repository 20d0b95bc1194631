"""What a gateway is started with: the tables of its TOML file. The proxy's own settings are in `proxy.settings`."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from popi.config.http import HttpConfig
from popi.config.section import VariableName
from popi.errors import ConfigError
from popi.models.remote.key import checked_url
from popi.serving.pages.colour import checked_colour
from popi.serving.proxy.settings import ProxySettings, Settings, read_toml
from popi.serving.store.jobs import Debounce
from popi.serving.store.outbox import EVENTS, Event
from popi.serving.worker.inference import InferenceSettings
from popi.signals.renewal import LEAST

LOGOS = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
"""Media types of logos by the ending of their names."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?")


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
    user_renewals_per_hour: int = Field(default=30, ge=1)
    """Renewals of one user per hour, over all workers on a store. What is over this or another quota waits until the
    hour or day (UTC) ends."""
    user_renewals_per_day: int = Field(default=200, ge=1)
    """Renewals of one user per day."""
    user_tokens_per_day: int = Field(default=1_000_000, ge=1)
    """Tokens, read and written, that one user's renewals may take per day. Those of renewals under way come on top."""
    key_renewals_per_day: int = Field(default=20_000, ge=1)
    """Renewals per day that one key may call for, with signals, imports, feedback or rebuilds."""
    key_tokens_per_day: int = Field(default=100_000_000, ge=1)
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
    """How long answers are kept, and users of whom nothing else is stored."""


class AuditSettings(Settings):
    """The log of who read or changed whom, by the profile API, the pages and the command line (docs/serving.md)."""

    table = "audit"

    days: float = Field(default=30.0, ge=0)
    """How long entries are kept; 0 keeps none."""
    of: tuple[Literal["admin", "app", "user"], ...] = ("admin", "app", "user")
    """Whose reads and changes are noted: of the team, of apps, of users themselves. Apps that send many signals make
    many entries."""


class OidcSettings(Settings):
    """Sign-in to `/admin` at your identity provider, beside admin keys. Register `[page] url` +
    `/admin/oidc/callback` there as the redirect URI."""

    table = "page.oidc"

    issuer: str
    """The provider, whose `/.well-known/openid-configuration` says the rest."""
    client_id: str = Field(pattern=r"\S")
    """The gateway's own id there."""
    client_secret_env: VariableName | None = None
    """Environment variable with the client's secret; unset: a public client, protected by PKCE alone."""
    auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    """How the secret is sent."""
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    """What is asked for; some providers need one more for groups."""
    claim: str = "groups"
    """The claim that decides on the role, of the ID token or else of the provider's userinfo: a text or a list."""
    admins: tuple[str, ...] = ()
    """Values of that claim that make an admin, who may do what an admin key may on these pages."""
    viewers: tuple[str, ...] = ()
    """Values that make a viewer, who may read everything there and change nothing. All others are refused."""
    name_claim: str = "email"
    """The claim that names somebody in the audit log; `sub` where it is missing."""

    @field_validator("issuer")
    @classmethod
    def _is_issuer(cls, value: str) -> str:
        checked_url(value)
        return value

    @field_validator("scopes")
    @classmethod
    def _with_openid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in value:
            raise ValueError(f"must have 'openid' among them; got {list(value)}")
        return value

    @model_validator(mode="after")
    def _lets_somebody_in(self) -> Self:
        if not self.admins and not self.viewers:
            raise ValueError("name values of the claim in admins or viewers: without any, nobody can sign in")
        return self


class PageSettings(Settings):
    """The pages `/me` and `/admin`."""

    table = "page"

    name: str = Field(default="Your assistant", pattern=r"\S")
    """The product's name, as users know it."""
    url: str | None = None
    """Where users reach the gateway (`https://chat.example`); unset: the host that asked for a link."""
    app: str | None = None
    """Where the way back to the app leads (`https://shop.example/chat`, or the app's own scheme); unset: none."""
    language: Literal["en", "de", "es", "fr", "zh", "ja", "ar"] | None = None
    """The language of users' pages; unset: of those there are, the one that the user's browser asks for. The team's
    pages are in English."""
    logo: Path | None = None
    """A picture that stands beside the product's name: a file in SVG, PNG, WebP or JPEG."""
    colour: str | None = None
    """The product's colour as `#rrggbb`; one that can't be read on light paper (WCAG, 4.5) is refused, and in the dark
    it is made lighter. Unset: green."""
    frame_ancestors: tuple[str, ...] = ()
    """Origins whose pages may embed a user's page in a frame (`https://shop.example`); it then needs TLS, and its
    cookie is `SameSite=None; Secure; Partitioned`. The team's pages are never embedded."""
    link_minutes: float = Field(default=10.0, gt=0, le=60)  # an erasure is noted for an hour, and ends older links
    """How long a link to a user's page can be opened, once."""
    session_minutes: float = Field(default=60.0, gt=0, le=7 * 24 * 60)
    """How long somebody stays signed in."""
    model: str | None = Field(default=None, pattern=r"\S")
    """The upstream's model that answers on "Try it"; unset: no such page."""
    protocol: Literal["openai", "anthropic"] = "openai"
    """What the upstream speaks, for that page."""
    oidc: OidcSettings | None = None
    """Sign-in of the team at an identity provider; needs `url`."""

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.oidc is not None and self.url is None:
            raise ValueError("oidc needs url: the address that the provider sends browsers back to")
        return self

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        return value if value is None else checked_url(value).rstrip("/")

    @field_validator("app")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        scheme = "" if value is None else value.partition(":")[0].lower()
        if value is not None and (not _ADDRESS.fullmatch(value) or scheme in ("javascript", "data", "vbscript")):
            raise ValueError(f"give an address such as https://shop.example/chat; got {value!r}")
        return value

    @field_validator("logo")
    @classmethod
    def _is_picture(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() not in LOGOS:
            raise ValueError(f"a logo is a file of {', '.join(LOGOS)}; got {value.name!r}")
        return value

    @field_validator("colour")
    @classmethod
    def _is_colour(cls, value: str | None) -> str | None:
        return value if value is None else checked_colour(value)

    @field_validator("frame_ancestors")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"an origin is a scheme and a host, such as https://shop.example; got {origin!r}")
        return value


class ProfileSettings(Settings):
    """Bounds on what is stored of one user, and on requests that bring it. What was stored under other bounds stays
    readable, exportable and erasable."""

    table = "profiles"

    body_bytes: int = Field(default=4 * 2**20, ge=2**10)
    """Maximum size of a request's body."""
    import_bytes: int = Field(default=16 * 2**20, ge=2**10)
    """Maximum size of an import's body."""
    body_values: int = Field(default=250_000, ge=100)
    """Maximum number of values (texts, numbers, lists, objects) in the JSON of a body."""
    body_s: float = Field(default=60.0, gt=0)
    """Time that a client may take to send a body, in seconds."""
    signal_chars: int = Field(default=100_000, ge=1)
    """Maximum length of one signal as JSON, in characters; a longer one is refused."""
    signals: int = Field(default=10_000, ge=1)
    """Maximum number of signals per user; more are refused."""
    signals_bytes: int = Field(default=16 * 2**20, ge=1)
    """Maximum size of all signals of a user as they are stored; more are refused."""
    versions: int = Field(default=100, ge=2)
    """Versions of a summary that are kept; older ones are removed."""
    versions_bytes: int = Field(default=4 * 2**20, ge=1)
    """Maximum size of these versions; older ones are removed sooner. The newest two are always kept."""

    @property
    def keep(self) -> tuple[int, int]:
        return self.versions, self.versions_bytes


class ServerSettings(Settings):
    """What clients may hold of the gateway before their key is checked (docs/security.md, "Hostile clients")."""

    table = "server"

    connections: int = Field(default=4096, ge=1)
    """Maximum open connections. Beyond this, an idle one is closed, rather one that never sent a request; if none is
    idle, the new one gets 503."""
    connections_per_address: int = Field(default=1024, ge=1)
    """The same for one client address (of IPv6: one /64). Does not apply to `trusted_proxies`."""
    header_bytes: int = Field(default=32_768, ge=1024)
    """Maximum size of a request's line and headers; beyond this, 431."""
    headers: int = Field(default=100, ge=1)
    """Maximum number of headers of a request; beyond this, 431."""
    head_s: float = Field(default=20.0, gt=0)
    """Maximum time in seconds from a connection's start, or a later request's first byte, to the end of its headers."""
    stall_s: float = Field(default=60.0, gt=0)
    """Maximum time in seconds without progress of a body that is being sent, or of an answer that is being read."""
    wrong_keys_per_s: float = Field(default=2.0, gt=0)
    """Wrong keys, page links and cookies per second that one client address may try (20 at once); beyond this, 429.
    Those that were right before keep working."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks (`10.0.0.0/8`) of the proxies in front; from them, and no others, `X-Forwarded-For` names
    the client. Without it, all clients behind a proxy count as one address."""

    drain_s: int = Field(default=30, ge=1)
    """Seconds that answers under way may take after SIGTERM or Ctrl-C; what takes longer is cut. Let whatever stops the
    process wait longer than this and `notice_s` (`stop_grace_period`, `terminationGracePeriodSeconds`)."""
    notice_s: float = Field(default=0.0, ge=0)
    """Seconds after SIGTERM in which `/readyz` already answers 503 and new requests are still served: so long a load
    balancer may take to notice. Then the gateway stops listening."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the model APIs and the profile API from a browser (`https://app.example`);
    `*`: all. Give such pages user keys, never app keys."""

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one != "*" and not _ORIGIN.fullmatch(one):
                raise ValueError(f"an origin is https://host or https://host:port in lower case, or '*'; got {one!r}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            ip_network(one)
        return value


class WebhookSettings(Settings):
    """Endpoints that are told when a summary changed or a user was erased (docs/serving.md, "Webhooks"), by `popi
    serve` and `popi worker` alike. The URL is your own choice: private addresses are allowed."""

    table = "webhooks"

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """Its name in logs and metrics. What waits for it in the store waits under this name."""
    url: str
    """Where events are sent by POST."""
    secret_env: VariableName
    """Environment variable with the secret that signs them, `whsec_` and 24 to 64 bytes in base64; or with several,
    blanks between, while one replaces another."""
    events: tuple[Event, ...] = Field(default=EVENTS, min_length=1)
    """What it is told."""
    hours: float = Field(default=24.0, gt=0, le=72)
    """How long an event that the endpoint does not take is tried again; so long an erased user's id stays stored."""

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        checked_url(value, "webhook")
        return value


class GatewaySettings(Settings):
    """All tables."""

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
    """Endpoints that are told of changes."""

    @field_validator("webhooks")
    @classmethod
    def _names_of_their_own(cls, value: tuple[WebhookSettings, ...]) -> tuple[WebhookSettings, ...]:
        names = [one.name for one in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the name {min(twice)!r} is there twice; each needs a name of its own")
        return value

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
    if "upstream" not in given and not given.get("upstreams"):
        raise ConfigError("name the model API behind the gateway with --upstream URL (or try `popi serve --demo`)")
    values: dict[str, Any] = tables | {"proxy": given}
    return GatewaySettings(**values)


def of_worker(file: Path | None) -> GatewaySettings:
    """The same for a process without an upstream of its own.

    Raises:
        ConfigError: as `read`.
    """
    proxy = _tables(file).get("proxy", {})
    return read(file, upstream=None if "upstream" in proxy or "upstreams" in proxy else "http://localhost")


def _tables(file: Path | None) -> dict[str, Any]:
    tables = read_toml(file) if file is not None else {}
    for name, table in tables.items():
        listed = name == "webhooks"
        if name not in GatewaySettings.model_fields or not isinstance(table, list if listed else dict):
            known = ", ".join(f"[[{one}]]" if one == "webhooks" else f"[{one}]" for one in GatewaySettings.model_fields)
            raise ConfigError(f"{file}: has tables {known} alone; got {name!r}")
    return tables
