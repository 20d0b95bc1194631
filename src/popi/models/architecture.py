"""The shape and parameter count of a causal LM without loading it, from config.json or a small table."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popi.errors import ConfigError, ModelError
from popi.models.spec import NANO

TABLE = Path(__file__).with_name("known_models.toml")
"""Shapes of common models, for when their config.json is not available."""
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class Architecture:
    """A Llama-like decoder: grouped-query attention, a gated MLP, two norms per layer."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    """Whether the LM head shares the embedding's weights."""
    context: int | None

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each linear map in a layer: q, k, v, o, gate, up, down."""
        d, i, q, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [(d, q), (d, kv), (d, kv), (q, d), (d, i), (d, i), (i, d)]

    @property
    def parameters(self) -> int:
        """Total number of weights, except biases, which are less than a thousandth of them."""
        layer = sum(n * m for n, m in self.linears) + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, rank: int) -> int:
        """Number of weights of one adapter on all linear maps of all layers (`training.adapters`)."""
        return self.layers * rank * sum(n + m for n, m in self.linears)

    @classmethod
    def from_config(cls, config: dict[str, Any], source: str) -> "Architecture":
        """Read a config.json's content.

        Raises:
            ModelError: if required keys are missing; the message lists them.
        """
        config = config.get("text_config", config)
        if missing := [key for key in _NEEDED if not isinstance(config.get(key), int)]:
            raise ModelError(
                f"{source}: no {', '.join(missing)}, so this is not a Llama-like decoder and its memory can't be "
                "estimated; run popi train without --dry-run"
            )
        heads = config["num_attention_heads"]
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=config.get("tie_word_embeddings", True),
            context=config.get("max_position_embeddings"),
        )


def architecture_of(base: str) -> tuple[Architecture, str]:
    """The architecture of `model.base`, and the source it was read from. Uses no network.

    `base` may be `nano`, a folder with a config.json, a model in the hub's cache, one of `known_models.toml`, or a GGUF
    file.

    Raises:
        ModelError: if the folder's config.json can't be read, or is not that of a Llama-like decoder.
        ConfigError: if `base` is none of these.
    """
    folder = NANO if base == "nano" else Path(base)
    file = folder / "config.json" if (folder / "config.json").is_file() else _cached(base)
    if file is not None:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{file}: can't be read ({error})") from None
        return Architecture.from_config(content, str(file)), str(file)
    known = known_models()
    if base not in known and base.endswith(".gguf"):
        return _of_gguf(base)
    if base not in known:
        raise ConfigError(
            f"model.base: {base!r} is not available locally and its shape is unknown; set a folder with a config.json, "
            f"download the model first, or use one of: nano, {', '.join(known)}"
        )
    return Architecture.from_config(known[base], base), f"the table of known models ({base})"


def _of_gguf(base: str) -> tuple[Architecture, str]:
    from transformers import AutoConfig

    from popi.models.local.loading import first_line, locate

    source = locate(base)
    try:
        config = AutoConfig.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=False, **source.arguments()
        )
    except Exception as error:  # transformers' reader may raise any exception
        raise ModelError(f"{base}: its shape can't be read ({first_line(error)})") from None
    return Architecture.from_config(config.to_dict(), base), base


def known_models() -> dict[str, dict[str, Any]]:
    """Name → the keys of its config.json, and `parameters`."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: row for row in table["model"] for name in row["names"]}


def _cached(base: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(base, "config.json")
    except Exception:  # huggingface_hub is not installed, or the name is not a valid hub id
        return None
    return Path(path) if isinstance(path, str) else None
