"""Small random causal LMs of every family that transformers builds from a config alone."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 2,
} | {
    name: value
    for names, value in (
        (("hidden_size", "n_embd", "d_model"), 32),
        (("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
        (("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
        (("num_key_value_heads",), 2),
        (("intermediate_size", "n_inner", "ffn_dim"), 48),
        (("head_dim",), 8),
        (("num_experts", "num_local_experts", "n_routed_experts"), 4),
        (("moe_intermediate_size",), 16),
    )
    for name in names
}
"""Settings of a small model, set where a family's config has them."""
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 4, "mamba_expand": 2}
OWN: dict[str, dict[str, Any]] = {
    "bamba": MAMBA | {"attn_layer_indices": [1], "mamba_n_groups": 1},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "granitemoehybrid": MAMBA | {"layer_types": ["linear_attention", "full_attention"], "mamba_n_groups": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "chunk_size": 4, "n_groups": 1},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "chunk_size": 4, "n_groups": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    **{name: MLA for name in ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "longcat_flash")},
    **{name: MLA for name in ("axk1", "axk2", "glm_moe_dsa", "minicpm3", "youtu")},
    **{
        name: {"layer_types": ["linear_attention", "full_attention"]}
        for name in (
            "minimax",
            "olmo_hybrid",
            "qwen3_next",
            "qwen3_5",
            "qwen3_5_text",
            "qwen3_5_moe",
            "qwen3_5_moe_text",
        )
    },
    **{
        name: MLA | {"layer_types": ["linear_attention", "full_attention"]}
        for name in ("kimi_linear", "bailing_hybrid")
    },
    **{name: {"layer_types": ["linear_attention", "indexed_attention"]} for name in ("qwen4_exp", "qwen4_exp_text")},
    **{name: {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64} for name in ("gemma3n", "gemma3n_text")},
    **{
        name: {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 0}
        for name in ("gemma4", "gemma4_text")
    },
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "dots1": {"n_group": 1, "topk_group": 1, "n_shared_experts": 1},
}
"""What a family needs besides."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "mistral, sliding": ("mistral", {"sliding_window": 6}),
    "gemma 2, sliding": ("gemma2", {"sliding_window": 6}),
    "gemma 3, sliding": ("gemma3_text", {"sliding_window": 6}),
    "granite, scaled logits": ("granite", {"logits_scaling": 8.0}),
    "phi 3, LongRoPE": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 64,
            },
        },
    ),
}
LARGEST = 30_000_000
"""Parameters above which a family counts as one that has no small model."""


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # it differs between layers
        return False


def config_of(kind: str, **settings: Any) -> Any:
    """A small config of a model type, of the text part where there are others."""
    text = CONFIG_MAPPING[kind]().get_text_config()
    given = {name: value for name, value in SMALL.items() if _has(text, name)} | OWN.get(kind, {}) | settings
    if kind == "falcon":
        given.pop("head_dim")
    return type(text)(**given)


def family(kind: str, **settings: Any) -> Any:
    """A small model of a family, its outputs far from uniform.

    Raises:
        Exception: transformers can't build one.
    """
    config = config_of(kind, **settings)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


def names() -> list[str]:
    """Every model type that transformers has a causal LM of, and the variants of some."""
    return [*CAUSAL, *VARIANTS]


def build(name: str) -> Any:
    """The model of a name from `names`."""
    kind, settings = VARIANTS.get(name, (name, {}))
    return family(kind, **settings)


def verdicts(of: list[str] | None = None) -> Iterator[tuple[str, str, float | None, str]]:
    """Of each family: its name, `tree rows`, `plain`, `refused` or `not built`, the largest difference, and why."""
    from popi.engine.plain import plain_reason
    from popi.errors import ModelError
    from popi.models.local.probe import probe

    for name in of or names():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = build(name)
            except Exception as error:
                yield name, "not built", None, f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            try:
                worst = probe(model, name)
            except ModelError as error:
                yield name, "refused", None, str(error)
                continue
        reason = plain_reason(model)
        yield name, "tree rows" if reason is None else "plain", worst, reason or ""
