"""Verify an identity provider's tokens and read the user id from them. Fails closed."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import jwt

from popi.errors import AuthError, ConfigError
from popi.models.remote.http import HttpFault
from popi.serving.proxy.logs import LOGGER
from popi.serving.proxy.settings import JwtSettings

Fetch = Callable[[str], Awaitable[bytes]]

REFRESH_AFTER_S = 3600.0
"""Seconds after which the issuer's keys are refetched."""
MAX_AGE_S = 86_400.0
"""Seconds for which old keys remain valid if they can't be refetched."""
MIN_INTERVAL_S = 30.0
"""Minimum seconds between fetches, so that tokens with made-up key ids can't make us hammer the issuer."""


class Tokens:
    """Reads the user id from tokens.

    Args:
        settings: keys, algorithms and required claims.
        fetch: fetches the bytes at a URL; used with `jwks_url`.

    Raises:
        ConfigError: the public key can't be read, or the shared secret's environment variable is not set.
    """

    def __init__(self, settings: JwtSettings, fetch: Fetch) -> None:
        self._settings = settings = settings.resolved()
        self._key: Any = None
        self._issuer = _IssuerKeys(settings.jwks_url, fetch) if settings.jwks_url is not None else None
        if settings.key is not None:
            try:
                algorithm = jwt.get_algorithm_by_name(settings.algorithms[0])
                self._key = algorithm.prepare_key(settings.key.get_secret_value())
            except (jwt.PyJWTError, ValueError, TypeError, NotImplementedError):
                raise ConfigError(
                    f"the key for tokens does not work with {settings.algorithms[0]}; give a public key in PEM, or set "
                    "the algorithms that it is for"
                ) from None

    async def user_id(self, token: str) -> str:
        """The user id in a token's claim.

        Raises:
            AuthError: 401, the token is invalid or not for us; 503, the issuer's keys are unavailable.
        """
        settings = self._settings
        try:
            key = self._key if self._issuer is None else await self._issuer.key_for(jwt.get_unverified_header(token))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(settings.algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
                # Don't require `sub` to be a string: some issuers number their users.
                options={"require": ["exp", settings.claim], "verify_sub": False},
            )
        except jwt.ExpiredSignatureError:
            raise AuthError("the token that names the user has expired; get a new one") from None
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            # Only the error's type: its message may quote the token.
            raise AuthError(f"the token that names the user is not valid ({type(error).__name__})") from None
        value = claims.get(settings.claim)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise AuthError(f"the token has no user id in its claim {settings.claim!r}")
        return value


class _IssuerKeys:
    """The issuer's public keys by id, fetched when needed.

    A fetch runs in its own task, shared by all requests that wait for it, so that a client that hangs up does not
    cancel it. Requests whose key is already known don't wait.
    """

    def __init__(self, url: str, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._fetch, self._clock = url, fetch, clock
        self._keys: dict[str | None, Any] = {}
        self._fetched = self._tried = -float("inf")
        self._refresh_task: asyncio.Task[None] | None = None

    async def key_for(self, header: dict[str, Any]) -> Any:
        kid = header.get("kid")
        known, age = self._has(kid), self._clock() - self._fetched
        if not known or age > REFRESH_AFTER_S:
            refresh = self._refreshing()
            if refresh is not None and (not known or age > MAX_AGE_S):
                await asyncio.shield(refresh)
        if not self._keys or self._clock() - self._fetched > MAX_AGE_S:
            raise AuthError("the token issuer's keys can't be fetched right now; try again soon", status=503)
        if kid is None and len(self._keys) == 1:  # unambiguous
            return next(iter(self._keys.values()))
        if kid not in self._keys:
            raise AuthError("the token is signed with a key that its issuer does not list")
        return self._keys[kid]

    def _has(self, kid: object) -> bool:
        return kid in self._keys or (kid is None and len(self._keys) == 1)

    def _refreshing(self) -> "asyncio.Task[None] | None":
        """The fetch in progress, or a new one; None if the last one started too recently."""
        if self._refresh_task is None or self._refresh_task.done():
            if self._clock() - self._tried < MIN_INTERVAL_S:
                return None
            self._tried = self._clock()
            self._refresh_task = asyncio.get_running_loop().create_task(self._refresh())
        return self._refresh_task

    async def _refresh(self) -> None:
        try:
            entries = json.loads(await self._fetch(self._url))["keys"]
            keys = {}
            for entry in entries:
                if entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
                    continue  # a shared secret that is published is no secret
                try:
                    keys[entry.get("kid")] = jwt.PyJWK(entry).key
                except jwt.PyJWTError:
                    continue  # an unsupported key type; others may work
        except Exception as error:  # whatever goes wrong at the issuer, old keys stay valid for a while
            reason = str(error) if isinstance(error, HttpFault) else type(error).__name__
            LOGGER.error("can't fetch the token issuer's keys", extra={"fields": {"error": reason}})
            return
        if keys:
            self._keys, self._fetched = keys, self._clock()
