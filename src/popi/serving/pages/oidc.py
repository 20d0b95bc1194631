"""Sign-in of the team by OpenID Connect: the authorization code flow with PKCE, state and nonce.

Authlib speaks the protocol and checks the ID token; requests go out as all of popi's do (popi.models.remote.http), with
the proxies, certificates and limits of `[http]`.
"""

import asyncio
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

from authlib.common.security import generate_token
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.client import OAuth2Client
from authlib.oauth2.rfc6749.errors import OAuth2Error
from authlib.oauth2.rfc6749.parameters import parse_authorization_code_response, prepare_token_request
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from yarl import URL

from popi.config.http import HttpConfig
from popi.errors import ConfigError
from popi.models.remote.http import Headers, HttpClient, HttpFault
from popi.serving.pages.login import CALLBACK, LOGIN_SECONDS, Login, Member, NotAMember, SignInFailed
from popi.serving.settings import OidcSettings

FRESH_SECONDS = 3600.0
"""After this, the provider's metadata are fetched again; its keys are with every sign-in."""
LEEWAY_SECONDS = 60
MOST_BYTES = 2**20
SECONDS = 20.0
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures that only the provider can make: never `none`, nor one by a secret that is shared."""


class Oidc:
    """Signs in members of the team.

    Args:
        settings: of the provider.
        url: where the gateway is reached.
        http: how the provider is reached.

    Raises:
        ConfigError: the client's secret is not there.
    """

    def __init__(self, settings: OidcSettings, url: str, http: HttpConfig) -> None:
        self._settings, self._redirect = settings, url + CALLBACK
        secret = None
        if settings.client_secret_env is not None:
            secret = os.environ.get(settings.client_secret_env, "").strip()
            if not secret:
                raise ConfigError(
                    f"page.oidc.client_secret_env: the environment variable {settings.client_secret_env} is not set"
                )
        self._auth = ClientAuth(settings.client_id, secret, settings.auth if secret else "none")
        self._client = OAuth2Client(
            None,
            client_id=settings.client_id,
            scope=" ".join(settings.scopes),
            redirect_uri=self._redirect,
            code_challenge_method="S256",
        )
        self._http = HttpClient(http, decompress=True)
        self._metadata: dict[str, Any] = {}
        self._fetched = -FRESH_SECONDS

    async def begin(self) -> tuple[str, Login]:
        """Where to send the browser, and what it has to keep meanwhile.

        Raises:
            SignInFailed: the provider can't be reached, or is not the one that the settings name.
        """
        login = Login(generate_token(32), generate_token(32), generate_token(64), time.time() + LOGIN_SECONDS)
        endpoint = (await self._discovered())["authorization_endpoint"]
        url, _ = self._client.create_authorization_url(
            endpoint, state=login.state, code_verifier=login.verifier, nonce=login.nonce
        )
        return str(url), login

    async def finish(self, query: str, login: Login) -> Member:
        """Who comes back from the provider.

        Args:
            query: what the provider has added to our address.
            login: what `begin` gave this browser.

        Raises:
            SignInFailed: the provider did not sign them in, it is not an answer to what `begin` asked, or it does not
                hold.
            NotAMember: they have no role here.
        """
        if time.time() > login.until:
            raise SignInFailed("it took too long")
        try:
            if error := dict(parse_qsl(query)).get("error"):
                raise SignInFailed(f"the provider refused it ({error[:40]!r})")
            code = parse_authorization_code_response(f"{self._redirect}?{query}", login.state)["code"]
            token = await self._token(code, login.verifier)
            claims = await self._claims(token, login.nonce)
        except (OAuth2Error, JoseError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SignInFailed(f"the provider's answer does not hold ({type(error).__name__})") from None
        return self._member(claims)

    async def _token(self, code: str, verifier: str) -> dict[str, Any]:
        endpoint = (await self._discovered())["token_endpoint"]
        body = prepare_token_request(
            "authorization_code", redirect_uri=self._redirect, code=code, code_verifier=verifier
        )
        plain = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        url, headers, body = self._auth.prepare("POST", endpoint, plain, body)
        return await self._asked("POST", url, list(headers.items()), str(body).encode())

    async def _claims(self, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        """What the ID token says, and what the provider says beside it, of the same person."""
        about = await self._discovered()
        keys = KeySet.import_key_set(await self._asked("GET", about["jwks_uri"]))  # type: ignore[arg-type]
        offered = about.get("id_token_signing_alg_values_supported") or ["RS256"]
        registry = JWSRegistry(algorithms=[one for one in ALGORITHMS if one in offered], strict_check_header=False)
        decoded = jwt.decode(token["id_token"], keys, registry=registry)
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            {
                "iss": {"essential": True, "value": about["issuer"]},
                "aud": {"essential": True, "value": self._settings.client_id},
            },
            {"nonce": nonce, "client_id": self._settings.client_id, "access_token": token["access_token"]},
        )
        claims.validate(leeway=LEEWAY_SECONDS)
        more: dict[str, Any] = {}
        if "userinfo_endpoint" in about and self._settings.claim not in claims:
            bearer = [("Authorization", f"Bearer {token['access_token']}"), ("Accept", "application/json")]
            more = await self._asked("GET", about["userinfo_endpoint"], bearer)
            if more.get("sub") != claims["sub"]:
                raise SignInFailed("the provider speaks of two persons")
        return more | dict(claims)

    def _member(self, claims: Mapping[str, Any]) -> Member:
        values = claims.get(self._settings.claim)
        mine = {str(one) for one in (values if isinstance(values, list) else [values]) if one is not None}
        name = str(claims.get(self._settings.name_claim) or claims["sub"])[:200]
        if mine & set(self._settings.admins):
            return Member(name, "admin")
        if mine & set(self._settings.viewers):
            return Member(name, "viewer")
        raise NotAMember

    async def _discovered(self) -> dict[str, Any]:
        if time.monotonic() - self._fetched >= FRESH_SECONDS:
            url = self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
            found = await self._asked("GET", url)
            if str(found.get("issuer", "")).rstrip("/") != self._settings.issuer.rstrip("/"):
                raise SignInFailed("the provider calls itself by another name than page.oidc.issuer")
            self._metadata, self._fetched = found, time.monotonic()
        return self._metadata

    async def _asked(self, method: str, url: str, headers: Headers = (), body: bytes | None = None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(SECONDS), self._http.session() as session:
                answer = await session.send(method, URL(url, encoded=True), headers, body)
                whole = await answer.whole(MOST_BYTES)
        except HttpFault as fault:
            raise SignInFailed(f"the provider {fault}") from None
        except TimeoutError:
            raise SignInFailed("the provider sent no answer in time") from None
        if answer.status != 200:
            raise SignInFailed(f"the provider answered {answer.status}")
        with suppress(ValueError):
            if isinstance(found := json.loads(whole), dict):
                return found
        raise SignInFailed("the provider's answer is no JSON object")
