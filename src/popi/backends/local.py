"""A local causal LM with its tokenizer and chat template: load, encode, generate, save."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from popi.errors import ModelError
from popi.signals.render import Templates

NANO = Path(__file__).parent.parent / "nano" / "base"
GREEDY = 1e-5
"""Below this temperature decoding is greedy: the quotient would overflow, and the limit is the same."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_path(name: str | Path) -> str:
    """`nano` is the base shipped with popi; anything else is a folder or a hub id."""
    return str(NANO) if str(name) == "nano" else str(name)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars: popi draws its own, and they would break into each other."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _read_template(template: str | None) -> str | None:
    if template is None or "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"chat template {template!r}: neither Jinja text nor a readable file ({reason})") from None


def _check_path(name: str, path: str) -> None:
    """Say what is wrong with a path before transformers takes it for a hub id, or the other way round."""
    folder = Path(path)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"{name}: no model in this folder (it has neither config.json nor adapter_config.json)")
    elif folder.exists():
        raise ModelError(f"{name}: is a file; name the folder of a Hugging Face model")
    elif not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        raise ModelError(f"{name or repr(name)}: no such folder, and not the form of a hub id (owner/name)")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: can't be read ({error})") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: must hold a JSON object; got {type(content).__name__}")
    return content


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # an unknown name; or not on this machine
        raise ModelError(f"device {name!r} can't be used here ({_first_line(error)}); try auto or cpu") from None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class LocalModel:
    """A causal LM, its tokenizer and its chat template. Several jobs can share one (see adapters in training)."""

    SETTINGS = "popi.json"
    """File beside the weights with what popi must know to use them: template set, budgets."""

    def __init__(self, model: Any, tokenizer: Any, name: str, settings: dict[str, Any] | None = None) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"{name}: the tokenizer has no chat template; give one with model.chat_template=TEXT_OR_FILE"
            )
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.settings = settings or {}
        self.end_id: int = self._find_end_id()
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_id

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        chat_template: str | None = None,
        adapter: str | Path | None = None,
    ) -> "LocalModel":
        """Load a model by folder or hub id; a folder with an `adapter_config.json` is an adapter over its base.

        Raises:
            ModelError: nothing can be loaded from there, or there is no chat template.
        """
        path = model_path(name_or_path)
        beside = Path(path) / cls.SETTINGS
        _check_path(str(name_or_path), path)
        settings = _read_json(beside) if beside.is_file() else {}
        if (Path(path) / "adapter_config.json").is_file():
            base = _read_json(Path(path) / "adapter_config.json").get("base_model_name_or_path")
            base = settings.get("base", base)  # `nano` is a name that holds on every machine; PEFT needs the folder
            adapter, path = path, model_path(base or "")
            _check_path(f"{name_or_path}: its base model {path!r}", path)
        place = _device(device)
        nano = settings.get("template") == "nano"  # the shipped base, and what was trained from it
        small = nano or place.type == "cpu" or not torch.cuda.is_bf16_supported()
        torch_dtype = DTYPES["float32" if small else "bfloat16"] if dtype == "auto" else DTYPES[dtype]
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(path)
                model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch_dtype, attn_implementation="sdpa")
                if adapter is not None:
                    from peft import PeftModel

                    model = PeftModel.from_pretrained(model, str(adapter))
                model = model.to(place).eval()
        except Exception as error:  # broken folders make transformers, safetensors and tokenizers raise anything
            where = "" if Path(path).is_dir() else "no such folder, and as a hub id it "
            raise ModelError(f"{name_or_path}: {where}can't be loaded as a causal LM ({_first_line(error)})") from None
        if chat_template is not None:
            tokenizer.chat_template = _read_template(chat_template)
        return cls(model, tokenizer, str(name_or_path), settings)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def templates(self, name: "str | Templates" = "auto") -> Templates:
        """The prompt templates this model was saved with (`auto`), or those named; its special tokens are guarded."""
        if isinstance(name, str):
            name = Templates.load(self.settings.get("template", "default") if name == "auto" else name)
        return name.guarding(self.tokenizer.all_special_tokens)

    def _find_end_id(self) -> int:
        """The token that ends an assistant's turn: what the template puts behind its text."""
        user = {"role": "user", "content": "a"}
        try:
            start = self.encode_chat([user])
            whole = self.encode_chat([user, {"role": "assistant", "content": "b"}], add_generation_prompt=False)
        except Exception as error:  # a template may raise anything
            raise ModelError(f"{self.name}: its chat template fails on a plain conversation ({error})") from None
        text = self._encode("b")
        after = whole[len(start) + len(text) :]
        if whole[: len(start)] == start and after and after[0] in self.tokenizer.all_special_ids:
            return int(after[0])
        if self.tokenizer.eos_token_id is None:
            raise ModelError(f"{self.name}: neither its chat template nor its tokenizer names an end-of-turn token")
        return int(self.tokenizer.eos_token_id)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_chat(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of chat messages under the chat template."""
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return self._encode(text)

    def encode_response(self, text: str) -> list[int]:
        """Token ids of an assistant's text, end-of-turn token included."""
        return [*self._encode(text), self.end_id]

    def count_tokens(self, text: str) -> int:
        return len(self._encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the end-of-turn token."""
        ids = list(ids)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int = 1,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> list[list[list[int]]]:
        """`n` continuations of every prompt: ids up to and with the end-of-turn token, as [prompt][sample].

        One prefill serves the n samples of a prompt. Greedy at temperature 0; else drawn from torch's global
        generator of the model's device.

        Raises:
            ModelError: prompt and new tokens exceed the model's context, or its outputs are not numbers.
        """
        width = max(len(prompt) for prompt in prompts)
        context = getattr(self.model.config, "max_position_embeddings", None)
        if context is not None and width + max_new_tokens > context:
            raise ModelError(
                f"{self.name}: {width} tokens of prompt and {max_new_tokens} new ones exceed its context of {context}; "
                "lower the most tokens to write, or shorten the prompt (signals: signals.token_budget)"
            )
        ids = torch.full((len(prompts), width), self.pad_id)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):  # padded on the left: all rows end together
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            drawn = self._decode_loop(ids, mask, n, max_new_tokens, temperature, top_p)
        self.model.train(was_training)
        rows = drawn.tolist()
        cut = [row[: row.index(self.end_id) + 1] if self.end_id in row else row for row in rows]
        return [cut[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _decode_loop(self, ids: Tensor, mask: Tensor, n: int, steps: int, temperature: float, top_p: float) -> Tensor:
        """(P, width) prompts to (P·n, ≤ steps) tokens.

        The n samples of a prompt are branches of one row: each step appends one token per branch, and a branch sees
        the prompt and its own tokens. The prompt's keys and values are neither copied nor read once a sample.
        """
        cache = DynamicCache()
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits.repeat_interleave(n, 0)[:, -1]  # (P·n, V)
        if bool(logits.isnan().any()):
            raise ModelError(
                f"{self.name}: the model's outputs are not numbers: its weights are damaged, or training diverged "
                "(lower the learning_rate, or use dtype float32)"
            )
        dtype = self.model.get_input_embeddings().weight.dtype
        closed = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, float("-inf"))
        visible = closed[:, None, None].repeat(1, 1, n, 1)  # (P, 1, n, width): the prompt, without padding
        own = torch.full((n, n), float("-inf"), dtype=dtype, device=mask.device).fill_diagonal_(0)
        own = own.expand(len(ids), 1, n, n)
        position = mask.sum(1, keepdim=True).expand(-1, n)  # (P, n) next position of each branch
        out: list[Tensor] = []
        done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for step in range(steps):
            token = pick(logits.float(), temperature, top_p)  # (P·n,)
            token = torch.where(done, self.end_id, token)
            out.append(token)
            done |= token == self.end_id
            if step + 1 == steps or bool(done.all()):
                break
            visible = torch.cat([visible, own], -1)
            logits = self.model(
                input_ids=token.reshape(-1, n),
                attention_mask=visible,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).logits.flatten(0, 1)
            position = position + 1
        return torch.stack(out, 1)

    def save(self, path: str | Path) -> None:
        """An ordinary Hugging Face folder (or adapter folder), loadable without popi; plus `popi.json`."""
        with quiet():
            self.model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        (Path(path) / self.SETTINGS).write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")


def pick(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token a row: greedy at temperature 0, else sampled from the nucleus. (rows, V) -> (rows,)."""
    if temperature < GREEDY:
        return logits.argmax(-1)
    probs = torch.softmax(logits / temperature, dim=-1)
    if top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)  # the first token always stays
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)
    return torch.multinomial(probs, 1)[:, 0]
