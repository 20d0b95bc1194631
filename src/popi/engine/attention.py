"""SDPA for popi's own layouts: rows that begin causally and go on as a tree, and branches decoded side by side.

PyTorch's fused kernels compute every query against every key where they are given a mask, and half of that where they
are told that attention is causal. A tree row is causal over its root, which is the signals and most of its tokens: so
the root goes without a mask, and only the branches' queries bring one. The mask is theirs alone, too: S×T for S branch
tokens in a row of T. It is the same sum as with the whole mask, in two calls, on a CPU as on a GPU.
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
"""Most queries behind a longer cache for which the mask is repeated and not the keys and values."""


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA, with two shapes of mask besides those that it takes.

    Args:
        query: (B, heads, Q, head_dim).
        key, value: (B, kv_heads, K, head_dim).
        attention_mask: additive (B, 1, S, K). With S < Q = K it is that of the last S queries, and the others are
            causal. A few queries behind a longer cache (S = Q < K, up to `FOLDED`) share each key/value head with its
            group of heads: no copy of the cache is made for them.

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
            query.reshape(len(query), kv_heads, group * queries, -1),  # a group's heads stand side by side
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
    """Whether a model's attention takes the masks described here; a model with SDPA is switched over and does.

    Models with eager attention (Gemma 2, say) or another one stay as they are.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == "sdpa" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(TREE)
    return bool(config._attn_implementation == TREE)
