"""What a model's chat template does with a conversation: where a response stands, what ends it, where system text goes.

Families of models differ in all of it, and their templates are text that nobody can trust to be regular. So nothing
here knows families: a template is rendered on small conversations when the model is loaded, and what it does is read
off. What it then does not keep to is refused with the way out.
"""

import warnings
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from popi.errors import ModelError
from popi.signals.neutralise import neutralise

TODAY = date(2024, 7, 26)
"""What templates that write today's date are told: a prompt must be the same tomorrow."""
_USER, _SYSTEM = "a", "popi reads this system text"
_PROBES = ("b", "Two words: 12.", "c\n\nd")
_OPTIONS: dict[str, Any] = {
    "enable_thinking": False,  # Qwen 3 and others: thoughts would eat the few tokens of a summary
    "date_string": TODAY.strftime("%d %b %Y"),  # Llama 3.1 to 3.3
}
_NOW = (  # in front of a template, it replaces transformers' function of that name, which reads the clock
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f' | replace("{code}", "{TODAY.strftime(code)}")' for code in ("%d", "%b", "%B", "%Y", "%y", "%m", "%A"))
    + " }}{%- endmacro -%}"
)
WAY_OUT = (
    "give a Jinja chat template (text or a file): --chat-template FILE on the command line, model.chat_template=FILE "
    "in a config"
)


def read_template(template: str) -> str:
    """A chat template given as Jinja text or as the path of a file.

    Raises:
        ModelError: it is neither.
    """
    if "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"chat template {template!r}: neither Jinja text nor a readable file ({reason})") from None


