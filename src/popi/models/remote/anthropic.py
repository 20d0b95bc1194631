"""Anthropic's messages API."""

from collections.abc import Iterable, Mapping
from typing import Any

from popi.errors import UpstreamError
from popi.models.backend import Messages, Reply
from popi.models.remote.api_url import Protocol
from popi.models.remote.openai import with_call_ids
from popi.models.remote.usage import token_count

_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def _turns(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert tool calls to blocks of the assistant's turn, and their results to blocks of a single user turn."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if "tool_calls" in message:
            blocks: list[dict[str, Any]] = [{"type": "text", "text": message["content"]}] if message["content"] else []
            for call in message["tool_calls"]:
                name, arguments = call["function"]["name"], call["function"]["arguments"]
                blocks.append({"type": "tool_use", "id": call["id"], "name": name, "input": arguments})
            turns.append({"role": "assistant", "content": blocks})
        elif message["role"] == "tool":
            result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
            if turns[-1]["role"] == "user":
                turns[-1]["content"].append(result)
            else:
                turns.append({"role": "user", "content": [result]})
        else:
            turns.append(message)
    return turns


class Anthropic:
    """Builds requests and reads answers (`POST {url}/messages`, where the URL ends in `/v1`)."""

    protocol: Protocol = "anthropic"
    path = "/messages"
    key_variable = "ANTHROPIC_API_KEY"
    headers = {"anthropic-version": "2023-06-01"}

    @staticmethod
    def body(messages: Messages, max_tokens: int, temperature: float) -> dict[str, Any]:
        """The request, without the model's name. System messages go into a separate field."""
        system = "\n\n".join(str(m["content"]) for m in messages if m["role"] == "system")
        turns = _turns(m for m in with_call_ids(messages) if m["role"] != "system")
        request = {"messages": turns, "max_tokens": max_tokens, "temperature": temperature}
        called = dict.fromkeys(c["function"]["name"] for m in messages for c in m.get("tool_calls", ()))
        if called:  # the API requires declarations of all tools; the answer should be text
            request["tools"] = [{"name": name, "input_schema": {"type": "object"}} for name in called]
            request["tool_choice"] = {"type": "none"}
        return request | ({"system": system} if system else {})

    @staticmethod
    def structured(schema: Mapping[str, Any]) -> dict[str, Any]:
        """The request fields that make the answer follow a JSON schema."""
        return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}

    @staticmethod
    def tokens(answer: dict[str, Any]) -> tuple[int, int] | None:
        """(input, output) tokens, including input read from or written to a cache; None if not reported."""
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        read, written = token_count(usage.get("input_tokens")), token_count(usage.get("output_tokens"))
        if read is None or written is None:
            return None
        return sum(token_count(usage.get(name)) or 0 for name in _INPUT), written

    @classmethod
    def read(cls, answer: dict[str, Any]) -> Reply:
        """The text of an answer.

        Raises:
            UpstreamError: if it has no text.
        """
        blocks = answer.get("content")
        if not isinstance(blocks, list):
            raise UpstreamError(f"the answer has no list `content`; it has {sorted(answer)}; is this Anthropic's API?")
        parts = [block.get("text") for block in blocks if isinstance(block, dict) and block.get("type") == "text"]
        text = "".join(part for part in parts if isinstance(part, str)).strip()
        reason = answer.get("stop_reason")
        if not text and reason == "refusal":
            raise UpstreamError(f"the model refused to answer (stop_reason {reason!r})")
        if not text:
            raise UpstreamError(f"the model wrote no text (stop_reason {reason!r})")
        thought = any(isinstance(block, dict) and "thinking" in str(block.get("type")) for block in blocks)
        tokens = cls.tokens(answer)
        # The count includes thinking without itemising it, so the text's own length is unknown.
        return Reply(text, tokens[1] if tokens and not thought else None, reason == "max_tokens")
