"""What popi asks of a chat model that it holds no weights of. Imports no HTTP: a stand-in needs only these types."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from popi.errors import PopiError

Messages = Sequence[Mapping[str, Any]]
"""A conversation: mappings with `role` and `content`."""


@dataclass(frozen=True)
class Reply:
    """What a chat model wrote.

    Attributes:
        text: the text, without white space around it.
        tokens: its length as the server counted it, hidden reasoning left out; None where it did not say.
        cut: it hit the token limit.
    """

    text: str
    tokens: int | None = None
    cut: bool = False


class ChatModel(Protocol):
    """A model that answers conversations."""

    @property
    def name(self) -> str:
        """What summaries say they were written by."""
        ...

    def chat_many(
        self,
        conversations: Sequence[Messages],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        on_result: Callable[[int, Reply | PopiError], None] | None = None,
    ) -> list[Reply | PopiError]:
        """Answer every conversation: aligned with them, a reply or the error in its place.

        `on_result` is told an index and a result as soon as that is there.
        """
        ...


def openai_messages(messages: Messages) -> list[dict[str, Any]]:
    """Messages as OpenAI's API takes them: tool calls have ids, and their arguments are JSON text."""
    sent: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for message in map(dict, messages):
        if "tool_calls" in message:
            calls = []
            for n, call in enumerate(message["tool_calls"]):
                arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                name = call.get("id") or f"call_{len(sent)}_{n}"
                calls.append(call | {"id": name, "function": call["function"] | {"arguments": arguments}})
            message["tool_calls"], open_calls = calls, [call["id"] for call in calls]
        elif message["role"] == "tool":
            message["tool_call_id"] = open_calls.pop(0)
        sent.append(message)
    return sent


def estimate_tokens(text: str) -> int:
    """Tokens of a text where there is no tokenizer to ask: its UTF-8 bytes / 3, rounded up.

    On the high side for today's LLMs: their large vocabularies take 4 bytes and more of most languages to a token,
    and about 3 of Chinese, Japanese or Korean. Digits, base64, rare scripts and older vocabularies can take more
    tokens than estimated: leave room in the budget for those, or count with a tokenizer.
    """
    return -(-len(text.encode("utf-8", "replace")) // 3)
