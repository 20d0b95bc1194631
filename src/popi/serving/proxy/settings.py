"""All settings of the proxy, each documented below its field."""

import re
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from popi.config.section import VariableName, no_such_setting
from popi.errors import ConfigError
from popi.models.remote.api_url import ApiUrl, Auth, Protocol
from popi.models.remote.key import checked_url, key_in
from popi.serving.proxy.block import DEFAULT_BLOCK

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

SYMMETRIC = ("HS256", "HS384", "HS512")
ASYMMETRIC = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
)
DEFAULT_NAME = "default"
"""The name of the upstream that the setting `upstream` defines."""
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")


class Settings(BaseModel):
    """One table of the gateway's TOML. TOML arrays become tuples.

    Attributes:
        table: the table's name.
        renamed: old name → new name of settings, for the error about an old one.
        hides_texts: leave strings out of error messages, since they may be secrets.

    Raises:
        ConfigError: an unknown setting or an invalid value.
    """

    table: ClassVar[str] = ""
    renamed: ClassVar[Mapping[str, str]] = {}
    hides_texts: ClassVar[bool] = False
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, frozen=True, strict=True, allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(
                "the gateway's settings are invalid:\n  " + "\n  ".join(map(self._problem, error.errors()))
            ) from None

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    @classmethod
    def _problem(cls, error: "ErrorDetails") -> str:
        name, given = ".".join(map(str, error["loc"])), error["input"]
        if error["type"] == "extra_forbidden":
            return f"{cls.table}{'.' if cls.table else ''}{name}: {no_such_setting(cls, error['loc'])}"
        secret = isinstance(given, str) and (cls.hides_texts or name.endswith("_env"))
        shown = f"; got {given!r}" if isinstance(given, (str, int, float)) and not secret else ""
        return f"{cls.table}{'.' if name else ''}{name}: {error['msg']}{shown}"


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: it can't be read or parsed.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: can't be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML ({error})") from None


