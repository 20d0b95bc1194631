"""Attention masks for popi's own layouts, with support for sliding-window attention in some or all layers.

A 4-D mask replaces the model's own mask, including its window, so it has to apply the window itself.
"""

from typing import Any

import torch
from torch import Tensor


def _kinds(config: Any) -> set[str]:
    """Kinds of the layers' attention; empty if the config names none and there is no sliding window."""
    window = getattr(config, "sliding_window", None)
    return set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else []))


def slides(config: Any) -> bool:
    """Whether some or all layers have sliding-window attention."""
    return bool(getattr(config, "sliding_window", None)) and "sliding_attention" in _kinds(config)


def additive(config: Any, allowed: Tensor, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Any:
    """A decoder's `attention_mask`: 0 where attention is allowed, −∞ elsewhere.

    Args:
        config: the text config of the model.
        allowed: (B, 1, Q, K) bool.
        queries: (B, Q) positions of the tokens that attend.
        keys: (B, K) positions of the tokens attended to, which are ancestors where `allowed` is true.
        dtype: dtype of the model's weights.

    Returns:
        (B, 1, Q, K), or a dictionary with such a mask per kind of attention if the model has both kinds.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))
    if not slides(config):
        return mask
    window, kinds = config.sliding_window, _kinds(config)
    near = (queries[:, :, None] - keys[:, None, :] < window)[:, None]  # (B, 1, Q, K)
    sliding = mask.masked_fill(~near, float("-inf"))
    return sliding if kinds == {"sliding_attention"} else {"full_attention": mask, "sliding_attention": sliding}
