"""`[model]`: the base model, how it is adapted, and a generator behind an API instead."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from popi.config.section import Filled, Section, VariableName


class ApiGeneratorConfig(Section):
    url: str | None = Field(default=None, min_length=1)
    """An OpenAI-compatible server that returns prompt log-probs, as vLLM does (`http://host:8000/v1`). Its model is the
    frozen generator, and the rewards come from it (docs/api_models.md). Requires the order `plug_and_play`. Unset: the
    generator is a local model."""
    name: str | None = Field(default=None, min_length=1)
    """The model's name on that server."""
    key_env: VariableName | None = None
    """Environment variable that holds the server's API key. Unset: OPENAI_API_KEY if that exists, else no key is
    sent."""
    concurrency: PositiveInt = 32
    """Maximum concurrent requests."""
    retries: NonNegativeInt = 5
    """How often a request is sent again while the server does not respond, or is overloaded: after 1, 2, 4, … up to 60
    seconds, each halved at most by chance. 5 take up to half a minute, 25 last through ten minutes. Then the run stops,
    and resumes with `--resume`, also with another number."""

    @property
    def given(self) -> bool:
        return bool(self.url or self.name)


class ModelConfig(Section):
    base: Filled = "nano"
    """The base model: `nano` (shipped with popi), `smollm2`, a folder, a GGUF file, or a hub id (docs/models.md).
    Inference model, generator and reference all start from it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights. `auto`: bfloat16 on GPUs that support it, and on CPUs that do if the model has at least
    50 million parameters; float32 otherwise, for the nano model, and when full weights are trained (half precision
    would round their small updates away). float16 needs a GPU."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, …"""
    adapter: Literal["none", "lora"] = "none"
    """`none` trains full weights (one copy of the base per component); `lora` trains two adapters on one shared
    base."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Bits per weight in the base's linear layers (QLoRA, docs/models.md): `4bit` is NF4 with double quantisation,
    `8bit` is LLM.int8 without outliers. Needs a GPU, `pip install 'popi[qlora]'` and, to train, `adapter = "lora"`.
    Embeddings, LM head and adapters are not quantised."""
    lora_rank: PositiveInt = 16
    """Rank of each LoRA adapter."""
    lora_alpha: PositiveFloat = 32.0
    """LoRA scaling numerator."""
    lora_target_modules: str | list[Filled] = "all-linear"
    """The layers that get adapters: names (`["q_proj", "v_proj"]`), a regular expression, or `all-linear` for every
    linear layer except the LM head."""
    attn_implementation: Filled = "auto"
    """Attention implementation, by transformers' name: `sdpa`, `eager`, `flash_attention_2`, … `auto`: sdpa if the
    model supports it. With anything other than sdpa and eager, popi may have to run each text in its own row; it
    reports this."""
    chat_template: str | None = None
    """A Jinja chat template (text, or a file's path) for a tokenizer that has none, or to replace its own."""
    api_generator: ApiGeneratorConfig = ApiGeneratorConfig()
    """A frozen generator behind an API, instead of the base."""
