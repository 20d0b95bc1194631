"""A chat model behind an API: the counterpart of `LocalModel`, without weights, tokenizer or torch."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from popi.config.http import HttpConfig
from popi.errors import ConfigError, PopiError, UpstreamError
from popi.models.backend import Backend, Messages, OnReply, Reply, estimate_tokens
from popi.models.remote import api_url
from popi.models.remote.anthropic import Anthropic
from popi.models.remote.batch import send_all
from popi.models.remote.key import read_key
from popi.models.remote.openai import OpenAI
from popi.models.remote.retries import Retries
from popi.models.remote.upstream import TOTAL_S, Session, Upstream
from popi.models.remote.usage import Prices, Usage, meter

if TYPE_CHECKING:
    from popi.models.remote.vllm import VllmScorer


class WireFormat(Protocol):
    """The request and response format of a kind of server, either `OpenAI` or `Anthropic`."""

    protocol: api_url.Protocol
    path: str
    key_variable: str
    headers: dict[str, str]

    def body(self, messages: Messages, max_tokens: int, temperature: float) -> dict[str, Any]:
        """The request."""
        ...

    def structured(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The request fields that make the answer follow a JSON schema."""
        ...

    def tokens(self, answer: dict[str, Any]) -> tuple[int, int] | None:
        """The answer's (input, output) tokens."""
        ...

    def read(self, answer: dict[str, Any]) -> Reply:
        """The answer's text."""
        ...


PROTOCOLS: dict[str, WireFormat] = {"openai": OpenAI(), "anthropic": Anthropic()}
_OF_A_SCHEMA = re.compile(r"response_?format|output_?(?:config|format)|json_?schema|structured|guided|grammar", re.I)
"""Words in the error of a server that does not support JSON schemas."""


class ApiModel(Backend):
    """A model on a server.

    Args:
        upstream: the server.
        name: the model's name on the server.
        wire: the server's request and response format.
        extra: fields to add to every request; None removes one, as in ``{"max_tokens": None,
            "max_completion_tokens": 256}`` for models that require the newer name.
    """

    def __init__(self, upstream: Upstream, name: str, wire: WireFormat, extra: Mapping[str, Any] | None = None) -> None:
        self.upstream, self.name, self.wire, self.extra = upstream, name, wire, dict(extra or {})
        self.takes_schema = True
        """Set to False once the server has refused a schema."""

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
        """A model on a server; the arguments are the fields of `ModelSpec`. Sends nothing yet.

        Raises:
            ConfigError: for an invalid URL, an unknown protocol, or if `key_env` is not set in the environment.
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
        """Requests and tokens sent to the server so far."""
        return self.upstream.usage

    @cached_property
    def scorer(self) -> "VllmScorer":
        """Scorer for this model. Raises ConfigError for protocols other than `openai`."""
        from popi.models.remote.vllm import VllmScorer

        return VllmScorer(self)

    async def chat(
        self,
        session: Session,
        messages: Messages,
        max_tokens: int,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Answer one conversation, for callers with their own event loop.

        With `schema`, request an answer in that JSON format. If the server refuses the field, this and all later
        requests are sent without it.

        Raises:
            UpstreamError: if there is no answer, or no text in it.
        """
        if schema is not None and self.takes_schema:
            try:
                return await self._chat(session, messages, max_tokens, temperature, self.wire.structured(schema))
            except UpstreamError as error:
                if error.status not in (400, 404, 415, 422, 501) or _OF_A_SCHEMA.search(error.server_message) is None:
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
        if tokens is not None:  # counted before reading, since an answer without text is billed as well
            used.add(tokens)
        reply = self.wire.read(answer)
        if tokens is None:
            used.add((sum(estimate_tokens(str(turn["content"])) for turn in messages), estimate_tokens(reply.text)))
        return reply

    def chat_many(
        self,
        conversations: Sequence[Messages],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        on_result: OnReply | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply | PopiError]:
        """Answer every conversation. Returns a reply or an error for each, in order (see `Backend`). `schema`: as in
        `chat`.
        """

        async def ask(session: Session, messages: Messages) -> Reply:
            return await self.chat(session, messages, max_tokens, temperature, schema)

        return send_all(self.upstream, ask, conversations, on_result)
