"""What models are taken, and how their weights are loaded."""

from pathlib import Path
from typing import Any

import torch
import transformers as tf

from popi.models.local.loading import Source, load_weights

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
}


def saved(model: Any, folder: Path) -> Source:
    model.save_pretrained(folder)
    return Source(str(folder))


def test_attention_drops_nothing_and_the_config_stays(tmp_path: Path) -> None:
    """TRL switches off the modules of dropout; attention's is a number of each layer."""
    source = saved(tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, attention_dropout=0.5)), tmp_path)
    model = load_weights(source, torch.float32).train()
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert model.config.attention_dropout == 0.5
