"""Texts that share prefixes, laid out so that each distinct token goes through the model once.

A *tree row* holds a root segment (the signals, say) followed by branches (the summaries of a group). A token
attends to its own segment and to the ancestors of that segment; positions restart after the parent. It is an
ordinary forward with a 4-D mask: no cache is carried through autograd, and gradients are exact.

Only tokens of *scored* segments get log-probabilities. Their hidden states are gathered before the LM head, so
the cost of the vocabulary is paid for them alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from popi.masks import additive
from popi.soft_prompts import with_soft_prompts

LARGE_VOCABULARY = 8192
"""From here on the head's activations are recomputed in the backward pass and not kept."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens. `parent` is the index of an earlier segment of the same row; None for the root."""

    ids: Sequence[int]
    parent: int | None = None
    scored: bool = False


@dataclass
class TreeBatch:
    """Rows of segments as tensors: B rows of T positions, N scored tokens in `n_segments` scored segments."""

    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, 1, T, T) bool, True where attention is allowed
    source: Tensor  # (N, 2) row and position of the hidden state that predicts the token
    target: Tensor  # (N,) the token
    segment: Tensor  # (N,) index of its scored segment, counted over the batch
    n_segments: int
    soft: Tensor | None = None  # (B, k, d) in place of the embeddings of the first k tokens of each row

    def to(self, device: torch.device | str) -> "TreeBatch":
        """The same batch on another device."""
        return TreeBatch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.attention_mask.to(device),
            self.source.to(device),
            self.target.to(device),
            self.segment.to(device),
            self.n_segments,
            None if self.soft is None else self.soft.to(device),
        )


def pack(rows: Sequence[Sequence[Segment]], pad_id: int) -> TreeBatch:
    """Lay rows of segments out as one batch, padded on the right.

    Raises:
        ValueError: a scored segment has no parent, or a parent without tokens (nothing predicts its first token).
    """
    width = max(sum(len(segment.ids) for segment in row) for row in rows)
    # Filled as numpy arrays: a slice is set in a tenth of the time that a tensor takes.
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    position_ids = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.tile(np.eye(width, dtype=bool), (len(rows), 1, 1))  # padding sees itself: no empty softmax
    causal = np.tri(width, dtype=bool)
    source: list[tuple[int, int]] = []
    target: list[int] = []
    owner: list[int] = []
    n_scored = 0
    for r, row in enumerate(rows):
        starts: list[int] = []  # first index of each segment in the row
        depths: list[int] = []  # first position of each segment
        cursor = 0
        for s, segment in enumerate(row):
            n = len(segment.ids)
            stop = cursor + n
            depth = 0 if segment.parent is None else depths[segment.parent] + len(row[segment.parent].ids)
            starts.append(cursor)
            depths.append(depth)
            input_ids[r, cursor:stop] = segment.ids
            position_ids[r, cursor:stop] = np.arange(depth, depth + n)
            mask[r, cursor:stop, cursor:stop] = causal[:n, :n]
            ancestor = segment.parent
            while ancestor is not None:
                a = starts[ancestor]
                mask[r, cursor:stop, a : a + len(row[ancestor].ids)] = True
                ancestor = row[ancestor].parent
            if segment.scored:
                if segment.parent is None or not len(row[segment.parent].ids):
                    raise ValueError(f"scored segment {s} of row {r} needs a parent with tokens")
                before = starts[segment.parent] + len(row[segment.parent].ids) - 1
                source.extend((r, before if i == 0 else cursor + i - 1) for i in range(n))
                target.extend(segment.ids)
                owner.extend([n_scored] * n)
                n_scored += 1
            cursor = stop
    return TreeBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(mask[:, None]),
        torch.tensor(source, dtype=torch.long).reshape(-1, 2),
        torch.tensor(target, dtype=torch.long),
        torch.tensor(owner, dtype=torch.long),
        n_scored,
    )


def causal_lm(model: torch.nn.Module) -> torch.nn.Module:
    """The causal LM itself, adapters included, where PEFT wraps it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]


def _head(
    hidden: Tensor, target: Tensor, head: torch.nn.Module, softcap: float | None, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float()  # (n, V)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logps = torch.log_softmax(logits / temperature, dim=-1)
    chosen = logps.gather(1, target[:, None])[:, 0]
    return chosen, -(logps.exp() * logps).sum(-1) if entropy else chosen.new_zeros(0)


def token_logps(model: torch.nn.Module, batch: TreeBatch, temperature: float = 1.0, chunk: int = 4096) -> Tensor:
    """Log-probability of every scored token: (N,) float32. See `token_logps_and_entropies`."""
    return token_logps_and_entropies(model, batch, temperature, chunk, entropy=False)[0]


def token_logps_and_entropies(
    model: torch.nn.Module, batch: TreeBatch, temperature: float = 1.0, chunk: int = 4096, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probability of every scored token and the entropy (nats) of its distribution: (N,) and (N,) float32.

    Differentiable; `chunk` tokens at a time meet the LM head, so memory does not grow with N × vocabulary
    where no gradient is kept. Without `entropy` the second tensor is empty.
    """
    causal = causal_lm(model)
    embed = causal.get_input_embeddings()  # type: ignore[operator]
    config = causal.config.get_text_config()  # type: ignore[union-attr, operator]
    inputs = (
        {"input_ids": batch.input_ids}
        if batch.soft is None
        else {"inputs_embeds": with_soft_prompts(embed, batch.input_ids, batch.soft)}
    )
    mask, positions, dtype = batch.attention_mask, batch.position_ids, embed.weight.dtype
    hidden = causal.get_decoder()(  # type: ignore[operator]
        **inputs,
        # Additive, and made once: SDPA would convert a boolean mask in every layer, eager attention add True as 1.
        attention_mask=additive(config, mask, positions, positions, dtype),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    hidden = hidden[batch.source[:, 0], batch.source[:, 1]]  # (N, d)
    head = causal.get_output_embeddings()  # type: ignore[operator]
    softcap = getattr(config, "final_logit_softcapping", None)
    recompute = torch.is_grad_enabled() and config.vocab_size >= LARGE_VOCABULARY
    logps, entropies = [], []
    for start in range(0, len(hidden), chunk):
        arguments = (hidden[start : start + chunk], batch.target[start : start + chunk], head, softcap)
        if recompute:
            part = checkpoint(_head, *arguments, temperature, entropy, use_reentrant=False)
        else:
            part = _head(*arguments, temperature, entropy)
        logps.append(part[0])
        entropies.append(part[1])
    if not logps:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat(logps), torch.cat(entropies)


def segment_logps(model: torch.nn.Module, batch: TreeBatch) -> Tensor:
    """Summed log-probability of each scored segment: (n_segments,) float32."""
    logps = token_logps(model, batch)
    return logps.new_zeros(batch.n_segments).index_add(0, batch.segment, logps)
