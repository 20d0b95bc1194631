"""URLs of chat APIs: how they are parsed, everywhere, and how the key is sent."""

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
"""Query parameters whose values must not be in settings files, where URLs are stored."""
_HEADERS = {"bearer": ("Authorization", "Bearer {}"), "x-api-key": ("x-api-key", "{}"), "api-key": ("api-key", "{}")}


@dataclass(frozen=True)
class ApiUrl:
    """The URL of a chat API, split into the parts of every call's URL.

    A URL without a path means `/v1`. Any other path is used unchanged (`/v1beta/openai`, `/api/paas/v4`), and
    `/chat/completions` is appended to it. A query (`?api-version=2024-10-21`) is sent with every call.

    Attributes:
        base: the URL to which paths are appended, without a trailing slash; safe to log, unlike the query.
        host: in lower case.
        query: without the question mark; may be empty.
    """

    base: str
    host: str
    query: str = ""

    @classmethod
    def parse(cls, url: str, protocol: Protocol | None = None, server: str = "model API") -> "ApiUrl":
        """Parse a URL.

        Args:
            url: the URL as entered by the user.
            protocol: the server's protocol. Since Anthropic's clients append `/v1/messages` to their base URL, `/v1` is
                added for `anthropic` unless the URL ends in it.
            server: the server's description in error messages.

        Raises:
            ConfigError: if it is not an http or https URL, has a user, password, fragment or a key in its query, or is
                not the base URL of the endpoints.
        """
        given = url.strip()
        try:
            parts = urlsplit(given)
            host, _ = parts.hostname, parts.port  # accessing the port validates it
        except ValueError as error:
            raise ConfigError(f"the URL of the {server} is not valid ({error})") from None
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise ConfigError(
                f"the URL of the {server} at {host} must have no user, password or fragment; "
                "put a key into an environment variable"
            )
        if parts.scheme not in ("http", "https") or not host:
            shown = f"; got {given.split('?')[0]!r}" if "@" not in given else ""
            raise ConfigError(f"the URL of the {server} must begin with https:// or http:// and name a host{shown}")
        path = parts.path.rstrip("/")
        shown = f"{parts.scheme}://{parts.netloc}{path}"
        if re.search(r"[\x00-\x20\x7f\\]", given) or "//" in path or {".", ".."} & set(path.split("/")):
            raise ConfigError(f"the URL of the {server} has blanks, or '//', '.' or '..' in its path; got {shown!r}")
        if (end := next((endpoint for endpoint in _ENDPOINTS if path.endswith(endpoint)), None)) is not None:
            raise ConfigError(
                f"the URL of the {server} must be the base URL, without {end}; use {shown.removesuffix(end)!r}"
            )
        if not path or (protocol == "anthropic" and not path.endswith("/v1")):
            path += "/v1"
        try:
            base = URL(f"{parts.scheme}://{parts.netloc}{path}")
        except ValueError as error:
            raise ConfigError(f"the URL of the {server} is not valid ({error})") from None
        for name, _ in parse_qsl(parts.query, keep_blank_values=True):
            if _SECRETS.fullmatch(name):
                raise ConfigError(
                    f"the URL of the {server} has {name!r} in its query; put a key into an environment variable, and "
                    "set its name with key_env (--key-env)"
                )
        query = URL.build(path="/", query_string=parts.query).raw_query_string
        return cls(str(base), host.lower(), query)

    def at(self, path: str, query: str = "") -> str:
        """The URL of an endpoint, percent-encoded.

        Args:
            path: appended to the base, such as `/chat/completions`.
            query: the call's query. Parameters that are also in the API's own query are removed: the setting takes
                precedence.
        """
        if self.query:
            names = {name for name, _ in parse_qsl(self.query, keep_blank_values=True)}
            pairs = [(pair, parse_qsl(pair, keep_blank_values=True)) for pair in query.split("&")]
            query = "&".join((self.query, *(pair for pair, read in pairs if read and read[0][0] not in names)))
        return f"{self.base}{path}?{query}" if query else self.base + path

    def key_header(self, auth: Auth, protocol: Protocol) -> tuple[str, str]:
        """Name and format of the header with the key.

        auto: `api-key` for Azure, `x-api-key` for Anthropic's protocol, otherwise `Authorization: Bearer`.
        """
        if auth == "auto":
            auth = "api-key" if _AZURE.search(self.host) else "x-api-key" if protocol == "anthropic" else "bearer"
        return _HEADERS[auth]
