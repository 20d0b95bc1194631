"""popi's SDPA against one call with the whole mask."""

import pytest
import torch
from exact import assert_exact
from transformers import LlamaConfig, LlamaForCausalLM

from popi.engine.attention import TREE, takes_tree_masks, tree_attention
from popi.engine.masks import additive
from popi.engine.scoring import ScoringItem, pair_logps, pair_logps_plain
from popi.engine.tree import Segment, pack, token_logps


class Module(torch.nn.Module):
    num_key_value_groups = 3
    is_causal = True


def states(queries: int, keys: int, heads: int = 6, kv_heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    return [torch.randn(2, h, n, 8, generator=generator) for h, n in sizes]


def by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    key, value = (x.repeat_interleave(3, 1) for x in (key, value))
    weights = torch.softmax(query @ key.transpose(-1, -2) / 8**0.5 + mask, -1)
    return (weights @ value).transpose(1, 2)


def test_a_short_mask_is_that_of_the_last_queries(precision: torch.dtype) -> None:
    query, key, value = states(9, 9)
    mask = torch.zeros(2, 1, 9, 9).masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), float("-inf"))
    mask[:, :, 7:, 5:7] = float("-inf")  # a second branch does not see the first
    causal = torch.zeros(9, 9).masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), float("-inf"))
    assert not torch.allclose(by_hand(query, key, value, mask), by_hand(query, key, value, causal))
    for rows in (0, 4, 9):
        expected = by_hand(query, key, value, mask if rows else causal)
        found, _ = tree_attention(Module(), query, key, value, mask[:, :, 9 - rows :], scaling=8**-0.5)
        assert_exact(found, expected)


def test_branches_behind_a_cache_share_key_value_heads(precision: torch.dtype) -> None:
    query, key, value = states(4, 11)
    mask = torch.zeros(2, 1, 4, 11)
    mask[:, :, 1, 3:9] = float("-inf")
    found, _ = tree_attention(Module(), query, key, value, mask, scaling=8**-0.5)
    assert_exact(found, by_hand(query, key, value, mask))


def tiny(**more: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=48,
        **more,
    )
    return LlamaForCausalLM(config).eval()


def test_a_model_is_switched_once_and_reads_plain_batches_as_before(precision: torch.dtype) -> None:
    model = tiny()
    ids, mask = torch.randint(1, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0  # padded on the left
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        assert takes_tree_masks(model) and model.config._attn_implementation == TREE
        assert takes_tree_masks(model)
        after = model(input_ids=ids, attention_mask=mask).logits
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert_exact(after[mask.bool()], before[mask.bool()])
    assert generated.shape == (2, 13)
    assert TREE not in model.config.to_json_string(), "a saved model does not name it"


def test_eager_models_keep_their_attention(precision: torch.dtype) -> None:
    model = tiny(attn_implementation="eager")
    assert not takes_tree_masks(model)
    items = [ScoringItem((3, 4, 5), (6, 7), (8,)), ScoringItem((3, 4), (6,), (9, 8))]
    assert_exact(pair_logps(model, items, 0), pair_logps_plain(model, items))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_branches_bring_a_mask(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    model = tiny().to(dtype)
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "popi.engine.tree.additive",
        lambda config, allowed, *rest: seen.append(allowed.shape) or additive(config, allowed, *rest),
    )
    token_logps(model, pack([[Segment(range(1, 31)), Segment([3, 4], 0, True), Segment([5], 0, True)]], 0))
    assert seen == [(1, 1, 4, 33)]  # and the root's last token, which the last layer reads
