"""Log-probs of given responses from a server that returns them for its prompt: vLLM's `prompt_logprobs`.

A response is scored by sending prompt and response together, as token ids, to `POST /v1/completions`. Ids and not
text, since text would be cut into tokens anew, perhaps across the border between the two; and not the chat
endpoint, which does not say where the response begins. Every position's own token is looked up in the answer, so an
answer about other tokens is an error and not a number.
"""

import json
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from popi.errors import BatchError, ConfigError, PopiError, UpstreamError
from popi.models.remote.api import ApiModel
from popi.models.remote.api_url import ApiUrl
from popi.models.remote.batch import send_all, values
from popi.models.remote.chat import Messages, openai_messages
from popi.models.remote.openai import OpenAI
from popi.models.remote.upstream import Session

NEVER = -9999.0
"""What vLLM says for a log-prob of minus infinity, which JSON can't hold."""
CACHED = 100_000
"""Most texts whose token ids are remembered."""

_Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a prompt and of a response."""
_TEMPLATE = ("chat_template", "chat_template_kwargs")
"""Those of a model's `extra` fields that say how a conversation becomes tokens."""
_MARK = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""How end-of-turn tokens look: <|im_end|>, </s>, [EOS]."""

# The model's own distribution: whatever sampling the server was told to do by default is switched off.
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
    """Text to token ids, as the server's model has them; a `LocalModel` is one."""

    def encode_chat(self, messages: Any) -> list[int]:
        """A conversation under the chat template, up to where the answer begins."""
        ...

    def encode_response(self, text: str) -> list[int]:
        """An answer, end-of-turn token included."""
        ...


class VllmScorer:
    """Scores responses under prompts with the model on a vLLM server.

    Args:
        api: the server (`ApiModel.connect`, protocol `openai`).
        encoder: makes token ids here; without one the server does, by `POST /tokenize` and its own chat template.
        end_id: the end-of-turn token, for a chat template from which it can't be read.

    Raises:
        ConfigError: the server is spoken to in another protocol.
    """

    def __init__(self, api: ApiModel, encoder: Encoder | None = None, end_id: int | None = None) -> None:
        if not isinstance(api.wire, OpenAI):
            raise ConfigError("responses are scored by vLLM's OpenAI-compatible server; connect with protocol='openai'")
        self.api, self.encoder, self.end_id = api, encoder, end_id
        self._ids: dict[str, list[int]] = {}  # a request to tokenise, as JSON -> its token ids

    def logps(self, pairs: Sequence[tuple[Messages, str]]) -> list[float]:
        """Summed log-probs of responses, the end-of-turn token included: one for each (messages, response).

        Equal pairs are scored once.

        Raises:
            BatchError: some could not be scored; its `results` hold the log-probs of all others.
            UpstreamError: the server's chat template does not say where a turn ends.
        """
        return values(self.logps_each(pairs))

    def logps_each(self, pairs: Sequence[tuple[Messages, str]]) -> list[float | PopiError]:
        """As `logps`, with the error in the place of a response that could not be scored.

        Raises:
            UpstreamError: the server's chat template does not say where a turn ends.
        """
        try:
            encoded = self._encode(pairs)
        except BatchError as error:  # not even the end of a turn could be asked for
            return [error.first] * len(pairs)
        distinct = list({ids: None for ids in encoded if not isinstance(ids, PopiError)})
        scored = dict(zip(distinct, send_all(self.api.upstream, self._score, distinct), strict=True))
        return [ids if isinstance(ids, PopiError) else scored[ids] for ids in encoded]

    def prompt_tokens(self, conversations: Sequence[Messages]) -> list[int]:
        """How many tokens each conversation takes, up to where the answer begins.

        Raises:
            BatchError: some could not be counted.
        """
        return values(self.prompt_tokens_each(conversations))

    def prompt_tokens_each(self, conversations: Sequence[Messages]) -> list[int | PopiError]:
        """As `prompt_tokens`, with the error in the place of a conversation that could not be counted."""
        if self.encoder is not None:
            return [len(self.encoder.encode_chat(list(messages))) for messages in conversations]
        chats = [self._chat(messages) for messages in conversations]
        ids = self._tokenize(chats)
        return [found if isinstance(found, PopiError) else len(found) for found in (ids[chat] for chat in chats)]

    # -- token ids --------------------------------------------------------------------------------------------

    def _encode(self, pairs: Sequence[tuple[Messages, str]]) -> list[_Pair | PopiError]:
        if self.encoder is not None:
            encode = self.encoder
            return [(tuple(encode.encode_chat(list(m))), tuple(encode.encode_response(text))) for m, text in pairs]
        if self.end_id is None:
            self.end_id = self._find_end_id()
        asked = [(self._chat(messages), _text(response)) for messages, response in pairs]
        ids = self._tokenize([request for pair in asked for request in pair])
        encoded: list[_Pair | PopiError] = []
        for chat, text in asked:
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
        found: dict[str, list[int] | PopiError] = {r: self._ids[r] for r in requests if r in self._ids}
        found |= zip(todo, send_all(self.api.upstream, self._ask_ids, todo), strict=True)
        if len(self._ids) + len(todo) > CACHED:
            self._ids.clear()
        self._ids |= {request: ids for request in todo if not isinstance(ids := found[request], PopiError)}
        return found

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
        """Where vLLM has its own paths: beside /v1, not under it."""
        api = self.api.upstream.api
        return replace(api, base=api.base.removesuffix("/v1"))

    def _find_end_id(self) -> int:
        """The token that ends an assistant's turn: what the template puts behind its text (as in LocalModel)."""
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
            "the server's chat template does not put an answer right behind its prompt and a mark behind that "
            f"(there is {shown!r}); name the end-of-turn token with end_id, or give an encoder"
        )

    # -- log-probs --------------------------------------------------------------------------------------------

    async def _score(self, session: Session, pair: _Pair) -> float:
        prefix, response = pair
        ids = [*prefix, *response]
        body = {
            "model": self.api.name,
            "prompt": ids,
            "max_tokens": 1,  # the least that every version generates
            "prompt_logprobs": 0,  # of each prompt token its own, and no others
            "return_token_ids": True,
            # A salt of its own keeps a request out of the prefix cache: tokens read from there have no log-probs,
            # and versions of vLLM have answered with what was left in memory (its issues 8268, 42019).
            "cache_salt": secrets.token_hex(16),
            **_UNTOUCHED,
        }
        answer = await session.post("/completions", body, self.api.wire.tokens)
        return math.fsum(read_logps(answer, ids)[len(prefix) - 1 :])


