"""Log-probs of given responses from a server that returns prompt log-probs: vLLM's `prompt_logprobs`.

A response is scored by sending prompt and response together, as token ids, to `POST /v1/completions`. Text would be
tokenized again, possibly across the boundary between the two, and the chat endpoint does not report where the response
begins. Each position's token is looked up in the answer, so an answer about other tokens is an error rather than a
wrong number.
"""

import json
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from popi.errors import BatchError, ConfigError, PopiError, UpstreamError
from popi.models.backend import Messages, values
from popi.models.remote.api import ApiModel
from popi.models.remote.api_url import ApiUrl
from popi.models.remote.batch import send_all
from popi.models.remote.openai import OpenAI, openai_messages
from popi.models.remote.upstream import Session
from popi.signals.types import TargetPair

NEVER = -9999.0
"""vLLM's value for a log-prob of minus infinity, which JSON can't represent."""
CACHED = 100_000
"""Maximum texts whose token ids are cached."""

_Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of a response."""
_TEMPLATE = ("chat_template", "chat_template_kwargs")
"""The `extra` fields of a model that affect how a conversation is tokenized."""
_MARK = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""The form of end-of-turn tokens: <|im_end|>, </s>, [EOS]."""

# The model's own distribution, regardless of the server's default sampling parameters.
_UNTOUCHED = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class Encoder(Protocol):
    """Converts text to the token ids of the server's model, as a `LocalModel` does."""

    def encode_chat(self, messages: Any) -> list[int]:
        """A conversation in the chat template, up to the beginning of the answer."""
        ...

    def encode_response(self, text: str) -> list[int]:
        """An answer, including the end-of-turn token."""
        ...


