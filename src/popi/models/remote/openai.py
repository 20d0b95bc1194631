"""OpenAI's chat completions API, which most servers support: vLLM, SGLang, llama.cpp, Ollama, and the large
gateways."""

import json
from collections.abc import Mapping
from typing import Any

from popi.errors import UpstreamError
from popi.models.backend import Messages, Reply
from popi.models.remote.api_url import Protocol
from popi.models.remote.usage import token_count


class OpenAI:
    """Builds requests and reads answers (`POST {url}/chat/completions`)."""

    protocol: Protocol = "openai"
    path = "/chat/completions"
    key_variable = "OPENAI_API_KEY"
    headers: dict[str, str] = {}

    @staticmethod
    def body(messages: Messages, max_tokens: int, temperature: float) -> dict[str, Any]:
        """The request, without the model's name."""
        return {"messages": openai_messages(messages), "max_tokens": max_tokens, "temperature": temperature}

    @staticmethod
    def structured(schema: Mapping[str, Any]) -> dict[str, Any]:
        """The request fields that make the answer follow a JSON schema."""
        return {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": schema},
            }
        }

    @staticmethod
    def tokens(answer: dict[str, Any]) -> tuple[int, int] | None:
        """(input, output) tokens as billed; None if not reported."""
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        read, written = token_count(usage.get("prompt_tokens")), token_count(usage.get("completion_tokens"))
        return None if read is None or written is None else (read, written)

    @classmethod
    def read(cls, answer: dict[str, Any]) -> Reply:
        """The text of an answer.

        Raises:
            UpstreamError: if it has no text.
        """
        try:
            choice = answer["choices"][0]
            content = choice["message"].get("content")
            refused = choice["message"].get("refusal") is not None
            reason = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UpstreamError(
                f"the answer has no choices[0].message.content; it has {sorted(answer)}; is this a chat model?"
            ) from None
        if isinstance(content, list):  # some servers return a list of parts
            parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
            content = "".join(part for part in parts if isinstance(part, str))
        if not isinstance(content, str) or not content.strip():
            if refused or reason == "content_filter":
                raise UpstreamError(f"the model refused to answer (finish_reason {reason!r})")
            hint = "; raise max_tokens, since reasoning used all of it" if reason == "length" else ""
            raise UpstreamError(f"the model wrote no text (finish_reason {reason!r}){hint}")
        tokens = cls.tokens(answer)
        details = answer["usage"].get("completion_tokens_details") if tokens else None
        hidden = token_count(details.get("reasoning_tokens")) if isinstance(details, dict) else None
        return Reply(content.strip(), max(0, tokens[1] - (hidden or 0)) if tokens else None, reason == "length")


def with_call_ids(messages: Messages) -> list[dict[str, Any]]:
    """Add the ids of tool calls and their results where missing, since servers require them."""
    sent: list[dict[str, Any]] = []
    unanswered: list[str] = []
    for message in map(dict, messages):
        if "tool_calls" in message:
            calls = enumerate(message["tool_calls"])
            message["tool_calls"] = [call | {"id": call.get("id") or f"call_{len(sent)}_{n}"} for n, call in calls]
            unanswered = [call["id"] for call in message["tool_calls"]]
        elif message["role"] == "tool":
            message["tool_call_id"] = unanswered.pop(0)
        sent.append(message)
    return sent


def openai_messages(messages: Messages) -> list[dict[str, Any]]:
    """Messages in OpenAI's format, where the arguments of tool calls are JSON text."""
    return [
        message | {"tool_calls": [_as_text(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in with_call_ids(messages)
    ]


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return call | {"function": function | {"arguments": arguments}}
