"""Soft prompts: vectors before a prompt, in place of token embeddings (Lester et al., arXiv 2104.08691)."""

import torch
from torch import Tensor


def with_soft_prompts(embed: torch.nn.Module, ids: Tensor, soft: Tensor, first: Tensor | None = None) -> Tensor:
    """Token embeddings with k in each row replaced by its soft prompt. Differentiable in both.

    Args:
        embed: the model's input embeddings.
        ids: (B, T) token ids, with k placeholder ids where the soft prompt goes.
        soft: (B, k, d).
        first: (B,) the column at which each row's soft prompt starts; by default 0.

    Returns:
        (B, T, d), in the dtype of the embeddings.
    """
    embedded = embed(ids)
    rows, k = soft.shape[0], soft.shape[1]
    start = torch.zeros(rows, dtype=torch.long, device=ids.device) if first is None else first
    columns = start[:, None] + torch.arange(k, device=ids.device)  # (B, k)
    places = torch.arange(rows, device=ids.device)[:, None], columns
    replaced: Tensor = embedded.index_put(places, soft.to(embedded.device, embedded.dtype))
    return replaced
