"""Few-layer models of the families with random weights: batched is what single is, wherever the padding stands."""

from typing import Any

import pytest
import torch
from chat_families import tokenizer_of
from exact import assert_exact
from transformers import AutoModelForCausalLM as Auto
from transformers import Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from popi.engine.scoring import ScoringItem, pair_logps, pair_logps_plain
from popi.errors import ModelError
from popi.models.local.model import LocalModel

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama3": (LlamaConfig, {}),
    "qwen25": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "gemma2": (Gemma2Config, {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24}),
    "gemma3": (Gemma3TextConfig, {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24}),
    "mistral": (MistralConfig, {"sliding_window": 24}),
    "smollm2": (LlamaConfig, {}),
}
TEXTS = ("Hi", "Tell me two things about bees.", "Why do cats sleep so much?")


@pytest.fixture(params=KINDS)
def local(request: pytest.FixtureRequest) -> LocalModel:
    kind, more = KINDS[request.param]
    tokenizer = tokenizer_of(request.param)
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
    torch.manual_seed(1)
    model = Auto.from_config(config, dtype=torch.get_default_dtype()).eval()
    return LocalModel(model, tokenizer, request.param)


def _prompts(local: LocalModel) -> list[list[int]]:
    return [local.encode_chat([{"role": "user", "content": text}]) for text in TEXTS]


@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # a near tie may fall either way in float32
def test_batched_generation_is_single_generation(precision: torch.dtype, local: LocalModel) -> None:
    prompts = _prompts(local)
    assert len({len(prompt) for prompt in prompts}) == 3
    together = local.generate(prompts, max_new_tokens=8)
    assert together == [local.generate([prompt], max_new_tokens=8)[0] for prompt in prompts]
    for prompt, [ids] in zip(prompts, together, strict=True):  # and what the model says without popi's masks
        for step, token in enumerate(ids):
            plain = local.model(torch.tensor([prompt + ids[:step]])).logits[0, -1]
            assert int(plain.argmax()) == token


def test_batched_scores_are_single_scores_and_the_models_own(precision: torch.dtype, local: LocalModel) -> None:
    items = [
        ScoringItem(
            tuple(prompt), tuple(local.encode_response("Yes, a little.")), tuple(local.encode_response("no " * n))
        )
        for n, prompt in enumerate(_prompts(local), start=1)
    ]
    together = torch.stack(pair_logps(local.model, items, local.pad_id))
    single = torch.cat([torch.stack(pair_logps(local.model, [item], local.pad_id)) for item in items], dim=1)
    assert_exact(together, single)
    with torch.no_grad():
        assert_exact(together, torch.stack(pair_logps_plain(local.model, items)))


def test_generation_stops_at_every_token_that_ends_a_text(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3 ends turns with one token and texts with another: both end an answer, and neither is in its text."""
    assert local.end_id in local.stop_ids and local.tokenizer.eos_token_id in local.stop_ids
    letter = local.tokenizer.convert_tokens_to_ids("x")
    for stop in local.stop_ids:
        script = iter([letter, stop, letter, letter])
        monkeypatch.setattr("popi.engine.decoding.pick", lambda logits, *_, s=script: torch.tensor([next(s)]))
        ids = local.generate([_prompts(local)[0]], max_new_tokens=4)[0][0]
        assert ids == [letter, stop]
        assert local.decode([*ids, letter]) == "x"


def test_prompts_reach_beyond_a_sliding_window(local: LocalModel) -> None:
    """Else the comparisons above would not show that windows are kept."""
    window = getattr(local.model.config, "sliding_window", None)
    slides = any(kind in local.name for kind in ("gemma", "mistral"))
    assert (window == 24) == slides
    assert all(len(prompt) > 24 for prompt in _prompts(local)[1:])
    with pytest.raises(ModelError, match="exceed its context of 512"):
        local.generate([[5] * 512], max_new_tokens=1)
