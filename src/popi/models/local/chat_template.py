"""Detect how a model's chat template works: where a response goes, what ends it, and where system text goes.

Model families differ in all of this, and their templates are arbitrary programs. So nothing here is specific to a
family: when a model is loaded, its template is rendered on small conversations and its behaviour is read off. Templates
that popi can't use are refused with a way out.
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
"""The date given to templates that include today's date, so that prompts do not change from day to day."""
_USER, _SYSTEM = "a", "popi reads this system text"
_PROBES = ("b", "Two words: 12.", "c\n\nd")
_OPTIONS: dict[str, Any] = {
    "enable_thinking": False,  # Qwen 3 and others: thoughts would use up the few tokens of a summary
    "date_string": TODAY.strftime("%d %b %Y"),  # Llama 3.1 to 3.3
}
_NOW = (  # prepended to a template, it overrides transformers' function of that name, which reads the clock
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f' | replace("{code}", "{TODAY.strftime(code)}")' for code in ("%d", "%b", "%B", "%Y", "%y", "%m", "%A"))
    + " }}{%- endmacro -%}"
)
WAY_OUT = (
    "provide a Jinja chat template (text or a file) with --chat-template FILE on the command line, or "
    "model.chat_template=FILE in a config"
)


def read_template(template: str) -> str:
    """A chat template given as Jinja text or as the path of a file.

    Raises:
        ModelError: if it is neither.
    """
    if "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"chat template {template!r}: neither Jinja text nor a readable file ({reason})") from None


