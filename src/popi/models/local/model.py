"""A local causal LM with its tokenizer and chat template: load, encode, generate, save."""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from os.path import commonprefix
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popi.engine.decoding import decode
from popi.engine.plain import plain_decode, trees_hold
from popi.engine.roots import Roots
from popi.engine.scoring import ScoringItem, pair_logps, soft_pair_logps
from popi.engine.tree import causal_lm
from popi.errors import ModelError, PopiError
from popi.models.backend import BATCH, Backend, Messages, OnReply, Reply
from popi.models.local.adapters import refuse_pickles
from popi.models.local.chat_template import ChatFormat, read_template
from popi.models.local.loading import (
    Source,
    device_of,
    dtype_of,
    first_line,
    load_tokenizer,
    load_weights,
    locate,
    quiet,
    read_json,
    warn_of_another_base,
    whole_adapters,
)
from popi.models.local.probe import probe
from popi.models.local.quantized import quantized, refuse_quantization
from popi.models.remote.usage import meter
from popi.signals.fit import CHARACTERS_PER_TOKEN
from popi.signals.render import Templates, flat
from popi.signals.types import TargetPair

WINDOW = 1024
"""Maximum conversations whose prompts are worth having in memory at once."""
PROMPTS, RESPONSES = 1024, 100_000
"""Maximum conversations and responses whose token ids are cached: groups repeat summaries, epochs repeat targets, and
scored texts are also counted."""