def read_logps(answer: dict[str, Any], ids: Sequence[int]) -> list[float]:
    """Log-probs of ``ids[1:]``, each given all before it, off an answer to a request for `prompt_logprobs`.

    Raises:
        UpstreamError: they are not there, or not about these tokens, or not finite.
    """
    try:
        choice = answer["choices"][0]
        table = choice.get("prompt_logprobs")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UpstreamError(f"the answer has no choices[0]; it has {sorted(answer)}; is this vLLM?") from None
    if not isinstance(table, list):
        raise UpstreamError(
            "the answer has no prompt_logprobs: this server can't score responses; vLLM can, popi knows of no other way"
        )
    seen = choice.get("prompt_token_ids")
    if len(table) != len(ids) or (seen is not None and seen != list(ids)):
        raise UpstreamError(
            f"the server scored other tokens than it was sent: {len(ids)} were sent, {len(table)} scored; "
            "it may have shortened the prompt or put a token before it"
        )
    logps = []
    for position in range(1, len(ids)):
        row, token = table[position], str(ids[position])
        entry = row.get(token) if isinstance(row, dict) else None
        logp = entry.get("logprob") if isinstance(entry, dict) else entry
        if not isinstance(logp, (int, float)) or isinstance(logp, bool):
            raise UpstreamError(f"prompt_logprobs[{position}] has no log-prob of the token {token} that was sent there")
        if not NEVER < logp < 1e-3 or not math.isfinite(logp):
            raise UpstreamError(f"prompt_logprobs[{position}]: the log-prob of token {token} can't be {logp}")
        logps.append(float(logp))
    return logps


def _text(text: str) -> str:
    return json.dumps({"prompt": text, "add_special_tokens": False})
