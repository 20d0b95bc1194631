"""The model APIs behind the gateway: choose one for a request, call it, and turn its faults into refusals."""

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

MAX_FETCH_BYTES = 2**20
"""Maximum bytes that `fetch` accepts."""
MAX_MODEL_LENGTH = 500
"""Maximum characters of a model name."""


class Outgoing:
    """The proxy's outgoing connections. Send requests within `open`.

    Args:
        http: settings for outgoing connections.

    Raises:
        ConfigError: a certificate can't be used.
    """

    session: HttpSession

    def __init__(self, http: HttpConfig) -> None:
        self._client = HttpClient(http)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Open connections for the duration of the block, in one event loop."""
        async with self._client.session() as self.session:
            yield

    async def fetch(self, url: str) -> bytes:
        """Fetch a URL that the operator configured (a token issuer's keys).

        Raises:
            HttpFault: it can't be fetched, or is too long.
        """
        answer = await self.session.send("GET", URL(url), [("accept", "application/json")])
        try:
            if answer.status != 200:
                raise HttpFault("broken", f"answered {answer.status}")
            return await answer.whole(MAX_FETCH_BYTES)
        finally:
            answer.close()


class Upstream:
    """One model API behind the gateway, with everything that can be derived from its settings in advance.

    Args:
        settings: this upstream's.
        outgoing: the connections.

    Raises:
        ConfigError: its key is missing.

    Attributes:
        settings: this upstream's.
        name: its name in logs and metrics.
        names: the models that its settings list without wildcards.
        lists_as: the API dialect for listing its models.
        keys: the header with the gateway's key, by API dialect; empty if it has no key.
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
        """A mask for the error response to a request that was sent with the gateway's key."""
        return Mask(self._secret)

    async def send(self, method: str, path: str, query: str, headers: list[Raw], body: Body) -> Answer:
        """Send a request and wait for the head of the answer.

        Args:
            method: the HTTP method.
            path: the escaped path after `/v1`.
            query: without the question mark; may be empty.
            headers: the client's, without hop-by-hop headers.
            body: whole, in pieces, or none.

        Raises:
            Refusal: 502, no answer; 504, it took too long.
            Exception: raised by the iterator of the body's pieces.
        """
        target = self._api.at(path, query)
        if not target.isascii():
            target = _text(target.encode("latin-1"))
        url, named = URL(target, encoded=True), [(_text(name), _text(value)) for name, value in headers]
        try:
            return await self._outgoing.session.send(method, url, named, body)
        except HttpFault as fault:
            if fault.kind in ("certificate", "proxy"):  # for the operator to fix
                fields = {"upstream": self.name, "error": str(fault)}
                LOGGER.error("can't use the upstream", extra={"fields": fields})
            status = 504 if fault.kind == "timeout" else 502
            raise Refusal(status, f"upstream_{fault.kind}", f"the upstream {fault}") from None


class Mask:
    """Masks a key in a response that arrives in pieces, since an upstream may quote the key that it refuses.

    The response keeps its length, which its headers have announced. A compressed response is not changed.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret, self._held = secret, b""

    def __call__(self, piece: bytes, more: bool) -> bytes:
        """The masked bytes to send now. If `more` pieces follow, possible beginnings of a key are held back."""
        if not self._secret:
            return piece
        text = (self._held + piece).replace(self._secret, b"*" * len(self._secret))
        end = max(0, len(text) - len(self._secret) + 1) if more else len(text)
        self._held = text[end:]
        return text[:end]


class Upstreams:
    """All upstreams, in the order of the settings.

    Attributes:
        only: the single upstream if it accepts every request, else None.

    Raises:
        ConfigError: a key is missing.
    """

    def __init__(self, settings: ProxySettings, outgoing: Outgoing) -> None:
        self._all = tuple(Upstream(one, outgoing) for one in settings.all_upstreams)
        self.only = self._all[0] if len(self._all) == 1 and self._all[0].settings.takes_all else None

    def of(self, tenant: str) -> list[Upstream]:
        """The upstreams that a tenant may use."""
        return [one for one in self._all if one.settings.is_for(tenant)]

    def choose(self, tenant: str, dialect: Dialect, model: str | None) -> Upstream:
        """The first upstream that accepts a request.

        Args:
            tenant: the caller's.
            dialect: the request's.
            model: the model that the request names, if any.

        Raises:
            Refusal: 404, no upstream serves this model or path to this tenant.
        """
        if self.only is not None:
            return self.only
        for one in self._all:
            if one.settings.is_for(tenant, dialect) and (model is None or one.settings.serves(model)):
                return one
        if model is None:
            raise Refusal(404, "no_upstream", "no upstream of this gateway serves this path to you")
        raise Refusal(404, "model_not_found", f"the model {model[:100]!r} does not exist here, or you may not use it")

    def model(self, body: Mapping[str, Any]) -> str | None:
        """The model that a request names; None if it names none or all requests go to one upstream.

        Raises:
            Refusal: 400, the field `model` is spelt in another case, which some servers accept; 404, the model's name
                is too long.
        """
        if self.only is not None:
            return None
        if any(name != "model" and name.casefold() == "model" for name in body):
            raise Refusal(400, "body_name", "spell the name 'model' in lower case")
        model = body.get("model")
        if not isinstance(model, str):
            return None
        if len(model) > MAX_MODEL_LENGTH:
            raise Refusal(404, "model_not_found", f"no model has a name of {len(model)} characters")
        return model


def _text(value: bytes) -> str:
    """Decode for aiohttp, which encodes as UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
