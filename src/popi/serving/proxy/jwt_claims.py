"""Tokens of an identity provider: whose they are, once their signature is verified. Fails closed."""

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

FRESH_S = 3600.0
"""Seconds after which the issuer's keys are fetched anew."""
USABLE_S = 86_400.0
"""Seconds for which old keys still count where they can't be fetched."""
BETWEEN_S = 30.0
"""Least seconds between two fetches: a token with a made-up key id must not make us hammer the issuer."""


class Tokens:
    """Reads the user id off tokens.

    Args:
        settings: keys, algorithms, what must be claimed.
        fetch: gets the bytes at a URL; needed with `jwks_url`.

    Raises:
        ConfigError: the public key can't be read, or the variable with the shared secret is not set.
    """

    def __init__(self, settings: JwtSettings, fetch: Fetch) -> None:
        self._settings = settings = settings.with_key()
        self._key: Any = None
        self._issuer = _IssuerKeys(settings.jwks_url, fetch) if settings.jwks_url is not None else None
        if settings.key is not None:
            try:
                algorithm = jwt.get_algorithm_by_name(settings.algorithms[0])
                self._key = algorithm.prepare_key(settings.key.get_secret_value())
            except (jwt.PyJWTError, ValueError, TypeError, NotImplementedError):
                raise ConfigError(
                    f"the key for tokens is not one for {settings.algorithms[0]}; give a public key in PEM, or set the "
                    "algorithms that it is for"
                ) from None

    async def user_id(self, token: str) -> str:
        """The user id that a token claims.

        Raises:
            AuthError: 401, the token is not valid, or not for us; 503, the issuer's keys can't be had.
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
                # `sub` need not be a string for us: some issuers number their users.
                options={"require": ["exp", settings.claim], "verify_sub": False},
            )
        except jwt.ExpiredSignatureError:
            raise AuthError("the token that names the user has expired; get a new one") from None
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            # The kind of the fault only: messages may quote the token.
            raise AuthError(f"the token that names the user does not hold ({type(error).__name__})") from None
        value = claims.get(settings.claim)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise AuthError(f"the token has no user id in its claim {settings.claim!r}")
        return value


class _IssuerKeys:
    """The issuer's public keys by their ids, fetched when needed.

    A fetch is a task of its own, which all share who wait for it: a client that hangs up does not take it along. Only
    they wait whose key is not at hand.
    """

    def __init__(self, url: str, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._fetch, self._clock = url, fetch, clock
        self._keys: dict[str | None, Any] = {}
        self._fetched = self._tried = -float("inf")
        self._renewal: asyncio.Task[None] | None = None

    async def key_for(self, header: dict[str, Any]) -> Any:
        kid = header.get("kid")
        known, age = self._known(kid), self._clock() - self._fetched
        if not known or age > FRESH_S:
            renewal = self._renewing()
            if renewal is not None and (not known or age > USABLE_S):
                await asyncio.shield(renewal)
        if not self._keys or self._clock() - self._fetched > USABLE_S:
            raise AuthError("the keys of the tokens' issuer can't be fetched now; try again soon", status=503)
        if kid is None and len(self._keys) == 1:  # which one is meant is plain
            return next(iter(self._keys.values()))
        if kid not in self._keys:
            raise AuthError("the token is signed with a key that its issuer does not list")
        return self._keys[kid]

    def _known(self, kid: object) -> bool:
        return kid in self._keys or (kid is None and len(self._keys) == 1)

    def _renewing(self) -> "asyncio.Task[None] | None":
        """The fetch under way, or a new one; None: the last is over, and was begun too short a time ago."""
        if self._renewal is None or self._renewal.done():
            if self._clock() - self._tried < BETWEEN_S:
                return None
            self._tried = self._clock()
            self._renewal = asyncio.get_running_loop().create_task(self._renew())
        return self._renewal

    async def _renew(self) -> None:
        try:
            entries = json.loads(await self._fetch(self._url))["keys"]
            keys = {}
            for entry in entries:
                if entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
                    continue  # a shared secret in a public list is none
                try:
                    keys[entry.get("kid")] = jwt.PyJWK(entry).key
                except jwt.PyJWTError:
                    continue  # of a kind that we can't read; others may do
        except Exception as error:  # whatever the issuer's server does: old keys count on, for a while
            why = str(error) if isinstance(error, HttpFault) else type(error).__name__
            LOGGER.error("the keys of the tokens' issuer can't be fetched", extra={"fields": {"error": why}})
            return
        if keys:
            self._keys, self._fetched = keys, self._clock()
