"""The key of a model API: read only from the environment, and only ever sent to that API."""

import os
import re
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from popi.errors import ConfigError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LOCAL = ("localhost", "127.0.0.1", "::1")


def read_key(url: str, named: str | None, usual: str) -> SecretStr | None:
    """The key for the server at `url`.

    Args:
        url: the URL that the key would be sent to.
        named: the environment variable configured by the user, which must be set.
        usual: the protocol's default variable, read if none is configured. Its key is only sent over https or on this
            machine, so that a vendor's key is not accidentally sent to another server unencrypted.

    Returns:
        The key, or None, since many self-hosted servers need none.

    Raises:
        ConfigError: if the configured variable is not set, or the key is not allowed in an HTTP header.
    """
    if named is None and not _private(urlsplit(url)):
        return None
    if named is not None:
        return key_in(named)
    return key_in(usual) if os.environ.get(usual, "").strip() else None


def key_in(variable: str) -> SecretStr:
    """The key in an environment variable.

    Raises:
        ConfigError: if the variable is not set, its name is invalid, or the key is not allowed in an HTTP header.
    """
    checked_variable(variable)
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the key should be in the environment variable {variable}, but that is not set (or empty)")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"the key in {variable} contains blanks, line breaks or other invalid characters; correct it")
    return SecretStr(key)


def checked_variable(name: str) -> None:
    """Refuse an invalid name of an environment variable without showing it, since it may be the key itself.

    Raises:
        ConfigError: if the name is invalid.
    """
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(
            "set the name of the environment variable that holds the key, not the key itself; the value is not a valid "
            "variable name (letters, digits and underscores)"
        )


def checked_url(url: str, server: str = "model API") -> str:
    """The URL of a server, without a trailing slash; `server` is its description in error messages.

    Raises:
        ConfigError: if it is not an http or https URL, or has a password or a query, which would end up in logs.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port  # accessing the port validates it
    except ValueError as error:
        raise ConfigError(f"the URL of the {server} is not valid ({error})") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"the URL of the {server} at {host} must have no user, password, query or fragment; "
            "put a key into an environment variable"
        )
    if parts.scheme not in ("http", "https") or not host:
        shown = "" if "@" in url else f"; got {url!r}"  # it may be user:password@host without a scheme
        raise ConfigError(f"the URL of the {server} must begin with https:// or http:// and name a host{shown}")
    return parts.geturl().rstrip("/")


def _private(parts: SplitResult) -> bool:
    return parts.scheme == "https" or parts.hostname in LOCAL