class LocalModel(Backend):
    """A causal LM with its tokenizer and chat template. Several components can share one (see adapters in training)."""

    trainable = True
    prompted = False  # trained models only understand the prompt that they were trained on
    window = WINDOW

    SETTINGS = "popi.json"
    """File saved with the weights that holds popi's settings for them: template set, budgets."""

    def __init__(self, model: Any, tokenizer: Any, name: str, settings: dict[str, Any] | None = None) -> None:
        embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        self.format = ChatFormat(tokenizer, name, None if embeddings is None else embeddings.weight.shape[0])
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.settings: dict[str, Any] = settings or {}
        self.end_id = self.format.end_id
        self.stop_ids = self._find_stop_ids()
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id
        self._response = lru_cache(RESPONSES)(lambda text: tuple(self.encode_response(text)))
        self._prompt = lru_cache(PROMPTS)(lambda turns: tuple(self.encode_chat(json.loads(turns))))

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        chat_template: str | None = None,
        attn_implementation: str = "auto",
        adapter: str | Path | None = None,
        quantization: str = "none",
    ) -> "LocalModel":
        """Load a model; the arguments are the fields of `ModelSpec`. A folder with an `adapter_config.json` is loaded
        as an adapter over its base.

        Raises:
            ModelError: if the model can't be loaded, has no chat template that popi can use, or can't be quantised on
                this machine.
        """
        source = locate(name_or_path)
        beside = Path(source.path) / cls.SETTINGS
        settings = read_json(beside) if beside.is_file() and source.gguf is None else {}
        tokenizer_from = source
        if (Path(source.path) / "adapter_config.json").is_file():
            adapter = source.path
            source = cls._base_of(str(name_or_path), adapter, settings, quantization)
            # A tokenizer saved with the adapter has the chat template that the adapter was trained on.
            has_tokenizer = (Path(adapter) / "tokenizer_config.json").is_file()
            tokenizer_from = Source(adapter) if has_tokenizer else source
        place = device_of(device)
        nano = settings.get("template") == "nano"  # the shipped base, and models trained from it
        refuse_quantization(quantization, place, source.gguf)
        torch_dtype = dtype_of(dtype, place, source, nano)
        packed = None if quantization == "none" else quantized(quantization, torch_dtype, place)
        try:
            with quiet():
                tokenizer = load_tokenizer(tokenizer_from)
                model = load_weights(source, torch_dtype, attn_implementation, packed)
                if adapter is not None:
                    from peft import PeftModel

                    refuse_pickles(Path(adapter))
                    with whole_adapters():
                        model = PeftModel.from_pretrained(model, str(adapter))
                model = (model if packed else model.to(place)).eval()
        except Exception as error:  # for broken folders, transformers, safetensors and tokenizers may raise anything
            where = "" if Path(source.path).is_dir() else "no such folder, and as a hub id it "
            raise ModelError(f"{name_or_path}: {where}can't be loaded as a causal LM ({first_line(error)})") from None
        if place.type != "meta":  # which has no weights to compute with
            probe(causal_lm(model), str(name_or_path))
        if chat_template is not None:
            tokenizer.chat_template = read_template(chat_template)
        return cls(model, tokenizer, str(name_or_path), settings)

    @classmethod
    def _base_of(cls, name: str, adapter: str, settings: dict[str, Any], quantization: str) -> Source:
        """Locate an adapter's base. popi's own setting takes precedence, since PEFT's may be a folder that is gone."""
        base = settings.get("base", read_json(Path(adapter) / "adapter_config.json").get("base_model_name_or_path"))
        try:
            source = locate(base or "")
        except ModelError as error:
            raise ModelError(f"{name}: its base model {base!r}: {error}") from None
        trained_over = settings.get("quantization", "none")
        warn_of_another_base(name, settings.get("base_weights"), source, trained_over, quantization)
        return source

    @property
    def local(self) -> "LocalModel":
        return self

    @property
    def scorer(self) -> "LocalModel":
        return self

    @property
    def revision(self) -> str | None:
        commit = getattr(getattr(self.model, "config", None), "_commit_hash", None)
        return str(commit) if commit else None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def templates(self, name: "str | Templates" = "auto") -> Templates:
        """The prompt templates this model was saved with (`auto`), or the named ones, guarding its special tokens."""
        if isinstance(name, str):
            name = Templates.load(self.settings.get("template", "default") if name == "auto" else name)
        return name.guarding(self.format.markers)

    def _find_stop_ids(self) -> tuple[int, ...]:
        """Tokens that end generation: the end of the turn, and the model's own EOS tokens."""
        config = getattr(self.model, "generation_config", None)
        eos = getattr(config, "eos_token_id", None)
        ids = [self.end_id, self.tokenizer.eos_token_id, *(eos if isinstance(eos, list | tuple) else [eos])]
        return tuple(dict.fromkeys(int(i) for i in ids if i is not None))

    @property
    def context(self) -> int | None:
        """Maximum tokens of prompt and response together."""
        text = self.model.config.get_text_config()
        limit: int | None = getattr(text, "max_position_embeddings", None)
        return limit

    def refuse_beyond(self, tokens: int, description: str, way_out: str) -> None:
        """Raise ModelError for more tokens than the context, where rotary models would silently degrade."""
        if self.context is not None and tokens > self.context:
            raise ModelError(f"{self.name}: {description} exceed its context of {self.context}; {way_out}")

    def _refuse_prompt(self, width: int, new: int) -> None:
        self.refuse_beyond(
            width + new,
            f"{width} tokens of prompt and {new} new ones",
            "lower the maximum tokens to write (--max-tokens, summary.max_tokens) or the signals' token budget "
            "(--token-budget, signals.token_budget)",
        )

    def _refuse_characters(self, text: str) -> str:
        # Checked before tokenising, which takes minutes for megabytes of text.
        if self.context is not None and len(text) > CHARACTERS_PER_TOKEN * self.context:
            raise ModelError(f"{self.name}: a text of {len(text):,} characters exceeds its context of {self.context}")
        return text

    def _encode(self, text: str) -> list[int]:
        return self.format.tokens(text)

    def encode_chat(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of chat messages rendered by the chat template."""
        return self._encode(
            self._refuse_characters(self.format.render([dict(turn) for turn in messages], add_generation_prompt))
        )

    def encode_response(self, text: str) -> list[int]:
        """Token ids of an assistant's text as the template writes it, including the end-of-turn token."""
        return self.format.response(self._refuse_characters(text))

    def count_tokens(self, text: str) -> int:
        return len(self._encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the end-of-turn token."""
        return str(self.tokenizer.decode(self._cut(list(ids))[0], skip_special_tokens=True)).strip()

    def first_tokens(self, ids: Sequence[int], places: Iterable[int]) -> list[int]:
        """For each character position in `decode(ids)`: the index of the first token that starts at or after it. White
        space before a word belongs to the word's token. If no token starts that late, the index is at least the number
        of tokens.

        A token starts where the decoded text of all tokens before it stops being a prefix of the whole text. This works
        for any tokenizer, even if tokens are bytes of a character, or decoding joins words and punctuation. Each
        position needs only a few decodings, not one per token.
        """
        content = self._cut(list(ids))[0]
        full_text = str(self.tokenizer.decode(content, skip_special_tokens=True))
        lead = len(full_text) - len(full_text.lstrip())

        @cache
        def start(k: int) -> int:
            before = str(self.tokenizer.decode(content[:k], skip_special_tokens=True))
            return max(0, len(commonprefix([before, full_text])) - lead)

        return [bisect_left(range(len(content) + 1), place, key=start) for place in places]

    def length(self, ids: Sequence[int]) -> int:
        """Number of generated ids before the first stop token, or all of them without one."""
        return len(self._cut(list(ids))[0])

    def _cut(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Generated ids before the first stop token, and that token."""
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return ids[:end], ids[end : end + 1]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int = 1,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        soft: Tensor | None = None,
        roots: Roots | None = None,
        choose: Callable[[Tensor, int], Tensor] | None = None,
    ) -> list[list[list[int]]]:
        """`n` continuations of every prompt: ids up to and including the end-of-turn token, as [prompt][sample].

        The n samples of a prompt share one prefill. Greedy at temperature 0; otherwise sampled with torch's global
        generator of the model's device. `soft`: (P, k, d) soft prompts to prepend to the prompts. `roots`: the prompts,
        if this model has already read them. `choose`: picks the tokens (see `decode`), if tree rows hold for the model.

        Raises:
            ModelError: if prompt and new tokens exceed the model's context, or its outputs are not finite.
        """
        if soft is not None:  # padding reserves their positions
            prompts = [[self.pad_id] * soft.shape[1] + list(prompt) for prompt in prompts]
        width = max(len(prompt) for prompt in prompts)
        self._refuse_prompt(width, max_new_tokens)
        was_training = self.model.training
        self.model.eval()
        settings: dict[str, Any] = {"steps": max_new_tokens, "temperature": temperature, "top_p": top_p}
        settings |= {"n": n, "stop_ids": self.stop_ids, "end_id": self.end_id, "soft": soft}
        with torch.inference_mode():
            if trees_hold(causal_lm(self.model), width + max_new_tokens):
                drawn = decode(self.model, prompts, **settings, roots=roots, choose=choose)
            else:
                drawn = plain_decode(causal_lm(self.model), prompts, **settings)
        self.model.train(was_training)
        if drawn is None:
            raise ModelError(
                f"{self.name}: the model's outputs are not finite: its weights are damaged, or training diverged "
                "(lower the learning_rate, or use dtype float32)"
            )
        cut = [text + end for text, end in map(self._cut, drawn.tolist())]
        used = meter()
        used.requests += len(prompts)
        used.add((sum(map(len, prompts)), sum(map(len, cut))))
        return [cut[i * n : (i + 1) * n] for i in range(len(prompts))]

    def chat_many(
        self,
        conversations: Sequence[Messages],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        on_result: OnReply | None = None,
        soft: Tensor | None = None,
    ) -> list[Reply | PopiError]:
        """Answer every conversation; those that exceed the context get an error (see `Backend`).

        `soft`: (n, k, d) soft prompts to prepend to the n prompts.
        """
        results: dict[int, Reply | PopiError] = {}
        encoded: dict[int, list[int]] = {}

        def finish(index: int, result: Reply | PopiError) -> None:
            results[index] = result
            if on_result:
                on_result(index, result)

        for i, messages in enumerate(conversations):
            try:
                ids = self.encode_chat(messages)
                self._refuse_prompt(len(ids) + (0 if soft is None else soft.shape[1]), max_tokens)
                encoded[i] = ids
            except ModelError as error:
                finish(i, error)
        order = sorted(encoded, key=lambda i: len(encoded[i]))  # minimises padding
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            drawn = self.generate(
                [encoded[i] for i in batch],
                max_new_tokens=max_tokens,
                temperature=temperature,
                soft=None if soft is None else soft[batch],
            )
            for i, [ids] in zip(batch, drawn, strict=True):
                finish(i, Reply(self.decode(ids), cut=not ids or ids[-1] not in self.stop_ids))
        return [results[i] for i in range(len(conversations))]

    def prompt_tokens_each(self, conversations: Sequence[Messages]) -> list[int | PopiError]:
        """The number of prompt tokens of each conversation."""
        return [len(self.prompt(messages)) for messages in conversations]

    def prompt(self, messages: Messages) -> tuple[int, ...]:
        """Token ids of a conversation, cached."""
        ids: tuple[int, ...] = self._prompt(json.dumps([dict(turn) for turn in messages]))
        return ids

    def score_each(
        self, pairs: Sequence[tuple[Messages, TargetPair]], batch_size: int = 64, soft: Tensor | None = None
    ) -> list[tuple[float, float] | PopiError]:
        """See `Scorer`; `soft` as in `chat_many`.

        Raises:
            ModelError: if a prompt and its response exceed the context.
        """
        items = [self.item(self.prompt(messages), target) for messages, target in pairs]
        if soft is None:
            both = pair_logps(self.model, items, self.pad_id, batch_size)
        else:
            both = soft_pair_logps(self.model, items, soft, self.pad_id, batch_size)
        return list(zip(*(side.tolist() for side in both), strict=True))

    def item(self, prefix: Iterable[int], target: TargetPair) -> ScoringItem:
        """A target pair after a given prefix, to be scored.

        Raises:
            ModelError: if prefix and response exceed the model's context.
        """
        item = ScoringItem(tuple(prefix), self._response(target.chosen), self._response(target.rejected))
        longer = max(len(item.chosen), len(item.rejected))
        self.refuse_beyond(
            len(item.prefix) + longer,
            f"{len(item.prefix)} tokens of prompt and {longer} of a response (to {flat(target.prompt)[:60]!r})",
            "remove this target, or lower summary.max_tokens (raw signals: signals.token_budget)",
        )
        return item

    def save(self, path: str | Path, weights: dict[str, Tensor] | None = None) -> None:
        """Save a regular Hugging Face folder (or adapter folder), loadable without popi, plus `popi.json`."""
        with quiet():
            self.model.save_pretrained(path, state_dict=weights)
        self.tokenizer.save_pretrained(path)
        (Path(path) / self.SETTINGS).write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