class VllmScorer:
    """Scores responses given prompts with the model on a vLLM server.

    Args:
        api: the server (`ApiModel.connect`, protocol `openai`).
        encoder: computes token ids locally; without one, the server does with `POST /tokenize` and its own chat
            template.
        end_id: the end-of-turn token, for chat templates from which it can't be determined.

    Raises:
        ConfigError: if `api` uses another protocol.
    """

    def __init__(self, api: ApiModel, encoder: Encoder | None = None, end_id: int | None = None) -> None:
        if not isinstance(api.wire, OpenAI):
            raise ConfigError("scoring needs vLLM's OpenAI-compatible server; connect with protocol='openai'")
        self.api, self.encoder, self.end_id = api, encoder, end_id
        self._ids: dict[str, list[int]] = {}  # a request to tokenise, as JSON -> its token ids

    def logps(self, pairs: Sequence[tuple[Messages, str]]) -> list[float]:
        """Summed log-probs of responses, including the end-of-turn token, one for each (messages, response).

        Equal pairs are scored once.

        Raises:
            BatchError: if some could not be scored; its `results` hold the log-probs of all others.
            UpstreamError: if the end of a turn can't be determined from the server's chat template.
        """
        return values(self.logps_each(pairs))

    def logps_each(self, pairs: Sequence[tuple[Messages, str]]) -> list[float | PopiError]:
        """Like `logps`, with an error for each response that could not be scored.

        Raises:
            UpstreamError: if the end of a turn can't be determined from the server's chat template.
        """
        try:
            encoded = self._encode(pairs)
        except BatchError as error:  # the requests to determine the end of a turn failed
            return [error.first] * len(pairs)
        distinct = list({ids: None for ids in encoded if not isinstance(ids, PopiError)})
        scored = dict(zip(distinct, send_all(self.api.upstream, self._score, distinct), strict=True))
        return [ids if isinstance(ids, PopiError) else scored[ids] for ids in encoded]

    def score_each(
        self, pairs: Sequence[tuple[Messages, TargetPair]], batch_size: int = 64
    ) -> list[tuple[float, float] | PopiError]:
        """See `Scorer`. `batch_size` has no effect, since the server forms its own batches."""
        logps = self.logps_each([(messages, text) for messages, t in pairs for text in (t.chosen, t.rejected)])
        return [_both(chosen, rejected) for chosen, rejected in zip(logps[::2], logps[1::2], strict=True)]

    def prompt_tokens_each(self, conversations: Sequence[Messages]) -> list[int | PopiError]:
        """The number of tokens of each conversation, up to the beginning of the answer; or an error."""
        if self.encoder is not None:
            return [len(self.encoder.encode_chat(list(messages))) for messages in conversations]
        chats = [self._chat(messages) for messages in conversations]
        ids = self._tokenize(chats)
        results = [ids[chat] for chat in chats]
        return [result if isinstance(result, PopiError) else len(result) for result in results]

    # -- token ids --------------------------------------------------------------------------------------------

    def _encode(self, pairs: Sequence[tuple[Messages, str]]) -> list[_Pair | PopiError]:
        if self.encoder is not None:
            encode = self.encoder
            return [(tuple(encode.encode_chat(list(m))), tuple(encode.encode_response(text))) for m, text in pairs]
        if self.end_id is None:
            self.end_id = self._find_end_id()
        requests = [(self._chat(messages), _text(response)) for messages, response in pairs]
        ids = self._tokenize([request for pair in requests for request in pair])
        encoded: list[_Pair | PopiError] = []
        for chat, text in requests:
            prefix, response = ids[chat], ids[text]
            if isinstance(prefix, PopiError):
                encoded.append(prefix)
            elif isinstance(response, PopiError):
                encoded.append(response)
            else:
                encoded.append((tuple(prefix), (*response, self.end_id)))
        return encoded

    def _tokenize(self, requests: Sequence[str]) -> dict[str, list[int] | PopiError]:
        todo = [request for request in dict.fromkeys(requests) if request not in self._ids]
        results: dict[str, list[int] | PopiError] = {r: self._ids[r] for r in requests if r in self._ids}
        results |= zip(todo, send_all(self.api.upstream, self._ask_ids, todo), strict=True)
        if len(self._ids) + len(todo) > CACHED:
            self._ids.clear()
        self._ids |= {request: ids for request in todo if not isinstance(ids := results[request], PopiError)}
        return results

    def _chat(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        body = {"messages": openai_messages(messages), "add_generation_prompt": add_generation_prompt}
        template = {field: self.api.extra[field] for field in _TEMPLATE if field in self.api.extra}
        return json.dumps(body | {"add_special_tokens": False} | template)

    async def _ask_ids(self, session: Session, request: str) -> list[int]:
        body = {"model": self.api.name, **json.loads(request)}
        answer = await session.post("/tokenize", body, api=self._root)
        ids = answer.get("tokens")
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise UpstreamError(f"/tokenize answered without a list of token ids; it has {sorted(answer)}; is it vLLM?")
        return ids

    async def _ask_text(self, session: Session, token: int) -> str:
        answer = await session.post("/detokenize", {"model": self.api.name, "tokens": [token]}, api=self._root)
        return str(answer.get("prompt"))

    @property
    def _root(self) -> ApiUrl:
        """The base URL of vLLM's own endpoints, which are not below /v1."""
        api = self.api.upstream.api
        return replace(api, base=api.base.removesuffix("/v1"))

    def _find_end_id(self) -> int:
        """The token that ends an assistant's turn, which the template puts after its text (as in LocalModel)."""
        user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        requests = [self._chat([user]), self._chat([user, answer], add_generation_prompt=False), _text("b")]
        ids = self._tokenize(requests)
        start, whole, text = values([ids[request] for request in requests])
        before = len(start) + len(text)
        shown = ""
        if whole[:before] == [*start, *text] and len(whole) > before:
            shown = values(send_all(self.api.upstream, self._ask_text, [whole[before]]))[0]
            if _MARK.fullmatch(shown):
                return whole[before]
        raise UpstreamError(
            "the server's chat template does not put an answer directly after its prompt, followed by an end-of-turn "
            f"token (found {shown!r}); set the end-of-turn token with end_id, or pass an encoder"
        )

    # -- log-probs --------------------------------------------------------------------------------------------

    async def _score(self, session: Session, pair: _Pair) -> float:
        prefix, response = pair
        ids = [*prefix, *response]
        body = {
            "model": self.api.name,
            "prompt": ids,
            "max_tokens": 1,  # the minimum that every version supports
            "prompt_logprobs": 0,  # only each prompt token's own log-prob
            "return_token_ids": True,
            # A unique salt keeps a request out of the prefix cache: cached tokens have no log-probs, and some versions
            # of vLLM returned stale memory for them (its issues 8268, 42019).
            "cache_salt": secrets.token_hex(16),
            **_UNTOUCHED,
        }
        answer = await session.post("/completions", body, self.api.wire.tokens)
        return math.fsum(read_logps(answer, ids)[len(prefix) - 1 :])


def _both(chosen: float | PopiError, rejected: float | PopiError) -> tuple[float, float] | PopiError:
    if isinstance(chosen, PopiError):
        return chosen
    return rejected if isinstance(rejected, PopiError) else (chosen, rejected)


def read_logps(answer: dict[str, Any], ids: Sequence[int]) -> list[float]:
    """Log-probs of ``ids[1:]``, each given all previous tokens, from an answer to a request for `prompt_logprobs`.

    Raises:
        UpstreamError: if they are missing, about other tokens, or not finite.
    """
    try:
        choice = answer["choices"][0]
        table = choice.get("prompt_logprobs")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UpstreamError(f"the answer has no choices[0]; it has {sorted(answer)}; is this vLLM?") from None
    if not isinstance(table, list):
        raise UpstreamError(
            "the answer has no prompt_logprobs, so this server can't score responses; use vLLM, the only one supported"
        )
    scored_ids = choice.get("prompt_token_ids")
    if len(table) != len(ids) or (scored_ids is not None and scored_ids != list(ids)):
        raise UpstreamError(
            f"the server did not score the tokens it was sent: {len(ids)} were sent, {len(table)} scored; it may have "
            "shortened the prompt or prepended a token"
        )
    logps = []
    for position in range(1, len(ids)):
        row, token = table[position], str(ids[position])
        entry = row.get(token) if isinstance(row, dict) else None
        logp = entry.get("logprob") if isinstance(entry, dict) else entry
        if not isinstance(logp, (int, float)) or isinstance(logp, bool):
            raise UpstreamError(f"prompt_logprobs[{position}] has no log-prob of token {token}, which was sent there")
        if not NEVER < logp < 1e-3 or not math.isfinite(logp):
            raise UpstreamError(f"prompt_logprobs[{position}]: the log-prob of token {token} can't be {logp}")
        logps.append(float(logp))
    return logps


def _text(text: str) -> str:
    return json.dumps({"prompt": text, "add_special_tokens": False})
