"""SDPA for popi's own layouts: rows that start causally and continue as a tree, and branches decoded side by side.

With a mask, PyTorch's fused kernels compute every query against every key; with causal attention, only half of that.
A tree row is causal over its root, which is the signals and most of its tokens. So the root's queries run without a
mask, and only the branches' queries have one, of S×T for S branch tokens in a row of T. The sums are the same as with
the whole mask, in two calls, on CPU and GPU alike.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TREE = "popi_sdpa"
"""Name of this attention among transformers' own."""
FOLDED = 128
"""Maximum queries after a longer cache for which the mask is repeated instead of the keys and values."""


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA, extended to two more shapes of mask.

    Args:
        query: (B, heads, Q, head_dim).
        key, value: (B, kv_heads, K, head_dim).
        attention_mask: additive (B, 1, S, K). With S < Q = K it applies to the last S queries, and the others are
            causal. For a few queries after a longer cache (S = Q < K, up to `FOLDED`), each group of heads shares its
            key/value head without a copy of the cache.

    Returns:
        (B, Q, heads, head_dim).
    """
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is None or attention_mask.dim() != 4 or arguments.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    rows = attention_mask.shape[2]
    if rows < queries and queries == keys:
        first = queries - rows
        root, _ = sdpa_attention_forward(
            module,
            query[:, :, :first],
            key[:, :, :first],
            value[:, :, :first],
            None,
            **(arguments | {"is_causal": True}),
        )
        if not rows:
            return root, None
        branches, _ = sdpa_attention_forward(module, query[:, :, first:], key, value, attention_mask, **arguments)
        return torch.cat([root, branches], 1), None
    heads, kv_heads = query.shape[1], key.shape[1]
    if 1 < queries < keys and queries <= FOLDED and kv_heads < heads and attention_mask.shape[1] == 1:
        group = heads // kv_heads
        folded = scaled_dot_product_attention(
            query.reshape(len(query), kv_heads, group * queries, -1),  # a group's heads side by side
            key,
            value,
            attn_mask=attention_mask.repeat(1, 1, group, 1),
            scale=arguments.get("scaling"),
        )
        return folded.reshape(len(query), heads, queries, -1).transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)


AttentionInterface.register(TREE, tree_attention)
AttentionMaskInterface.register(TREE, sdpa_mask)


def takes_tree_masks(model: Any) -> bool:
    """Whether a model's attention accepts the masks described here. Switches a model with SDPA to `TREE`.

    Models with eager (such as Gemma 2) or other attention are left unchanged.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(TREE)
    return bool(config._attn_implementation == TREE)
