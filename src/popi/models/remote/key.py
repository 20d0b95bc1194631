"""The key of a model API: from the environment only, and shown to nobody but that API."""

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
        url: where the key would be sent.
        named: the environment variable that the user named; it must be set.
        usual: the protocol's own variable, read where none was named. Its key goes over https or stays on this
            machine: a vendor's key should not cross a network in the clear to some other server by accident.

    Returns:
        The key, or None: many servers of one's own need none.

    Raises:
        ConfigError: the named variable is not set, or a key could not stand in an HTTP header.
    """
    if named is None and not _private(urlsplit(url)):
        return None
    if named is not None:
        return key_in(named)
    return key_in(usual) if os.environ.get(usual, "").strip() else None


def key_in(variable: str) -> SecretStr:
    """The key in an environment variable.

    Raises:
        ConfigError: the variable is not set, the key could not stand in an HTTP header, or this is no variable's name.
    """
    checked_variable(variable)
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"the key should be in the environment variable {variable}, but that is not set (or empty)")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"the key in {variable} has blanks, line ends or letters that no key has; set it anew")
    return SecretStr(key)


def checked_variable(name: str) -> None:
    """Refuse what is no name of an environment variable, and show it nowhere: it may be the key itself.

    Raises:
        ConfigError: it is none.
    """
    if not _VARIABLE.fullmatch(name):
        raise ConfigError(
            "name the environment variable that holds the key, not the key; what was given is no variable's name "
            "(letters, digits and underscores)"
        )


def checked_url(url: str, what: str = "model API") -> str:
    """The URL of a server, without a slash at its end; `what` it is the URL of, for errors.

    Raises:
        ConfigError: it is none of http or https, or carries a password or a query: both would end up in logs.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port  # the port is parsed only now
    except ValueError as error:
        raise ConfigError(f"the URL of the {what} is not valid ({error})") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"the URL of the {what} at {host} must have no user, password, query or fragment; "
            "a key belongs into an environment variable"
        )
    if parts.scheme not in ("http", "https") or not host:
        shown = "" if "@" in url else f"; got {url!r}"  # user:password@host, without its scheme
        raise ConfigError(f"the URL of the {what} must begin with https:// or http:// and name a host{shown}")
    return parts.geturl().rstrip("/")


def _private(parts: SplitResult) -> bool:
    return parts.scheme == "https" or parts.hostname in LOCAL