class ChatFormat:
    """The detected behaviour of a tokenizer's chat template.

    Args:
        tokenizer: a fast transformers tokenizer with a chat template.
        name: the model's name, for messages.
        rows: number of tokens the model has weights for; None: all.

    Attributes:
        end_id: the token that ends an assistant's turn, written by the template after its text.
        takes_system: whether the template supports system text; if not, it is prepended to the first user turn.
        markers: strings that users' text must not contain because the tokenizer gives them a structural meaning.

    Raises:
        ModelError: if there is no template, it fails on a plain conversation, it does not put the response directly
            after the generation prompt, or nothing ends a turn; or if the tokenizer belongs to another model and has
            words without weights in this one.
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
        """Ids of a text. No BOS is added, since templates include it.

        Raises:
            ModelError: if the model has no weights for a token, such as `<image_soft_token>` in Gemma 3 1B.
        """
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.rows is not None and ids and max(ids) >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise ModelError(f"{self.name}: a text contains the token {token!r}, for which the model has no weights")
        return ids

    def render(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> str:
        """A conversation as text.

        Raises:
            ModelError: if the template refuses it.
        """
        placed = list(messages) if self.takes_system else _into_first_user_turn(messages)
        if any(message["role"] == "tool" for message in placed) and not self.takes_tools:
            raise ModelError(
                f"{self.name}: its chat template omits tool calls or their results; {WAY_OUT}, or remove the prompts "
                "with tool turns"
            )
        try:
            return self._apply(placed, add_generation_prompt)
        except Exception as error:  # a template may raise any exception
            roles = ", ".join(str(message.get("role")) for message in placed)
            raise ModelError(f"{self.name}: its chat template refuses turns of {roles} ({error})") from None

    def response(self, text: str) -> list[int]:
        """Ids of an assistant's text after the generation prompt, as written by the template, including the end of
        turn."""
        return [*self._following(self._anchor, self._body(text)), self.end_id]

    def _refuse_another_models(self) -> None:
        """Refuse a vocabulary with words beyond the model's weights. Added tokens are only refused if a text has
        them."""
        if self.rows is None or len(self.tokenizer) <= self.rows:
            return
        added = self.tokenizer.get_added_vocab()
        beyond = [word for word, i in self.tokenizer.get_vocab().items() if i >= self.rows and word not in added]
        if beyond:
            raise ModelError(
                f"{self.name}: its tokenizer has {len(self.tokenizer):,} tokens, but the model only has weights for "
                f"{self.rows:,}, so it belongs to another model ({len(beyond):,} words, such as {beyond[0]!r}, have "
                "none); use the model's own tokenizer"
            )

    # detecting the template's behaviour

    def _apply(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool) -> str:
        template = self.tokenizer.chat_template
        options = _OPTIONS | ({"chat_template": _NOW + template} if "strftime_now" in template else {})
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        )

    def _keeps_system(self) -> bool:
        """Whether system turns are rendered: Gemma's template raises an error, others drop them silently."""
        try:
            turns = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
            return _SYSTEM in self._apply(turns, True)
        except Exception:
            return False

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template renders tool calls, their arguments and their results; many drop them silently."""
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
        required = ("popi_reads_this_call", "popi_reads_this_argument", "popi_reads_this_result")
        try:
            text = self._apply(turns, True)
        except Exception:  # it will also raise on the real turns, with its own explanation
            return True
        return all(word in text for word in required)

    def _after_prompt(self, text: str) -> str:
        """The text after the generation prompt when the assistant's message is `text`."""
        prompt = self._apply(self._user, True)
        conversation = self._apply([*self._user, {"role": "assistant", "content": text}], False)
        if not conversation.startswith(prompt):
            raise ModelError(
                f"{self.name}: its chat template does not put a response directly after the generation prompt: that "
                f"ends in {prompt[-40:]!r}, but a whole conversation ends in {conversation[-60:]!r}, so scoring and "
                f"generation would disagree; {WAY_OUT}"
            )
        return conversation[len(prompt) :]

    def _find_tail(self) -> str:
        """The text that the template puts after an assistant's text, the same for every text."""
        try:
            rests = {text: self._after_prompt(text) for text in _PROBES}
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{self.name}: its chat template fails on a plain conversation ({error})") from None
        tails = set()
        for text, rest in rests.items():
            lead, match, tail = rest.partition(text)
            if not match or lead.strip():
                raise ModelError(
                    f"{self.name}: its chat template writes {rest!r} after the generation prompt for the assistant "
                    f"message {text!r}, so scoring and generation would disagree; {WAY_OUT}"
                )
            tails.add(tail)
        if len(tails) > 1:
            raise ModelError(f"{self.name}: its chat template ends turns in different ways {sorted(tails)}; {WAY_OUT}")
        return tails.pop()

    def _find_end(self) -> tuple[int, bool]:
        """The end-of-turn token, and whether it comes from the template (otherwise it is the tokenizer's EOS)."""
        ids = self.tokens(self._tail) if self._tail else []
        if ids and ids[0] in self.tokenizer.added_tokens_decoder:
            return ids[0], True
        if self.tokenizer.eos_token_id is None:
            raise ModelError(f"{self.name}: neither its chat template nor its tokenizer names an end-of-turn token")
        return int(self.tokenizer.eos_token_id), False

    def _body(self, text: str) -> str:
        """An assistant's text as the template writes it: some strip it, some prepend a space."""
        return self._after_prompt(text).removesuffix(self._tail)

    def _following(self, anchor: str, body: str) -> list[int]:
        """Ids of `body` after `anchor`, since tokenizers may treat the beginning of a text differently."""
        before = self.tokens(anchor) if anchor else []
        ids = self.tokens(anchor + body)
        return ids[len(before) :] if ids[: len(before)] == before else self.tokens(body)

    def _find_anchor(self, ended: bool) -> str:
        """The text to tokenize before a response so that its ids are the same as in a whole conversation."""
        prompt = self._apply(self._user, True)
        start = self.tokens(prompt)
        last = self.tokenizer.added_tokens_decoder.get(start[-1]) if start else None
        ends_in_token = last is not None and prompt.endswith(last.content)
        for anchor in ("", last.content if last and ends_in_token else prompt[-1:]):
            if all(self._agrees(start, anchor, text, ended) for text in _PROBES[:2]):
                return anchor
        warnings.warn(
            f"{self.name}: its tokenizer merges a response with the end of the generation prompt ({prompt[-20:]!r}); "
            "responses are tokenized on their own for scoring",
            stacklevel=4,
        )
        return ""

    def _agrees(self, start: list[int], anchor: str, text: str, ended: bool) -> bool:
        token_ids = self.tokens(self._apply([*self._user, {"role": "assistant", "content": text}], False))
        response = [*self._following(anchor, self._body(text)), *([self.end_id] if ended else [])]
        return token_ids[: len(start) + len(response)] == [*start, *response]

    def _find_markers(self) -> tuple[str, ...]:
        """Special tokens, and other added tokens that the template writes.

        Other added tokens are allowed: Gemma's include runs of line breaks, which users may write.
        """
        turns = [{"role": "system", "content": _SYSTEM}, *self._user, {"role": "assistant", "content": _PROBES[0]}]
        try:
            used = set(self.tokens(self.render(turns, False)) + self.tokens(self.render(turns[:2])))
        except ModelError:
            used = set()
        added = self.tokenizer.added_tokens_decoder.items()
        markers = [token.content for i, token in added if token.content.strip() and (token.special or i in used)]
        unguarded = [token for token in markers if neutralise(token) == token]
        return tuple(dict.fromkeys((*self.tokenizer.all_special_tokens, *unguarded)))


def _into_first_user_turn(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prepend the system text to the first user turn, separated by a blank line. Only done here."""
    system = "\n\n".join(str(message["content"]) for message in messages if message["role"] == "system")
    turns = [dict(message) for message in messages if message["role"] != "system"]
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if not system:
        return turns
    if first is None:
        return [{"role": "user", "content": system}, *turns]
    first["content"] = f"{system}\n\n{first['content']}"
    return turns