class JwtSettings(Settings):
    """Tokens that name the end user, signed by your identity provider. Set one of `jwks_url`, `key` and `key_env`."""

    table = "proxy.jwt"
    hides_texts = True

    jwks_url: str | None = None
    """URL of the issuer's public keys (`https://…/.well-known/jwks.json`). They are fetched with the first token, then
    hourly, and when a token names an unknown key (at most every 30 seconds)."""
    key: SecretStr | None = None
    """A public key (PEM), or the secret shared with the issuer (HS256, HS384 or HS512; at least 32 bytes)."""
    key_env: VariableName | None = None
    """Environment variable that holds the shared secret."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    """Accepted signature algorithms. With a shared secret: `["HS256"]`."""
    claim: str = Field(default="sub", min_length=1)
    """The claim that holds the user id."""
    issuer: str | None = None
    """Required value of `iss`; any value if unset."""
    audience: str | None = None
    """Required audience (`aud`); if unset, tokens that name an audience are refused."""
    header: str = "x-popi-jwt"
    """The header that holds the token, with or without `Bearer` in front. With `authorization`, the popi key must be
    sent in `x-popi-key`."""
    leeway_s: float = Field(default=30.0, ge=0)
    """Allowed difference between the issuer's clock and this machine's, in seconds."""

    @field_validator("header")
    @classmethod
    def _lower(cls, value: str) -> str:
        return _header_name(value)

    @model_validator(mode="after")
    def _one_kind_of_key(self) -> Self:
        if sum(one is not None for one in (self.jwks_url, self.key, self.key_env)) != 1:
            raise ValueError("set exactly one of jwks_url, key and key_env")
        if self.jwks_url is not None:
            checked_url(self.jwks_url)
        unknown = set(self.algorithms) - {*SYMMETRIC, *ASYMMETRIC}
        if unknown or not self.algorithms:
            raise ValueError(f"algorithms must be from {', '.join((*SYMMETRIC, *ASYMMETRIC))}; got {self.algorithms}")
        # Match algorithms and key: if a public key could serve as a shared secret, anyone could sign tokens.
        public = self.key is not None and "-----BEGIN" in self.key.get_secret_value()
        secret = self.jwks_url is None and not public
        allowed = SYMMETRIC if secret else ASYMMETRIC
        if not set(self.algorithms) <= set(allowed):
            kind = "a shared secret" if secret else "public keys"
            raise ValueError(f"with {kind} the algorithms must be from {', '.join(allowed)}; got {self.algorithms}")
        if secret and self.key is not None and len(self.key.get_secret_value().encode()) < 32:
            raise ValueError("a shared secret must have at least 32 bytes; a shorter one can be guessed")
        return self

    def resolved(self) -> "JwtSettings":
        """The same settings with `key` read from `key_env`.

        Raises:
            ConfigError: the variable is not set, or its value can't be a shared secret.
        """
        if self.key_env is None:
            return self
        return JwtSettings(**self.model_dump(exclude={"key_env"}) | {"key": key_in(self.key_env)})


class UpstreamSettings(Settings):
    """One of several model APIs behind the gateway. A request goes to the first one in the file that its tenant may
    use, that speaks its API and that serves its model. There is no load balancing and no failover."""

    table = "proxy.upstreams"
    hides_texts = True

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    """Its name in logs and metrics."""
    url: str
    """Its URL, in the form of `upstream` under `[proxy]`."""
    key_env: VariableName | None = None
    """Environment variable that holds the gateway's key for it."""
    key: SecretStr | None = None
    """The key itself, in place of `key_env`."""
    auth: Auth = "auto"
    """How the key is sent; see `upstream_auth` under `[proxy]`."""
    protocol: Literal["any", "openai", "anthropic"] = "any"
    """The API that it speaks. `openai`: never receives `/v1/messages`. `anthropic`: receives only requests of
    Anthropic's API (`/v1/messages`, or with an `anthropic-version` header), and `/v1` is appended to its URL unless
    it is already there, as in Anthropic's clients."""
    models: tuple[str, ...] = ()
    """Models that it serves, with wildcards `*`, `?` and `[…]` (`gpt-*`), case-sensitive; all if empty."""
    tenants: tuple[str, ...] = ()
    """Tenants that may use it; all if empty. It is invisible to all others."""

    @field_validator("key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        return _checked_key(value)

    @model_validator(mode="after")
    def _is_url(self) -> Self:
        if self.key is not None and self.key_env is not None:
            raise ValueError(f"upstream {self.name!r}: set only one of key and key_env")
        _ = self.api
        return self

    @property
    def api(self) -> ApiUrl:
        """Its parsed URL."""
        return ApiUrl.parse(self.url, "anthropic" if self.protocol == "anthropic" else None, f"upstream {self.name!r}")

    @property
    def takes_all(self) -> bool:
        """Whether it accepts every request: any model, tenant and protocol."""
        return not self.models and not self.tenants and self.protocol == "any"

    def is_for(self, tenant: str, protocol: Protocol | None = None) -> bool:
        """Whether a tenant may use it and, if a protocol is given, whether it speaks that."""
        return (not self.tenants or tenant in self.tenants) and (protocol is None or self.protocol in ("any", protocol))

    def serves(self, model: str) -> bool:
        """Whether it serves a model."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    def secret(self) -> SecretStr | None:
        """The key.

        Raises:
            ConfigError: its variable is not set, or its value can't be a key.
        """
        return self.key if self.key_env is None else key_in(self.key_env)


class ProxySettings(Settings):
    """Settings of the proxy. Set `upstream` or `upstreams`; everything else has a default."""

    table = "proxy"
    hides_texts = True
    renamed: ClassVar[Mapping[str, str]] = {
        "auth_s": "auth_timeout_s",
        "body_bytes_at_once": "max_body_bytes_in_flight",
        "body_s": "body_timeout_s",
        "metrics_for": "metrics_access",
        "summary_ms": "summary_timeout_ms",
    }

    upstream: str | None = None
    """Base URL of the model API behind the gateway, without `/chat/completions`: `https://api.openai.com/v1`,
    `http://localhost:8000`. A URL without a path gets `/v1`; any other path is used as it is (`/v1beta/openai`). A
    query (`?api-version=…`) is added to every call. Set either `upstream` or `upstreams`."""
    upstreams: tuple[UpstreamSettings, ...] = ()
    """Several model APIs, chosen by model and tenant."""
    upstream_key: SecretStr | None = None
    """The gateway's own key for the upstream. Used for requests that send their popi key in `Authorization` or
    `x-api-key`, and for those that send it in `x-popi-key` and bring no key for the upstream."""
    upstream_auth: Auth = "auto"
    """How that key is sent: `Authorization: Bearer`, `x-api-key` or `api-key`. `auto`: `api-key` for Azure, `x-api-key`
    for Anthropic's API (`/v1/messages`, or an `anthropic-version` header), otherwise Bearer."""
    other_paths: Literal["app", "admin", "nobody"] = "app"
    """Who may use paths under `/v1/` other than the personalised ones and `GET /v1/models`: app and admin keys, only
    admin keys, or nobody; user keys never may. Tenants behind the same upstream key share its files, batches and
    stored responses, so choose `admin` if you have several tenants."""
    client_keepalive_s: int = Field(default=75, ge=1)
    """Seconds before an idle client connection is closed. Set it higher than the idle timeout of your clients and load
    balancers (often 5 and 60), or they may send a request just as the connection closes."""

    block: str = Field(default=DEFAULT_BLOCK, min_length=1)
    """The text inserted into requests, with `{summary}` in place of the summary. If your generator was trained, use
    the text it was trained with."""
    summary_timeout_ms: float = Field(default=50.0, gt=0)
    """Maximum milliseconds to wait for a summary; checking the key may use up half of them. After that the request goes
    upstream without one."""

    identity_headers: tuple[str, ...] = (
        "x-popi-user",
        "x-litellm-end-user-id",
        "x-litellm-user_api_key_end_user_id",
        "x-openwebui-user-id",
    )
    """Headers that may name the end user; the first one present is used."""
    identity_fields: tuple[Literal["safety_identifier", "user", "metadata.user_id"], ...] = (
        "safety_identifier",
        "user",
        "metadata.user_id",
    )
    """Body fields that may name the end user if no header does."""
    ids_upstream: Literal["hashed", "stripped"] = "hashed"
    """Whether user ids are hashed or removed before a request goes upstream."""
    id_secret: SecretStr | None = Field(default=None)
    """Secret key of those hashes. If unset, one is generated at the first start and kept in the store, so that all
    processes share it."""
    id_secret_env: VariableName | None = None
    """Environment variable that holds that secret."""
    jwt: JwtSettings | None = None
    """Tokens that name the end user; ignored if unset."""

    max_body_bytes: int = Field(default=32 * 2**20, gt=0)
    """Maximum bytes of a JSON body, compressed or not. It is held in memory."""
    max_body_ratio: int = Field(default=100, ge=1)
    """Maximum ratio of inflated to compressed size of a body; the first MiB is exempt."""
    max_body_values: int = Field(default=500_000, ge=1)
    """Maximum number of values in a JSON body: strings, numbers, lists, objects and so on."""
    max_body_depth: int = Field(default=128, ge=1, le=500)
    """Maximum nesting depth of lists and objects in a JSON body."""
    max_body_bytes_in_flight: int = Field(default=128 * 2**20, gt=0)
    """Maximum bytes of JSON bodies in flight per key and process, counting both the compressed and the inflated bytes.
    At least twice `max_body_bytes`."""
    max_upload_bytes: int = Field(default=512 * 2**20, gt=0)
    """Maximum bytes of any other body (such as a file upload); it is streamed."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """Maximum seconds for a client to send a JSON body."""
    requests_per_s: float | None = Field(default=None, gt=0)
    """Maximum requests per second, per key and process; unlimited if unset."""
    burst: int = Field(default=100, ge=1)
    """How many requests a key may send at once before `requests_per_s` applies."""
    concurrency: int = Field(default=1000, ge=1)
    """Maximum concurrent requests per key and process."""
    auth_timeout_s: float = Field(default=5.0, gt=0)
    """Maximum seconds to wait for a key to be checked; after that the request is refused."""

    metrics_access: Literal["anyone", "admin", "nobody"] = "anyone"
    """Who may read `/metrics`. It never shows keys, tenants or users."""
    otel: bool = False
    """Trace requests with OpenTelemetry, configured by its own environment variables (`OTEL_…`)."""
    log_requests: bool = True
    """Log one line per request, without texts or user ids."""

    @property
    def all_upstreams(self) -> tuple[UpstreamSettings, ...]:
        """All upstreams; the one in `upstream` serves everything."""
        if self.upstream is None:
            return self.upstreams
        return (UpstreamSettings(name=DEFAULT_NAME, url=self.upstream, key=self.upstream_key, auth=self.upstream_auth),)

    @model_validator(mode="after")
    def _one_upstream_or_several(self) -> Self:
        if (self.upstream is None) == (not self.upstreams):
            raise ValueError("set either upstream (--upstream) or [[proxy.upstreams]] tables, and not both")
        if self.upstreams and (self.upstream_key is not None or self.upstream_auth != "auto"):
            raise ValueError(
                "upstream_key (--upstream-key-env) and upstream_auth go with upstream; upstreams have key_env and auth"
            )
        names = [one.name for one in self.upstreams]
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"upstreams: the name {min(duplicates)!r} is used twice; each upstream needs a unique name"
            )
        if self.upstream is not None:
            ApiUrl.parse(self.upstream, server="upstream")
        if self.id_secret is not None and self.id_secret_env is not None:
            raise ValueError("set only one of id_secret and id_secret_env")
        return self

    @field_validator("identity_headers")
    @classmethod
    def _lower(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_header_name(name) for name in value)

    @field_validator("upstream_key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        return _checked_key(value)

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        if self.max_body_bytes_in_flight < 2 * self.max_body_bytes:
            raise ValueError(
                "max_body_bytes_in_flight must be at least twice max_body_bytes, or the largest bodies can never pass"
            )
        return self

    @field_validator("block")
    @classmethod
    def _names_summary_once(cls, value: str) -> str:
        if value.count("{summary}") != 1:
            raise ValueError("must contain {summary} exactly once")
        return value


def _checked_key(value: SecretStr | None) -> SecretStr | None:
    text = value.get_secret_value() if value is not None else "x"
    if not text or not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("is empty, or has spaces, line breaks or characters that can't be in a key")
    return value


def _header_name(value: str) -> str:
    name = value.lower()
    if not _HEADER.fullmatch(name):
        raise ValueError(f"{value!r} is not a valid header name")
    return name
