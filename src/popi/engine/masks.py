"""Attention masks of popi's own layouts, for models whose attention slides over a window in some layers or in all.

A 4-D mask takes the place of the model's own, window included: it has to bring the window itself.
"""

from typing import Any

import torch
from torch import Tensor


def _kinds(config: Any) -> set[str]:
    """Kinds of the layers' attention; empty where the config names none and nothing slides."""
    window = getattr(config, "sliding_window", None)
    return set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else []))


def slides(config: Any) -> bool:
    """Whether attention slides over a window in some layers or in all."""
    return bool(getattr(config, "sliding_window", None)) and "sliding_attention" in _kinds(config)


def additive(config: Any, allowed: Tensor, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Any:
    """What a decoder takes as `attention_mask`: 0 where attention is allowed, −∞ elsewhere.

    Args:
        config: the text config of the model.
        allowed: (B, 1, Q, K) bool.
        queries: (B, Q) positions of the tokens that attend.
        keys: (B, K) positions of those attended to, which are ancestors where `allowed` is true.
        dtype: of the model's weights.

    Returns:
        (B, 1, Q, K); or for a model with layers of both kinds such a mask for each kind, by its name.
    """
    whole = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))
    if not slides(config):
        return whole
    window, kinds = config.sliding_window, _kinds(config)
    near = (queries[:, :, None] - keys[:, None, :] < window)[:, None]  # (B, 1, Q, K)
    sliding = whole.masked_fill(~near, float("-inf"))
    return sliding if kinds == {"sliding_attention"} else {"full_attention": whole, "sliding_attention": sliding}
