"""The model APIs behind the gateway: which one a request goes to, and calls to it, with their faults as refusals."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from yarl import URL

from popi.config.http import HttpConfig
from popi.models.remote.http import Answer, Body, HttpClient, HttpFault, HttpSession
from popi.serving.proxy.headers import Raw
from popi.serving.proxy.logs import LOGGER
from popi.serving.proxy.refusals import Dialect, Refusal
from popi.serving.proxy.settings import ProxySettings, UpstreamSettings

MOST_FETCHED = 2**20
"""Maximum bytes of what `fetch` gets."""
LONGEST_MODEL = 500
"""Longer names are no model's."""


class Outgoing:
    """The connections of the proxy. Requests are sent within `open`.

    Args:
        http: how servers are reached.

    Raises:
        ConfigError: a certificate can't be used.
    """

    session: HttpSession

    def __init__(self, http: HttpConfig) -> None:
        self._client = HttpClient(http)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connections that live as long as the block, in one event loop."""
        async with self._client.session() as self.session:
            yield

    async def fetch(self, url: str) -> bytes:
        """What is at a URL of the operator's own (an issuer's keys).

        Raises:
            HttpFault: it could not be had, or is too long.
        """
        answer = await self.session.send("GET", URL(url), [("accept", "application/json")])
        try:
            if answer.status != 200:
                raise HttpFault("broken", f"answered {answer.status}")
            return await answer.whole(MOST_FETCHED)
        finally:
            answer.close()


class Upstream:
    """One model API behind the gateway. What can be worked out of its settings is, once.

    Args:
        settings: of this one.
        outgoing: the connections.

    Raises:
        ConfigError: its key is not there.

    Attributes:
        settings: say what it is for.
        name: for logs and metrics.
        names: those of its models that the settings name, without wildcards.
        lists_as: what it speaks where it is asked for its models.
        keys: the header with the gateway's key, by the API that is called; empty where it has none.
    """

    def __init__(self, settings: UpstreamSettings, outgoing: Outgoing) -> None:
        self.settings, self.name, self._outgoing, self._api = settings, settings.name, outgoing, settings.api
        self.names = tuple(model for model in settings.models if not re.search(r"[*?[]", model))
        anthropic = settings.protocol == "anthropic" or self._api.host.endswith(".anthropic.com")
        self.lists_as: Dialect = "anthropic" if anthropic else "openai"
        self.keys: dict[Dialect, Raw] = {}
        self._secret = b""
        if (secret := settings.secret()) is not None:
            for dialect in ("openai", "anthropic"):
                header, form = self._api.key_header(settings.auth, dialect)
                self._secret = secret.get_secret_value().encode()
                self.keys[dialect] = (header.lower().encode(), form.format(secret.get_secret_value()).encode())

    def mask(self) -> "Mask":
        """For an error answer to a request that was sent with the gateway's key."""
        return Mask(self._secret)

    async def send(self, method: str, path: str, query: str, headers: list[Raw], body: Body) -> Answer:
        """Send a request and wait for the head of the answer.

        Args:
            method: of HTTP.
            path: with its escapes, from behind `/v1` on.
            query: without the question mark; may be empty.
            headers: as they came, without those of the client's connection.
            body: whole, in pieces, or none.

        Raises:
            Refusal: 502, there is no answer; 504, it took too long.
            Exception: what the pieces of the body raised.
        """
        target = self._api.at(path, query)
        if not target.isascii():
            target = _text(target.encode("latin-1"))
        url, named = URL(target, encoded=True), [(_text(name), _text(value)) for name, value in headers]
        try:
            return await self._outgoing.session.send(method, url, named, body)
        except HttpFault as fault:
            if fault.kind in ("certificate", "proxy"):  # for the operator to put right
                fields = {"upstream": self.name, "error": str(fault)}
                LOGGER.error("the upstream can't be used", extra={"fields": fields})
            status = 504 if fault.kind == "timeout" else 502
            raise Refusal(status, f"upstream_{fault.kind}", f"the upstream {fault}") from None


class Mask:
    """Covers a key in an answer that arrives in pieces: an upstream may quote the key that it refuses.

    The answer keeps its length, which its headers have announced. A compressed answer passes as it is.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret, self._held = secret, b""

    def __call__(self, piece: bytes, more: bool) -> bytes:
        """What of the answer can be sent now; the beginning of a key may be held back while `more` is to come."""
        if not self._secret:
            return piece
        whole = (self._held + piece).replace(self._secret, b"*" * len(self._secret))
        end = max(0, len(whole) - len(self._secret) + 1) if more else len(whole)
        self._held = whole[end:]
        return whole[:end]


class Upstreams:
    """All of them, in the order of the settings.

    Attributes:
        only: the one that there is, where it takes all requests.

    Raises:
        ConfigError: a key is not there.
    """

    def __init__(self, settings: ProxySettings, outgoing: Outgoing) -> None:
        self._all = tuple(Upstream(one, outgoing) for one in settings.listed)
        self.only = self._all[0] if len(self._all) == 1 and self._all[0].settings.takes_all else None

    def of(self, tenant: str) -> list[Upstream]:
        """Those that a tenant may use."""
        return [one for one in self._all if one.settings.is_for(tenant)]

    def choose(self, tenant: str, dialect: Dialect, model: str | None) -> Upstream:
        """The first that a request may go to.

        Args:
            tenant: of the caller.
            dialect: of the request.
            model: that it names; None where it names none.

        Raises:
            Refusal: 404, none serves this model to this tenant, or none is the tenant's at all.
        """
        if self.only is not None:
            return self.only
        for one in self._all:
            if one.settings.is_for(tenant, dialect) and (model is None or one.settings.serves(model)):
                return one
        if model is None:
            raise Refusal(404, "no_upstream", "nothing behind this gateway serves this path to you")
        raise Refusal(404, "model_not_found", f"the model {model[:100]!r} does not exist here, or you may not use it")

    def model(self, body: Mapping[str, Any]) -> str | None:
        """The model that a request names; None where it names none, or where all go to one upstream.

        Raises:
            Refusal: 400, the name of the field is in another case, as some servers take it; the model is too long.
        """
        if self.only is not None:
            return None
        if any(name != "model" and name.casefold() == "model" for name in body):
            raise Refusal(400, "body_name", "spell the name 'model' in lower case")
        model = body.get("model")
        if not isinstance(model, str):
            return None
        if len(model) > LONGEST_MODEL:
            raise Refusal(404, "model_not_found", f"no model has a name of {len(model)} characters")
        return model


def _text(value: bytes) -> str:
    """For aiohttp, which writes text as UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
