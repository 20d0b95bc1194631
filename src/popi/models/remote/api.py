"""A chat model behind an API: the counterpart of `LocalModel`, without weights, tokenizer or torch."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from popi.config.http import HttpConfig
from popi.errors import ConfigError, PopiError, UpstreamError
from popi.models.remote import api_url
from popi.models.remote.anthropic import Anthropic
from popi.models.remote.batch import send_all
from popi.models.remote.chat import Messages, Reply, estimate_tokens
from popi.models.remote.key import read_key
from popi.models.remote.openai import OpenAI
from popi.models.remote.retries import Retries
from popi.models.remote.upstream import TOTAL_S, Session, Upstream
from popi.models.remote.usage import Prices, Usage, meter


class WireFormat(Protocol):
    """How one kind of server is spoken to; `OpenAI` and `Anthropic` are the two."""

    protocol: api_url.Protocol
    path: str
    key_variable: str
    headers: dict[str, str]

    def body(self, messages: Messages, max_tokens: int, temperature: float) -> dict[str, Any]:
        """The request."""
        ...

    def structured(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that have the answer follow a JSON schema."""
        ...

    def tokens(self, answer: dict[str, Any]) -> tuple[int, int] | None:
        """The answer's (input, output) tokens."""
        ...

    def read(self, answer: dict[str, Any]) -> Reply:
        """The answer's text."""
        ...


PROTOCOLS: dict[str, WireFormat] = {"openai": OpenAI(), "anthropic": Anthropic()}
_OF_A_SCHEMA = re.compile(r"response_?format|output_?(?:config|format)|json_?schema|structured|guided|grammar", re.I)
"""Words of a server that refuses to follow a JSON schema."""


class ApiModel:
    """A model on a server.

    Args:
        upstream: the server.
        name: the model, as the server calls it.
        wire: what the server speaks.
        extra: fields to put into every request; None takes one out, as ``{"max_tokens": None,
            "max_completion_tokens": 256}`` for models that want the newer name.
    """

    def __init__(self, upstream: Upstream, name: str, wire: WireFormat, extra: Mapping[str, Any] | None = None) -> None:
        self.upstream, self.name, self.wire, self.extra = upstream, name, wire, dict(extra or {})
        self.takes_schema = True
        """Until the server has refused one."""

    @classmethod
    def connect(
        cls,
        url: str,
        model: str,
        protocol: str = "openai",
        *,
        key_env: str | None = None,
        auth: api_url.Auth = "auto",
        concurrency: int = 8,
        http: HttpConfig | None = None,
        total_s: float = TOTAL_S,
        retries: Retries | None = None,
        prices: Prices | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> "ApiModel":
        """Name a model on a server; nothing is sent yet.

        Args:
            url: as far as the part before /chat/completions or, for `anthropic`, before /v1/messages (see `ApiUrl`).
            model: the model, as the server calls it.
            protocol: `openai` or `anthropic`.
            key_env: the environment variable that holds the key; else OPENAI_API_KEY or ANTHROPIC_API_KEY, and
                no key where that is not set.
            auth: how the key is sent; see `ApiUrl.key_header`.
            concurrency: most requests under way at once.
            http: proxies, certificates, time limits; by default as POPI_HTTP says.
            total_s: time limit of one try of one request.
            retries: when to ask again.
            prices: per million tokens, for `usage.cost`.
            extra: fields to put into every request, or (None) to take out.

        Raises:
            ConfigError: a wrong URL, an unknown protocol, or a named variable that is not set.
        """
        wire = PROTOCOLS.get(protocol)
        if wire is None:
            raise ConfigError(f"protocol: {protocol!r} is not one of {', '.join(PROTOCOLS)}")
        if not model.strip():
            raise ConfigError("the name of the model on the server is empty")
        api = api_url.ApiUrl.parse(url, wire.protocol)
        upstream = Upstream(
            api,
            key=read_key(api.base, key_env, wire.key_variable),
            key_header=api.key_header(auth, wire.protocol),
            headers=wire.headers,
            concurrency=concurrency,
            http=http,
            total_s=total_s,
            retries=retries,
            prices=prices,
        )
        return cls(upstream, model, wire, extra)

    def __repr__(self) -> str:
        return f"ApiModel({self.name!r} at {self.upstream.url!r})"

    @property
    def usage(self) -> Usage:
        """What was asked of the server so far."""
        return self.upstream.usage

    async def chat(
        self,
        session: Session,
        messages: Messages,
        max_tokens: int,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Answer one conversation, for callers with an event loop of their own.

        With `schema` the answer is asked for as JSON. A server that refuses the field that says so is asked without it,
        from then on each time.

        Raises:
            UpstreamError: there is no answer, or no text in it.
        """
        if schema is not None and self.takes_schema:
            try:
                return await self._chat(session, messages, max_tokens, temperature, self.wire.structured(schema))
            except UpstreamError as error:
                if error.status not in (400, 404, 415, 422, 501) or _OF_A_SCHEMA.search(error.words) is None:
                    raise
                self.takes_schema = False
        return await self._chat(session, messages, max_tokens, temperature, {})

    async def _chat(
        self, session: Session, messages: Messages, max_tokens: int, temperature: float, fields: Mapping[str, Any]
    ) -> Reply:
        body = {"model": self.name} | self.wire.body(messages, max_tokens, temperature) | {**fields, **self.extra}
        body = {field: value for field, value in body.items() if value is not None}
        used = meter()
        used.requests += 1
        answer = await session.post(self.wire.path, body, self.wire.tokens)
        tokens = self.wire.tokens(answer)
        if tokens is not None:  # an answer without text has its price as well
            used.add(tokens)
        reply = self.wire.read(answer)
        if tokens is None:
            used.add((sum(estimate_tokens(str(one["content"])) for one in messages), estimate_tokens(reply.text)))
        return reply

    def chat_many(
        self,
        conversations: Sequence[Messages],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        on_result: Callable[[int, Reply | PopiError], None] | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply | PopiError]:
        """Answer every conversation: aligned with them, a reply or the error in its place (see `ChatModel`). `schema`:
        as `chat` takes it.
        """

        async def ask(session: Session, messages: Messages) -> Reply:
            return await self.chat(session, messages, max_tokens, temperature, schema)

        return send_all(self.upstream, ask, conversations, on_result)
