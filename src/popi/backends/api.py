"""A chat model behind an API: the counterpart of `LocalModel`, without weights, tokenizer or torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from popi.backends.anthropic import Anthropic
from popi.backends.batch import send_all
from popi.backends.chat import Messages, Reply, estimate_tokens
from popi.backends.key import checked_url, read_key
from popi.backends.openai import OpenAI
from popi.backends.retries import Retries
from popi.backends.upstream import Limits, Session, Upstream
from popi.backends.usage import Prices, Usage, meter
from popi.errors import ConfigError, PopiError


class WireFormat(Protocol):
    """How one kind of server is spoken to; `OpenAI` and `Anthropic` are the two."""

    path: str
    key_variable: str
    key_header: tuple[str, str]
    headers: dict[str, str]

    def base(self, url: str) -> str:
        """What `path` is put behind."""
        ...

    def body(self, messages: Messages, max_tokens: int, temperature: float) -> dict[str, Any]:
        """The request."""
        ...

    def tokens(self, answer: dict[str, Any]) -> tuple[int, int] | None:
        """The answer's (input, output) tokens."""
        ...

    def read(self, answer: dict[str, Any]) -> Reply:
        """The answer's text."""
        ...


PROTOCOLS: dict[str, WireFormat] = {"openai": OpenAI(), "anthropic": Anthropic()}


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

    @classmethod
    def connect(
        cls,
        url: str,
        model: str,
        protocol: str = "openai",
        *,
        key_env: str | None = None,
        concurrency: int = 8,
        limits: Limits | None = None,
        retries: Retries | None = None,
        prices: Prices | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> "ApiModel":
        """Name a model on a server; nothing is sent yet.

        Args:
            url: for `openai` as far as the part before /chat/completions (``https://host/v1``); for `anthropic` the
                host alone.
            model: the model, as the server calls it.
            protocol: `openai` or `anthropic`.
            key_env: the environment variable that holds the key; else OPENAI_API_KEY or ANTHROPIC_API_KEY, and
                no key where that is not set.
            concurrency: most requests under way at once.
            limits: time limits.
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
        url = checked_url(url)
        upstream = Upstream(
            wire.base(url),
            key=read_key(url, key_env, wire.key_variable),
            key_header=wire.key_header,
            headers=wire.headers,
            concurrency=concurrency,
            limits=limits,
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

    async def chat(self, session: Session, messages: Messages, max_tokens: int, temperature: float = 0.0) -> Reply:
        """Answer one conversation, for callers with an event loop of their own.

        Raises:
            UpstreamError: there is no answer, or no text in it.
        """
        body = {"model": self.name} | self.wire.body(messages, max_tokens, temperature) | self.extra
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
    ) -> list[Reply | PopiError]:
        """Answer every conversation: aligned with them, a reply or the error in its place (see `ChatModel`)."""

        async def ask(session: Session, messages: Messages) -> Reply:
            return await self.chat(session, messages, max_tokens, temperature)

        return send_all(self.upstream, ask, conversations, on_result)
