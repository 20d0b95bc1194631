"""Signs in members of the team with OpenID Connect: the authorization code flow with PKCE, state and nonce.

Authlib implements the protocol and checks the ID token; requests are sent through popi.models.remote.http, with the
proxies, certificates and limits of `[http]`.
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
from popi.serving.pages.settings import OidcSettings

METADATA_MAX_AGE_S = 3600.0
"""Seconds after which the provider's metadata is refetched; its keys are fetched with every sign-in."""
LEEWAY_SECONDS = 60
MAX_BYTES = 2**20
TIMEOUT_S = 20.0
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signature algorithms with which only the provider can sign: never `none`, never a shared secret."""


class Oidc:
    """Signs in members of the team.

    Args:
        settings: the provider's settings.
        url: the gateway's public URL.
        http: settings for outgoing connections.

    Raises:
        ConfigError: the client secret is missing.
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
        self._fetched = -METADATA_MAX_AGE_S

    async def begin(self) -> tuple[str, Login]:
        """The URL to send the browser to, and the sign-in's state for the browser to keep.

        Raises:
            SignInFailed: the provider can't be reached, or is not the one in the settings.
        """
        login = Login(generate_token(32), generate_token(32), generate_token(64), time.time() + LOGIN_SECONDS)
        endpoint = (await self._provider_metadata())["authorization_endpoint"]
        url, _ = self._client.create_authorization_url(
            endpoint, state=login.state, code_verifier=login.verifier, nonce=login.nonce
        )
        return str(url), login

    async def finish(self, query: str, login: Login) -> Member:
        """The member whom the provider signed in.

        Args:
            query: the query with which the provider redirected to us.
            login: the state from `begin`.

        Raises:
            SignInFailed: the provider did not sign them in, or its response is invalid or does not match `login`.
            NotAMember: they have no role here.
        """
        if time.time() > login.until:
            raise SignInFailed("the sign-in took too long")
        try:
            if error := dict(parse_qsl(query)).get("error"):
                raise SignInFailed(f"the provider refused the sign-in ({error[:40]!r})")
            code = parse_authorization_code_response(f"{self._redirect}?{query}", login.state)["code"]
            token = await self._token(code, login.verifier)
            claims = await self._claims(token, login.nonce)
        except (OAuth2Error, JoseError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SignInFailed(f"the provider's response is invalid ({type(error).__name__})") from None
        return self._member(claims)

    async def _token(self, code: str, verifier: str) -> dict[str, Any]:
        endpoint = (await self._provider_metadata())["token_endpoint"]
        body = prepare_token_request(
            "authorization_code", redirect_uri=self._redirect, code=code, code_verifier=verifier
        )
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        url, headers, body = self._auth.prepare("POST", endpoint, headers, body)
        return await self._request("POST", url, list(headers.items()), str(body).encode())

    async def _claims(self, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        """The claims of the ID token, with those of the userinfo endpoint if needed."""
        metadata = await self._provider_metadata()
        keys = KeySet.import_key_set(await self._request("GET", metadata["jwks_uri"]))  # type: ignore[arg-type]
        offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        registry = JWSRegistry(algorithms=[one for one in ALGORITHMS if one in offered], strict_check_header=False)
        decoded = jwt.decode(token["id_token"], keys, registry=registry)
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            {
                "iss": {"essential": True, "value": metadata["issuer"]},
                "aud": {"essential": True, "value": self._settings.client_id},
            },
            {"nonce": nonce, "client_id": self._settings.client_id, "access_token": token["access_token"]},
        )
        claims.validate(leeway=LEEWAY_SECONDS)
        more: dict[str, Any] = {}
        if "userinfo_endpoint" in metadata and self._settings.claim not in claims:
            bearer = [("Authorization", f"Bearer {token['access_token']}"), ("Accept", "application/json")]
            more = await self._request("GET", metadata["userinfo_endpoint"], bearer)
            if more.get("sub") != claims["sub"]:
                raise SignInFailed("the provider's ID token and userinfo are about different people")
        return more | dict(claims)

    def _member(self, claims: Mapping[str, Any]) -> Member:
        values = claims.get(self._settings.claim)
        roles = {str(one) for one in (values if isinstance(values, list) else [values]) if one is not None}
        name = str(claims.get(self._settings.name_claim) or claims["sub"])[:200]
        if roles & set(self._settings.admins):
            return Member(name, "admin")
        if roles & set(self._settings.viewers):
            return Member(name, "viewer")
        raise NotAMember

    async def _provider_metadata(self) -> dict[str, Any]:
        if time.monotonic() - self._fetched >= METADATA_MAX_AGE_S:
            url = self._settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
            metadata = await self._request("GET", url)
            if str(metadata.get("issuer", "")).rstrip("/") != self._settings.issuer.rstrip("/"):
                raise SignInFailed("the provider's issuer is not page.oidc.issuer")
            self._metadata, self._fetched = metadata, time.monotonic()
        return self._metadata

    async def _request(self, method: str, url: str, headers: Headers = (), body: bytes | None = None) -> dict[str, Any]:
        try:
            async with asyncio.timeout(TIMEOUT_S), self._http.session() as session:
                answer = await session.send(method, URL(url, encoded=True), headers, body)
                content = await answer.whole(MAX_BYTES)
        except HttpFault as fault:
            raise SignInFailed(f"the provider {fault}") from None
        except TimeoutError:
            raise SignInFailed("the provider did not respond in time") from None
        if answer.status != 200:
            raise SignInFailed(f"the provider responded with status {answer.status}")
        with suppress(ValueError):
            if isinstance(value := json.loads(content), dict):
                return value
        raise SignInFailed("the provider's response is not a JSON object")
