"""Where a chat API is: the one reading of every URL that names one, and how its key is sent."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from yarl import URL

from popi.errors import ConfigError

Auth = Literal["auto", "bearer", "x-api-key", "api-key"]
Protocol = Literal["openai", "anthropic"]

_ENDPOINTS = ("/chat/completions", "/completions", "/responses", "/messages", "/embeddings")
_AZURE = re.compile(r"\.(openai|cognitiveservices|services\.ai)\.azure\.(com|us|cn)$")
_SECRETS = re.compile(
    r"(api[-_]?|access[-_]?|auth[-_]?|subscription[-_]?)?(key|token)|sig|signature|secret|password", re.IGNORECASE
)
"""Names in a query whose value is no matter for a settings file, which is where a URL ends up."""
_HEADERS = {"bearer": ("Authorization", "Bearer {}"), "x-api-key": ("x-api-key", "{}"), "api-key": ("api-key", "{}")}


@dataclass(frozen=True)
class ApiUrl:
    """The URL of a chat API, split into what every call is made of.

    A URL without a path means `/v1`. Any other path is taken as it is given (`/v1beta/openai`, `/api/paas/v4`), and
    `/chat/completions` is put behind it. A query (`?api-version=2024-10-21`) goes with every call.

    Attributes:
        base: what paths are put behind, without a slash at its end; fit for logs, which the query may not be.
        host: in lower case.
        query: without the question mark; may be empty.
    """

    base: str
    host: str
    query: str = ""

    @classmethod
    def parse(cls, url: str, protocol: Protocol | None = None, what: str = "model API") -> "ApiUrl":
        """Read a URL.

        Args:
            url: as it was given.
            protocol: what is spoken there. Anthropic's clients put `/v1/messages` behind their base URL, and so the URL
                of `anthropic` gets `/v1` unless it ends in it.
            what: it is the URL of, for errors.

        Raises:
            ConfigError: it is no URL of http or https, has a user, password, fragment or a key in its query, or names
                more or less than the place that endpoints are put behind.
        """
        given = url.strip()
        try:
            parts = urlsplit(given)
            host, _ = parts.hostname, parts.port  # the port is parsed only now
        except ValueError as error:
            raise ConfigError(f"the URL of the {what} is not valid ({error})") from None
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise ConfigError(
                f"the URL of the {what} at {host} must have no user, password or fragment; "
                "a key belongs into an environment variable"
            )
        if parts.scheme not in ("http", "https") or not host:
            shown = f"; got {given.split('?')[0]!r}" if "@" not in given else ""
            raise ConfigError(f"the URL of the {what} must begin with https:// or http:// and name a host{shown}")
        path = parts.path.rstrip("/")
        shown = f"{parts.scheme}://{parts.netloc}{path}"
        if re.search(r"[\x00-\x20\x7f\\]", given) or "//" in path or {".", ".."} & set(path.split("/")):
            raise ConfigError(f"the URL of the {what} has blanks, or '//', '.' or '..' in its path; got {shown!r}")
        if (end := next((one for one in _ENDPOINTS if path.endswith(one)), None)) is not None:
            raise ConfigError(
                f"the URL of the {what} is where endpoints are put behind: leave {end} off, as in "
                f"{shown.removesuffix(end)!r}"
            )
        if not path or (protocol == "anthropic" and not path.endswith("/v1")):
            path += "/v1"
        try:
            base = URL(f"{parts.scheme}://{parts.netloc}{path}")
        except ValueError as error:
            raise ConfigError(f"the URL of the {what} is not valid ({error})") from None
        for name, _ in parse_qsl(parts.query, keep_blank_values=True):
            if _SECRETS.fullmatch(name):
                raise ConfigError(
                    f"the URL of the {what} has {name!r} in its query; a key belongs into an environment variable, "
                    "which key_env (--key-env) names"
                )
        query = URL.build(path="/", query_string=parts.query).raw_query_string
        return cls(str(base), host.lower(), query)

    def at(self, path: str, query: str = "") -> str:
        """The URL of an endpoint, with its escapes.

        Args:
            path: as it comes behind the base, `/chat/completions`.
            query: of the call. Names that the API's own query has are taken out of it: the setting counts.
        """
        if self.query:
            names = {name for name, _ in parse_qsl(self.query, keep_blank_values=True)}
            pairs = [(pair, parse_qsl(pair, keep_blank_values=True)) for pair in query.split("&")]
            query = "&".join((self.query, *(pair for pair, read in pairs if read and read[0][0] not in names)))
        return f"{self.base}{path}?{query}" if query else self.base + path

    def key_header(self, auth: Auth, protocol: Protocol) -> tuple[str, str]:
        """Name and form of the header with the key.

        auto: `api-key` at Azure, `x-api-key` for Anthropic's protocol, else `Authorization: Bearer`.
        """
        if auth == "auto":
            auth = "api-key" if _AZURE.search(self.host) else "x-api-key" if protocol == "anthropic" else "bearer"
        return _HEADERS[auth]
