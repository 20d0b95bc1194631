"""Every setting of the proxy, each documented under its field."""

import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from popi.config.section import VariableName
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
ONLY = "default"
"""What the one upstream of `upstream` is called."""
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")


class Settings(BaseModel):
    """One table of the gateway's TOML. TOML's arrays are taken for tuples.

    Attributes:
        table: its name.
        hides_texts: errors don't show the text that arrived: it may be a secret.

    Raises:
        ConfigError: a setting that does not exist, or a value that it can't take.
    """

    table: ClassVar[str] = ""
    hides_texts: ClassVar[bool] = False
    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, frozen=True, strict=True, allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(
                "settings of the gateway:\n  " + "\n  ".join(map(self._problem, error.errors()))
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
            return f"{cls.table}: no setting {name!r}; there are {', '.join(cls.model_fields)}"
        secret = isinstance(given, str) and (cls.hides_texts or name.endswith("_env"))
        shown = f"; got {given!r}" if isinstance(given, (str, int, float)) and not secret else ""
        return f"{cls.table}{'.' if name else ''}{name}: {error['msg']}{shown}"


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: can't be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: is not TOML ({error})") from None


class JwtSettings(Settings):
    """Tokens that say who the end user is, signed by your identity provider. One of `jwks_url`, `key` and `key_env` is
    needed."""

    table = "proxy.jwt"
    hides_texts = True

    jwks_url: str | None = None
    """Where the issuer's public keys are (`https://…/.well-known/jwks.json`); fetched at the first token, again after
    an hour, and when a token names a key that is not among them (at most every 30 seconds)."""
    key: SecretStr | None = None
    """A public key (PEM), or the secret shared with the issuer (HS256 and its kin; 32 bytes or more)."""
    key_env: VariableName | None = None
    """Environment variable with the shared secret."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    """Signatures that count, and no others. With a shared secret: `["HS256"]`."""
    claim: str = Field(default="sub", min_length=1)
    """The claim that holds the user id."""
    issuer: str | None = None
    """What `iss` must be; unset: anything."""
    audience: str | None = None
    """What `aud` must hold; unset: a token made out for an audience is refused."""
    header: str = "x-popi-jwt"
    """The header that it comes in, as it is or behind `Bearer`. With `authorization`, the popi key must come in
    `x-popi-key`."""
    leeway_s: float = Field(default=30.0, ge=0)
    """By how many seconds the issuer's clock and ours may differ."""

    @field_validator("header")
    @classmethod
    def _lower(cls, value: str) -> str:
        return _header_name(value)

    @model_validator(mode="after")
    def _one_kind_of_key(self) -> Self:
        if sum(one is not None for one in (self.jwks_url, self.key, self.key_env)) != 1:
            raise ValueError("give one of jwks_url, key and key_env")
        if self.jwks_url is not None:
            checked_url(self.jwks_url)
        unknown = set(self.algorithms) - {*SYMMETRIC, *ASYMMETRIC}
        if unknown or not self.algorithms:
            raise ValueError(f"algorithms must be of {', '.join((*SYMMETRIC, *ASYMMETRIC))}; got {self.algorithms}")
        # A public key taken for a shared secret would let anyone sign: one kind of algorithm, and it must fit the key.
        public = self.key is not None and "-----BEGIN" in self.key.get_secret_value()
        secret = self.jwks_url is None and not public
        allowed = SYMMETRIC if secret else ASYMMETRIC
        if not set(self.algorithms) <= set(allowed):
            kind = "a shared secret" if secret else "public keys"
            raise ValueError(f"with {kind} the algorithms must be of {', '.join(allowed)}; got {self.algorithms}")
        if secret and self.key is not None and len(self.key.get_secret_value().encode()) < 32:
            raise ValueError("a shared secret must have 32 bytes or more, or it can be guessed")
        return self

    def with_key(self) -> "JwtSettings":
        """The same with the key that `key_env` names in its place.

        Raises:
            ConfigError: the variable is not set, or holds what no shared secret is.
        """
        if self.key_env is None:
            return self
        return JwtSettings(**self.model_dump(exclude={"key_env"}) | {"key": key_in(self.key_env)})


class UpstreamSettings(Settings):
    """One of several model APIs behind the gateway. A request goes to the first in the file that its tenant may use,
    that speaks its API and that serves its model. There is no load balancing and no second try elsewhere."""

    table = "proxy.upstreams"
    hides_texts = True

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    """What logs and metrics call it."""
    url: str
    """As `upstream` under `[proxy]`."""
    key_env: VariableName | None = None
    """Environment variable with the gateway's key for it."""
    key: SecretStr | None = None
    """Or the key itself."""
    auth: Auth = "auto"
    """As `upstream_auth` under `[proxy]`."""
    protocol: Literal["any", "openai", "anthropic"] = "any"
    """What it speaks. `openai`: it gets no `/v1/messages`. `anthropic`: it gets only requests of Anthropic's API
    (`/v1/messages`, or with an `anthropic-version` header), and its URL gets `/v1` unless it ends in that, as
    Anthropic's clients have it."""
    models: tuple[str, ...] = ()
    """Models that it serves, with `*`, `?` and `[…]` as in file names (`gpt-*`); empty: all. Case counts."""
    tenants: tuple[str, ...] = ()
    """Tenants that may use it; empty: all. To the others it does not exist."""

    @field_validator("key")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        return _checked_key(value)

    @model_validator(mode="after")
    def _is_url(self) -> Self:
        if self.key is not None and self.key_env is not None:
            raise ValueError(f"upstream {self.name!r}: give either key or key_env")
        _ = self.api
        return self

    @property
    def api(self) -> ApiUrl:
        """Where it is."""
        return ApiUrl.parse(self.url, "anthropic" if self.protocol == "anthropic" else None, f"upstream {self.name!r}")

    @property
    def takes_all(self) -> bool:
        """Whether it serves every model to every tenant, in every protocol."""
        return not self.models and not self.tenants and self.protocol == "any"

    def is_for(self, tenant: str, protocol: Protocol | None = None) -> bool:
        """Whether a tenant may use it; and, where one is given, whether it speaks a protocol."""
        return (not self.tenants or tenant in self.tenants) and (protocol is None or self.protocol in ("any", protocol))

    def serves(self, model: str) -> bool:
        """Whether a model is one of its own."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    def secret(self) -> SecretStr | None:
        """The key.

        Raises:
            ConfigError: its variable is not set, or holds what no key has.
        """
        return self.key if self.key_env is None else key_in(self.key_env)


class ProxySettings(Settings):
    """What the proxy needs to know. Only `upstream` has no default."""

    table = "proxy"
    hides_texts = True

    upstream: str | None = None
    """The model API behind the gateway, as far as `/chat/completions`: `https://api.openai.com/v1`,
    `http://localhost:8000`. Without a path: `/v1`; any other path is taken as it is (`/v1beta/openai`). A query
    (`?api-version=…`) goes with every call. One of `upstream` and `upstreams` is needed."""
    upstreams: tuple[UpstreamSettings, ...] = ()
    """Several of them, by model and tenant."""
    upstream_key: SecretStr | None = None
    """The gateway's own key for the upstream. Sent with requests that bring a popi key in `Authorization` or
    `x-api-key`, and with those that bring theirs in `x-popi-key` and none for the upstream."""
    upstream_auth: Auth = "auto"
    """How that key is sent: `Authorization: Bearer`, `x-api-key` or `api-key`. auto: `api-key` at Azure, `x-api-key` on
    Anthropic's API (`/v1/messages`, or an `anthropic-version` header), else Bearer."""
    other_paths: Literal["app", "admin", "nobody"] = "app"
    """Who may use paths under `/v1/` other than those that are personalised and `GET /v1/models`: app and admin
    keys, admin keys alone, or nobody. Behind one upstream key tenants share what lies there (files, batches, stored
    answers): with several tenants, choose `admin`. User keys never may."""
    client_keepalive_s: int = Field(default=75, ge=1)
    """Seconds that an idle connection of a client is kept. Above what clients and load balancers in front keep it
    (often 5 and 60), or a request of theirs may meet one that is just being closed."""

    block: str = Field(default=DEFAULT_BLOCK, min_length=1)
    """What is put in, around `{summary}`. Set it to what your generator was trained with, if it was."""
    summary_ms: float = Field(default=50.0, gt=0)
    """Milliseconds to wait for a summary, and for the key before it, up to half of them. After that the request goes
    on without."""

    identity_headers: tuple[str, ...] = (
        "x-popi-user",
        "x-litellm-end-user-id",
        "x-litellm-user_api_key_end_user_id",
        "x-openwebui-user-id",
    )
    """Headers that may name the end user; the first that is there counts."""
    identity_fields: tuple[Literal["safety_identifier", "user", "metadata.user_id"], ...] = (
        "safety_identifier",
        "user",
        "metadata.user_id",
    )
    """Fields of the body that may name the end user, where no header does."""
    ids_upstream: Literal["hashed", "stripped"] = "hashed"
    """What the upstream gets in place of user ids."""
    id_secret: SecretStr | None = Field(default=None)
    """Secret of those hashes. Unset: the store keeps one, drawn at the first start, the same for all processes on
    it."""
    id_secret_env: VariableName | None = None
    """Environment variable with that secret."""
    jwt: JwtSettings | None = None
    """Tokens that name the end user; unset: none are read."""

    max_body_bytes: int = Field(default=32 * 2**20, gt=0)
    """Maximum bytes of a JSON body, compressed or not. Such a body is held in memory."""
    max_body_ratio: int = Field(default=100, ge=1)
    """Maximum ratio by which a compressed body may inflate, beyond its first MiB."""
    max_body_values: int = Field(default=500_000, ge=1)
    """Maximum number of values in a JSON body: texts, numbers, lists, objects and so on."""
    max_body_depth: int = Field(default=128, ge=1, le=500)
    """Maximum levels of nested lists and objects in a JSON body."""
    body_bytes_at_once: int = Field(default=128 * 2**20, gt=0)
    """Maximum bytes of JSON bodies that one key may have in flight, in each process: as they were sent, and inflated.
    At least twice `max_body_bytes`."""
    max_upload_bytes: int = Field(default=512 * 2**20, gt=0)
    """Maximum bytes of any other body (files; passed on as they come)."""
    body_s: float = Field(default=60.0, gt=0)
    """Seconds that a client may take to send a JSON body."""
    requests_per_s: float | None = Field(default=None, gt=0)
    """Requests a second that one key may send, in each process; unset: any number."""
    burst: int = Field(default=100, ge=1)
    """How many requests of a key may come at once before `requests_per_s` holds them back."""
    concurrency: int = Field(default=1000, ge=1)
    """Requests of one key under way at once, in each process."""
    auth_s: float = Field(default=5.0, gt=0)
    """Seconds to wait for the store of keys before a request is refused."""

    metrics_for: Literal["anyone", "admin", "nobody"] = "anyone"
    """Who may read `/metrics` (numbers only: no key, tenant or user is in them)."""
    otel: bool = False
    """Trace requests with OpenTelemetry, set up by its own environment variables (`OTEL_…`)."""
    log_requests: bool = True
    """One line of log a request, without any text or id of a user."""

    @property
    def listed(self) -> tuple[UpstreamSettings, ...]:
        """All upstreams: `upstream` is one that serves everything."""
        if self.upstream is None:
            return self.upstreams
        return (UpstreamSettings(name=ONLY, url=self.upstream, key=self.upstream_key, auth=self.upstream_auth),)

    @model_validator(mode="after")
    def _one_upstream_or_several(self) -> Self:
        if (self.upstream is None) == (not self.upstreams):
            raise ValueError("give either upstream (--upstream) or tables [[proxy.upstreams]]")
        if self.upstreams and (self.upstream_key is not None or self.upstream_auth != "auto"):
            raise ValueError("upstream_key (--upstream-key-env) and upstream_auth go with upstream; here it is key_env")
        names = [one.name for one in self.upstreams]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"upstreams: {min(twice)!r} is there twice; each needs a name of its own")
        if self.upstream is not None:
            ApiUrl.parse(self.upstream, server="upstream")
        if self.id_secret is not None and self.id_secret_env is not None:
            raise ValueError("give either id_secret or id_secret_env")
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
        if self.body_bytes_at_once < 2 * self.max_body_bytes:
            raise ValueError("body_bytes_at_once must be at least twice max_body_bytes, or such a body never passes")
        return self

    @field_validator("block")
    @classmethod
    def _names_summary_once(cls, value: str) -> str:
        if value.count("{summary}") != 1:
            raise ValueError("must hold {summary} once")
        return value


def _checked_key(value: SecretStr | None) -> SecretStr | None:
    text = value.get_secret_value() if value is not None else "x"
    if not text or not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("is empty, or has blanks, line ends or letters that no key has")
    return value


def _header_name(value: str) -> str:
    name = value.lower()
    if not _HEADER.fullmatch(name):
        raise ValueError(f"{value!r} is not the name of a header")
    return name
