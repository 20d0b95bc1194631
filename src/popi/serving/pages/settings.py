"""The settings of the pages for users and the team, and of the team's sign-in at an identity provider."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from popi.config.section import VariableName
from popi.models.remote.key import checked_url
from popi.serving.pages.colour import checked_colour
from popi.serving.proxy.settings import Settings

LOGOS = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
"""Media types of logos, by file extension."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?")
"""The origin of a web page, in lower case."""


class OidcSettings(Settings):
    """Sign-in to `/admin` at your identity provider, in addition to admin keys. Register `[page] url` +
    `/admin/oidc/callback` there as the redirect URI."""

    table = "page.oidc"

    issuer: str
    """URL of the provider; `/.well-known/openid-configuration` is appended to discover its endpoints."""
    client_id: str = Field(pattern=r"\S")
    """The gateway's client id at the provider."""
    client_secret_env: VariableName | None = None
    """Environment variable that holds the client secret; if unset, a public client with PKCE only."""
    auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    """How the secret is sent."""
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    """Requested scopes; some providers need another one for groups."""
    claim: str = "groups"
    """The claim that determines the role, in the ID token or else in the userinfo: a string or a list."""
    admins: tuple[str, ...] = ()
    """Values of that claim for admins, who have the rights of an admin key on these pages."""
    viewers: tuple[str, ...] = ()
    """Values for viewers, who may read everything there but change nothing. All others are refused."""
    name_claim: str = "email"
    """The claim that names people in the audit log; `sub` if it is missing."""

    @field_validator("issuer")
    @classmethod
    def _is_issuer(cls, value: str) -> str:
        checked_url(value)
        return value

    @field_validator("scopes")
    @classmethod
    def _with_openid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in value:
            raise ValueError(f"must include 'openid'; got {list(value)}")
        return value

    @model_validator(mode="after")
    def _has_members(self) -> Self:
        if not self.admins and not self.viewers:
            raise ValueError("set values of the claim in admins or viewers; without any, nobody can sign in")
        return self


class PageSettings(Settings):
    """The pages `/me` and `/admin`."""

    table = "page"

    name: str = Field(default="Your assistant", pattern=r"\S")
    """The product's name, as users know it."""
    url: str | None = None
    """The gateway's public URL (`https://chat.example`); if unset, taken from the request for a link."""
    app: str | None = None
    """URL of the link back to the app (`https://shop.example/chat`, or the app's own scheme); no link if unset."""
    language: Literal["en", "de", "es", "fr", "zh", "ja", "ar"] | None = None
    """Language of users' pages; if unset, the best match for the user's browser. The team's pages are in English."""
    logo: Path | None = None
    """A logo shown next to the product's name: an SVG, PNG, WebP or JPEG file."""
    colour: str | None = None
    """The product's colour as `#rrggbb`; it needs a contrast of 4.5 (WCAG) on a light background, and is lightened in
    dark mode. Green if unset."""
    frame_ancestors: tuple[str, ...] = ()
    """Origins that may embed users' pages in a frame (`https://shop.example`). They then need TLS, and their cookie is
    `SameSite=None; Secure; Partitioned`. The team's pages can't be embedded."""
    link_minutes: float = Field(
        default=10.0, gt=0, le=60
    )  # erasures, which void older links, are remembered for an hour
    """How long a link to a user's page is valid. It works once."""
    session_minutes: float = Field(default=60.0, gt=0, le=7 * 24 * 60)
    """How long people stay signed in."""
    model: str | None = Field(default=None, pattern=r"\S")
    """The upstream's model for the page "Try it"; no such page if unset."""
    protocol: Literal["openai", "anthropic"] = "openai"
    """The API that the upstream speaks, for that page."""
    oidc: OidcSettings | None = None
    """Sign-in of the team at an identity provider; needs `url`."""

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.oidc is not None and self.url is None:
            raise ValueError("oidc needs url, the address that the provider redirects browsers back to")
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
            raise ValueError(f"must be a URL such as https://shop.example/chat; got {value!r}")
        return value

    @field_validator("logo")
    @classmethod
    def _is_picture(cls, value: Path | None) -> Path | None:
        if value is not None and value.suffix.lower() not in LOGOS:
            raise ValueError(f"must be a file with one of the extensions {', '.join(LOGOS)}; got {value.name!r}")
        return value

    @field_validator("colour")
    @classmethod
    def _is_colour(cls, value: str | None) -> str | None:
        return value if value is None else checked_colour(value)

    @field_validator("frame_ancestors")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"an origin has a scheme and a host, such as https://shop.example; got {origin!r}")
        return value
