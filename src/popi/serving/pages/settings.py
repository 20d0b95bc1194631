"""What the pages need to know: `[page]` of the gateway's settings."""

from dataclasses import dataclass
from typing import Literal

from popi.backends.key import checked_url
from popi.errors import ConfigError

LONGEST_LINK = 60.0
"""Minutes; for as long an erasure is noted, and ends the links that were given before it."""
LONGEST_SESSION = 7 * 24 * 60.0


@dataclass(frozen=True)
class PageSettings:
    """Settings of the pages.

    Attributes:
        name: the product's, as users know it.
        url: where users reach the gateway (`https://chat.example`); unset: where the request for a link came to.
        link_minutes: how long a link to a user's page can be opened, once; at most 60.
        session_minutes: how long somebody stays signed in; at most a week.
        model: the upstream's model that answers on "Try it"; unset: there is no such page.
        protocol: what the upstream speaks, for that page.

    Raises:
        ConfigError: one of them is not what it should be.
    """

    name: str = "Your assistant"
    url: str | None = None
    link_minutes: float = 10.0
    session_minutes: float = 60.0
    model: str | None = None
    protocol: Literal["openai", "anthropic"] = "openai"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigError(f"page.name must be the product's name; got {self.name!r}")
        for field, most in (("link_minutes", LONGEST_LINK), ("session_minutes", LONGEST_SESSION)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
                raise ConfigError(f"page.{field} must be minutes, above 0 and at most {most:_}; got {value!r}")
        if self.url is not None:
            object.__setattr__(self, "url", checked_url(str(self.url)).rstrip("/"))
        if self.model is not None and (not isinstance(self.model, str) or not self.model.strip()):
            raise ConfigError(f"page.model must be a model's name; got {self.model!r}")
        if self.protocol not in ("openai", "anthropic"):
            raise ConfigError(f"page.protocol must be openai or anthropic; got {self.protocol!r}")
