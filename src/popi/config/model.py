"""`[model]`: the base model, how it is adapted, and a generator behind an API instead."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from popi.config.section import Filled, Section


class ApiGeneratorConfig(Section):
    url: str | None = Field(default=None, min_length=1)
    """An OpenAI-compatible server that returns the log-probs of its prompt, as vLLM's does (`http://host:8000/v1`):
    the model on it is the generator, frozen, and gives the rewards (docs/api_models.md). Only with the order
    `plug_and_play`. Unset: the generator is a local model."""
    name: str | None = Field(default=None, min_length=1)
    """That model, as the server calls it."""
    key_env: str | None = Field(default=None, min_length=1)
    """The environment variable that holds the server's key; else OPENAI_API_KEY, and none where that is not set."""
    concurrency: PositiveInt = 32
    """Most requests under way at once."""

    @property
    def given(self) -> bool:
        return bool(self.url or self.name)


class ModelConfig(Section):
    base: Filled = "nano"
    """The base model: `nano` (shipped with popi), `smollm2`, a folder, a GGUF file, or a hub id (docs/models.md).
    Inference model, generator and reference all start from it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' type. `auto`: bfloat16 on a GPU that has it, and on a CPU that has it for models from 50 million
    parameters on; float32 else, for the nano model, and where full weights train (half precision would round their
    small updates away). float16 needs a GPU."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    adapter: Literal["none", "lora"] = "none"
    """`none` trains full weights (a copy of the base for each component); `lora` trains two adapters on
    one shared base."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Bits a weight of the base's linear layers (QLoRA, docs/models.md): `4bit` is NF4 with double quantisation, `8bit`
    LLM.int8 without outliers. Needs a GPU, `pip install 'popi[qlora]'` and, to train, `adapter = "lora"`. Embeddings,
    LM head and adapters keep their type."""
    lora_rank: PositiveInt = 16
    """Rank of each LoRA adapter."""
    lora_alpha: PositiveFloat = 32.0
    """LoRA scaling numerator."""
    lora_target_modules: str | list[Filled] = "all-linear"
    """The layers that get adapters: names (`["q_proj", "v_proj"]`), a regular expression, or `all-linear`: every linear
    layer but the LM head."""
    attn_implementation: Filled = "auto"
    """Attention, by transformers' name: `sdpa`, `eager`, `flash_attention_2`, … `auto`: sdpa where the model has it.
    With others than sdpa and eager popi may have to run each text in a row of its own, and says so."""
    chat_template: str | None = None
    """A Jinja chat template (text, or the path of a file) for a tokenizer that has none, or instead of its own."""
    api_generator: ApiGeneratorConfig = ApiGeneratorConfig()
    """A frozen generator behind an API instead of the base."""
