"""A local causal LM with its tokenizer and chat template: load, encode, generate, save."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popi.engine.decoding import decode
from popi.engine.plain import plain_decode, trees_hold
from popi.engine.roots import Roots
from popi.engine.tree import causal_lm
from popi.errors import ModelError
from popi.models.local.chat_template import ChatFormat, read_template
from popi.models.local.loading import (
    NANO,
    Source,
    device_of,
    dtype_of,
    first_line,
    load_tokenizer,
    load_weights,
    locate,
    model_path,
    quiet,
    read_json,
    warn_of_another_base,
    whole_adapters,
)
from popi.models.local.probe import probe
from popi.models.remote.usage import meter
from popi.signals.fit import CHARACTERS
from popi.signals.render import Templates

__all__ = ["NANO", "LocalModel", "model_path", "quiet"]


class LocalModel:
    """A causal LM, its tokenizer and its chat template. Several jobs can share one (see adapters in training)."""

    SETTINGS = "popi.json"
    """File beside the weights with what popi must know to use them: template set, budgets."""

    def __init__(self, model: Any, tokenizer: Any, name: str, settings: dict[str, Any] | None = None) -> None:
        embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        self.format = ChatFormat(tokenizer, name, None if embeddings is None else embeddings.weight.shape[0])
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.settings = settings or {}
        self.end_id = self.format.end_id
        self.stop_ids = self._find_stop_ids()
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id

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
    ) -> "LocalModel":
        """Load a model; a folder with an `adapter_config.json` is an adapter over its base.

        Args:
            name_or_path: `nano`, `smollm2`, a folder, a GGUF file or a hub id (see `loading.locate`).
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, …
            chat_template: Jinja text or a file, in place of the tokenizer's own.
            attn_implementation: attention by transformers' name; `auto` is its choice.
            adapter: the folder of an adapter to put over the model.

        Raises:
            ModelError: nothing can be loaded from there, or there is no chat template that popi can use.
        """
        source = locate(name_or_path)
        beside = Path(source.path) / cls.SETTINGS
        settings = read_json(beside) if beside.is_file() and source.gguf is None else {}
        tokenizer_from = source
        if (Path(source.path) / "adapter_config.json").is_file():
            adapter = source.path
            source = cls._base_of(str(name_or_path), adapter, settings)
            # Saved beside the adapter: with the chat template that it was trained on.
            own = (Path(adapter) / "tokenizer_config.json").is_file()
            tokenizer_from = Source(adapter) if own else source
        place = device_of(device)
        nano = settings.get("template") == "nano"  # the shipped base, and what was trained from it
        torch_dtype = dtype_of(dtype, place, source, nano)
        try:
            with quiet():
                tokenizer = load_tokenizer(tokenizer_from)
                model = load_weights(source, torch_dtype, attn_implementation)
                if adapter is not None:
                    from peft import PeftModel

                    with whole_adapters():
                        model = PeftModel.from_pretrained(model, str(adapter))
                model = model.to(place).eval()
        except Exception as error:  # broken folders make transformers, safetensors and tokenizers raise anything
            where = "" if Path(source.path).is_dir() else "no such folder, and as a hub id it "
            raise ModelError(f"{name_or_path}: {where}can't be loaded as a causal LM ({first_line(error)})") from None
        if place.type != "meta":  # no weights, nothing to compare
            probe(causal_lm(model), str(name_or_path))
        if chat_template is not None:
            tokenizer.chat_template = read_template(chat_template)
        return cls(model, tokenizer, str(name_or_path), settings)

    @classmethod
    def _base_of(cls, name: str, adapter: str, settings: dict[str, Any]) -> Source:
        """Where the base of an adapter lies; popi's note of it goes first: PEFT's may hold a folder long gone."""
        base = settings.get("base", read_json(Path(adapter) / "adapter_config.json").get("base_model_name_or_path"))
        try:
            source = locate(base or "")
        except ModelError as error:
            raise ModelError(f"{name}: its base model {base!r}: {error}") from None
        warn_of_another_base(name, settings.get("base_weights"), source)
        return source

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def templates(self, name: "str | Templates" = "auto") -> Templates:
        """The prompt templates this model was saved with (`auto`), or those named; its special tokens are guarded."""
        if isinstance(name, str):
            name = Templates.load(self.settings.get("template", "default") if name == "auto" else name)
        return name.guarding(self.format.markers)

    def _find_stop_ids(self) -> tuple[int, ...]:
        """Tokens that end generation: the end of the turn, and what the model itself ends a text with."""
        config = getattr(self.model, "generation_config", None)
        named = getattr(config, "eos_token_id", None)
        ids = [self.end_id, self.tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
        return tuple(dict.fromkeys(int(i) for i in ids if i is not None))

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and response together."""
        text = self.model.config.get_text_config()
        limit: int | None = getattr(text, "max_position_embeddings", None)
        return limit

    def refuse_beyond(self, tokens: int, what: str, way_out: str) -> None:
        """Raise ModelError for more tokens than the context: rotary models read on without a word, and badly."""
        if self.context is not None and tokens > self.context:
            raise ModelError(f"{self.name}: {what} exceed its context of {self.context}; {way_out}")

    def _refuse_characters(self, text: str) -> str:
        if self.context is not None and len(text) > CHARACTERS * self.context:  # megabytes take minutes to tokenise
            raise ModelError(f"{self.name}: a text of {len(text):,} characters exceeds its context of {self.context}")
        return text

    def _encode(self, text: str) -> list[int]:
        return self.format.tokens(text)

    def encode_chat(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of chat messages under the chat template."""
        return self._encode(self._refuse_characters(self.format.render(messages, add_generation_prompt)))

    def encode_response(self, text: str) -> list[int]:
        """Token ids of an assistant's text as the template writes it, end-of-turn token included."""
        return self.format.response(self._refuse_characters(text))

    def count_tokens(self, text: str) -> int:
        return len(self._encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the end-of-turn token."""
        return str(self.tokenizer.decode(self._cut(list(ids))[0], skip_special_tokens=True)).strip()

    def length(self, ids: Sequence[int]) -> int:
        """How many generated ids there are before the token that ends them; all of them where none does."""
        return len(self._cut(list(ids))[0])

    def _cut(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Generated ids before the first that ends them, and that one."""
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
    ) -> list[list[list[int]]]:
        """`n` continuations of every prompt: ids up to and with the end-of-turn token, as [prompt][sample].

        One prefill serves the n samples of a prompt. Greedy at temperature 0; else drawn from torch's global
        generator of the model's device. `soft`: (P, k, d) soft prompts to stand in front of the prompts. `roots`: the
        prompts, where this model has read them already.

        Raises:
            ModelError: prompt and new tokens exceed the model's context, or its outputs are not numbers.
        """
        if soft is not None:  # padding keeps their places
            prompts = [[self.pad_id] * soft.shape[1] + list(prompt) for prompt in prompts]
        width = max(len(prompt) for prompt in prompts)
        self.refuse_beyond(
            width + max_new_tokens,
            f"{width} tokens of prompt and {max_new_tokens} new ones",
            "lower the most tokens to write, or shorten the prompt (signals: signals.token_budget)",
        )
        was_training = self.model.training
        self.model.eval()
        settings: dict[str, Any] = {"steps": max_new_tokens, "temperature": temperature, "top_p": top_p}
        settings |= {"n": n, "stop_ids": self.stop_ids, "end_id": self.end_id, "soft": soft}
        with torch.inference_mode():
            if trees_hold(causal_lm(self.model), width + max_new_tokens):
                drawn = decode(self.model, prompts, **settings, roots=roots)
            else:
                drawn = plain_decode(causal_lm(self.model), prompts, **settings)
        self.model.train(was_training)
        if drawn is None:
            raise ModelError(
                f"{self.name}: the model's outputs are not numbers: its weights are damaged, or training diverged "
                "(lower the learning_rate, or use dtype float32)"
            )
        cut = [text + end for text, end in map(self._cut, drawn.tolist())]
        used = meter()
        used.requests += len(prompts)
        used.add((sum(map(len, prompts)), sum(map(len, cut))))
        return [cut[i * n : (i + 1) * n] for i in range(len(prompts))]

    def save(self, path: str | Path) -> None:
        """An ordinary Hugging Face folder (or adapter folder), loadable without popi; plus `popi.json`."""
        with quiet():
            self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        (Path(path) / self.SETTINGS).write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