class ChatFormat:
    """A tokenizer's chat template, as it was found to work.

    Args:
        tokenizer: a fast tokenizer of transformers, with a chat template.
        name: the model, for messages.
        rows: how many tokens the model has weights for; None: all.

    Attributes:
        end_id: the token that ends an assistant's turn: what the template puts behind its text.
        takes_system: the template has a place for system text; else it goes in front of the first user turn.
        markers: strings that a user's text must not spell, since the tokenizer makes structure of them.

    Raises:
        ModelError: there is no template, it fails on a plain conversation, or it does not put the response right
            behind the generation prompt; or nothing ends a turn. Or the tokenizer is another model's, with words that
            this one has no weights for.
    """

    def __init__(self, tokenizer: Any, name: str, rows: int | None = None) -> None:
        self.rows = rows
        if not tokenizer.chat_template:
            raise ModelError(f"{name}: the tokenizer has no chat template; {WAY_OUT}")
        self.tokenizer, self.name = tokenizer, name
        self._refuse_another_models()
        self.takes_system = True
        self.takes_system = self._keeps_system()
        self._user = [{"role": "user", "content": _USER}]
        self._tail = self._find_tail()
        self.end_id, ended = self._find_end()
        self._anchor = self._find_anchor(ended)
        self.markers = self._find_markers()

    def tokens(self, text: str) -> list[int]:
        """Ids of a text as it stands: templates write BOS themselves, so none is added.

        Raises:
            ModelError: the model has no weights for a token. Gemma 3 of 1B has none for `<image_soft_token>`, say.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.rows is not None and ids and max(ids) >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise ModelError(f"{self.name}: a text has the token {token!r}, for which the model has no weights")
        return ids

    def render(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """A conversation as text.

        Raises:
            ModelError: the template refuses it.
        """
        placed = list(messages) if self.takes_system else _into_first_user_turn(messages)
        if any(message["role"] == "tool" for message in placed) and not self.takes_tools:
            raise ModelError(
                f"{self.name}: its chat template leaves tool calls or their results out; {WAY_OUT}, or drop "
                "the prompts with tool turns"
            )
        try:
            return self._apply(placed, add_generation_prompt)
        except Exception as error:  # a template may raise anything
            roles = ", ".join(str(message.get("role")) for message in placed)
            raise ModelError(f"{self.name}: its chat template refuses turns of {roles} ({error})") from None

    def response(self, text: str) -> list[int]:
        """Ids of an assistant's text behind the generation prompt, as the template writes it, end of turn included."""
        return [*self._behind(self._anchor, self._body(text)), self.end_id]

    def _refuse_another_models(self) -> None:
        """Words beyond the model's weights; added tokens there are refused where a text has them."""
        if self.rows is None or len(self.tokenizer) <= self.rows:
            return
        added = self.tokenizer.get_added_vocab()
        beyond = [word for word, i in self.tokenizer.get_vocab().items() if i >= self.rows and word not in added]
        if beyond:
            raise ModelError(
                f"{self.name}: its tokenizer has {len(self.tokenizer):,} tokens and the model weights for "
                f"{self.rows:,}: it is another model's ({len(beyond):,} words, {beyond[0]!r} among them, have none)"
            )

    # what the template does

    def _apply(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool) -> str:
        template = self.tokenizer.chat_template
        options = _OPTIONS | ({"chat_template": _NOW + template} if "strftime_now" in template else {})
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        )

    def _keeps_system(self) -> bool:
        """Gemma's template raises on a system turn; others drop it without a word."""
        try:
            turns = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
            return _SYSTEM in self._apply(turns, True)
        except Exception:
            return False

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template writes tool calls, their arguments and their results: many drop them silently."""
        call = {"name": "popi_reads_this_call", "arguments": {"name": "popi_reads_this_argument"}}
        turns: list[dict[str, Any]] = [
            *self._user,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "popi00000", "type": "function", "function": call}],
            },
            {"role": "tool", "content": "popi_reads_this_result", "tool_call_id": "popi00000", "name": call["name"]},
        ]
        wanted = ("popi_reads_this_call", "popi_reads_this_argument", "popi_reads_this_result")
        try:
            text = self._apply(turns, True)
        except Exception:  # a template may raise anything; so it will of the real turns, and says why
            return True
        return all(word in text for word in wanted)

    def _after_prompt(self, text: str) -> str:
        """What stands behind the generation prompt where the assistant says `text`."""
        prompt = self._apply(self._user, True)
        whole = self._apply([*self._user, {"role": "assistant", "content": text}], False)
        if not whole.startswith(prompt):
            raise ModelError(
                f"{self.name}: its chat template does not put a response right behind the generation prompt: that ends "
                f"in {prompt[-40:]!r}, and a whole conversation in {whole[-60:]!r}, so that what is scored would "
                f"not be what is generated; {WAY_OUT}"
            )
        return whole[len(prompt) :]

    def _find_tail(self) -> str:
        """What the template puts behind an assistant's text, the same for every text."""
        try:
            rests = {text: self._after_prompt(text) for text in _PROBES}
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{self.name}: its chat template fails on a plain conversation ({error})") from None
        tails = set()
        for text, rest in rests.items():
            lead, found, tail = rest.partition(text)
            if not found or lead.strip():
                raise ModelError(
                    f"{self.name}: its chat template writes {rest!r} behind the generation prompt where the assistant "
                    f"said {text!r}: what is generated would not be what is scored; {WAY_OUT}"
                )
            tails.add(tail)
        if len(tails) > 1:
            raise ModelError(f"{self.name}: its chat template ends turns in different ways {sorted(tails)}; {WAY_OUT}")
        return tails.pop()

    def _find_end(self) -> tuple[int, bool]:
        """The end-of-turn token, and whether it is the template's own (else the tokenizer's end of sequence)."""
        ids = self.tokens(self._tail) if self._tail else []
        if ids and ids[0] in self.tokenizer.added_tokens_decoder:
            return ids[0], True
        if self.tokenizer.eos_token_id is None:
            raise ModelError(f"{self.name}: neither its chat template nor its tokenizer names an end-of-turn token")
        return int(self.tokenizer.eos_token_id), False

    def _body(self, text: str) -> str:
        """An assistant's text as the template writes it: some strip it, some put a space in front."""
        return self._after_prompt(text).removesuffix(self._tail)

    def _behind(self, anchor: str, body: str) -> list[int]:
        """Ids of a text that follows `anchor`: a tokenizer may begin a text in another way than it goes on."""
        before = self.tokens(anchor) if anchor else []
        ids = self.tokens(anchor + body)
        return ids[len(before) :] if ids[: len(before)] == before else self.tokens(body)

    def _find_anchor(self, ended: bool) -> str:
        """What to tokenize in front of a response so that its ids are those that it has in a whole conversation."""
        prompt = self._apply(self._user, True)
        start = self.tokens(prompt)
        last = self.tokenizer.added_tokens_decoder.get(start[-1]) if start else None
        ends_in_token = last is not None and prompt.endswith(last.content)
        for anchor in ("", last.content if last and ends_in_token else prompt[-1:]):
            if all(self._agrees(start, anchor, text, ended) for text in _PROBES[:2]):
                return anchor
        warnings.warn(
            f"{self.name}: its tokenizer joins a response with the end of the generation prompt ({prompt[-20:]!r}); "
            "responses are scored by the tokens that they have on their own",
            stacklevel=4,
        )
        return ""

    def _agrees(self, start: list[int], anchor: str, text: str, ended: bool) -> bool:
        whole = self.tokens(self._apply([*self._user, {"role": "assistant", "content": text}], False))
        response = [*self._behind(anchor, self._body(text)), *([self.end_id] if ended else [])]
        return whole[: len(start) + len(response)] == [*start, *response]

    def _find_markers(self) -> tuple[str, ...]:
        """Special tokens, and what else of the added ones the template writes.

        Not all added tokens: Gemma has runs of line ends among them, and those are a user's to write.
        """
        turns = [{"role": "system", "content": _SYSTEM}, *self._user, {"role": "assistant", "content": _PROBES[0]}]
        try:
            used = set(self.tokens(self.render(turns, False)) + self.tokens(self.render(turns[:2])))
        except ModelError:
            used = set()
        added = self.tokenizer.added_tokens_decoder.items()
        found = [token.content for i, token in added if token.content.strip() and (token.special or i in used)]
        unguarded = [token for token in found if neutralise(token) == token]
        return tuple(dict.fromkeys((*self.tokenizer.all_special_tokens, *unguarded)))


def _into_first_user_turn(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system text in front of the first user turn's, a blank line between; the only place that moves it."""
    system = "\n\n".join(str(message["content"]) for message in messages if message["role"] == "system")
    turns = [dict(message) for message in messages if message["role"] != "system"]
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if not system:
        return turns
    if first is None:
        return [{"role": "user", "content": system}, *turns]
    first["content"] = f"{system}\n\n{first['content']}"
    return turns
