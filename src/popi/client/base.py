"""What the blocking and the async client have in common: the key, the URL and how a request is built."""

import os
from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import httpx2
from pydantic import SecretStr

from popi.client.exchange import Request
from popi.errors import ConfigError
from popi.models.remote.key import checked_url, checked_variable
from popi.models.remote.retries import Retries

KEY_ENV = "POPI_KEY"
Http = TypeVar("Http", httpx2.Client, httpx2.AsyncClient)


class BaseClient(ABC, Generic[Http]):
    """The common base of both clients."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        key_env: str = KEY_ENV,
        tenant: str | None = None,
        timeout: float = 60.0,
        retries: Retries | None = None,
        transport: Any = None,
    ) -> None:
        """Create a client for a gateway; nothing is sent yet.

        Args:
            url: the gateway's URL, such as ``http://localhost:8600``, without ``/v1``.
            key: an app key can access all users of its tenant, a user key only its own profile. Default: from the
                environment.
            key_env: environment variable with the key, used if `key` is None.
            tenant: the users' tenant, for an admin key.
            timeout: maximum seconds to connect, and without a byte from the gateway.
            retries: when to retry after 429, 502, 503, 504 or a failed connection.
            transport: an httpx2 transport to use instead of the network, for tests and unusual networks.

        Raises:
            ConfigError: the URL is invalid, there is no key, or the key or the tenant's name can't be sent.
        """
        self.url = checked_url(url, "gateway")
        self._key = SecretStr(_checked_key(key, key_env))
        self._retries = retries or Retries()
        headers = {} if tenant is None else {"x-popi-tenant": _sendable(tenant, "the tenant's name")}
        # A redirect would send the key to another server.
        options: dict[str, Any] = {} if transport is None else {"transport": transport}
        self._http: Http = self._open(headers=headers, timeout=timeout, follow_redirects=False, **options)

    @staticmethod
    @abstractmethod
    def _open(**settings: Any) -> Http: ...

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _request(self, request: Request) -> httpx2.Request:
        content = {"content-type": "application/json"} if request.content is not None else {}
        sent = {**request.headers, **content, "authorization": f"Bearer {self._key.get_secret_value()}"}
        return self._http.build_request(request.method, self.url + request.path, headers=sent, content=request.content)


def _checked_key(key: str | None, variable: str) -> str:
    """The key to send.

    Raises:
        ConfigError: it is missing, or can't be sent in a header.
    """
    if key is None:
        checked_variable(variable)
    value = (os.environ.get(variable, "") if key is None else key).strip()
    if not value:
        raise ConfigError(f"no key for the gateway: pass one or set {variable}; create a key with `popi keys create`")
    return _sendable(value, "the key for the gateway")


def _sendable(value: str, name: str) -> str:
    if not value or not (value.isascii() and value.isprintable() and " " not in value):
        raise ConfigError(f"{name} is empty, or has spaces, line breaks or other characters that are not allowed")
    return value


def reason(error: httpx2.HTTPError) -> str:
    """Why there was no complete reply."""
    kind = "no answer in time" if isinstance(error, httpx2.TimeoutException) else "the connection failed"
    return f"{kind} ({error or type(error).__name__})"
