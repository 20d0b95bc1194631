"""Reads the signals of a training step once, for both sampling and the update.

A group's summaries are sampled after the same tokens, under the same weights, that the policy's update starts with: the
roots of its trees. The roots go through the model once, within the autograd graph. Sampling copies their keys and
values (`popi.engine.decoding`); the update runs only the branches through the model after them, and its backward pass
goes through both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from popi.engine.head import Head
from popi.engine.masks import additive
from popi.engine.tree import Segment, TreeBatch, buckets, causal_lm, in_parts, pack, states


class _RecordingLayer(DynamicLayer):
    """Records one layer's keys and values of the roots."""

    both: tuple[Tensor, Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.both = key_states, value_states
        return self.both

    def get_seq_length(self) -> int:
        return 0


class _PrefixLayer(DynamicLayer):
    """One layer's keys and values of the roots, prepended to those of the branches. Never modified."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.both, self.is_initialized = (keys, values), True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self.both[0], key_states], 2), torch.cat([self.both[1], value_states], 2)

    def get_seq_length(self) -> int:
        return int(self.both[0].shape[2])


@dataclass(frozen=True)
class Part:
    """Roots of similar length that went through the model together: B of at most W tokens, padded on the right."""

    rows: list[int]
    """Indices of the roots."""
    lengths: Tensor  # (B,)
    layers: list[tuple[Tensor, Tensor]]
    """Keys and values of each layer, (B, kv_heads, W, head_dim)."""
    last_hidden: Tensor  # (B, d), the last layer's hidden state of each root's last token

    def to_the_right(self, rows: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of some rows of this part, padded on the left to the longest of them."""
        row_index = torch.tensor(rows, device=self.last_hidden.device)
        lengths = self.lengths[row_index, None]
        width = int(lengths.max())
        place = torch.arange(width, device=row_index.device) - (width - lengths)  # (rows, width), < 0: padding
        if list(rows) == list(range(len(self.rows))) and bool((place[:, 0] == 0).all()):
            return self.layers

        def moved(cached: Tensor) -> Tensor:
            index = place.clamp(min=0)[:, None, :, None].expand(-1, cached.shape[1], -1, cached.shape[3])
            return cached[row_index].gather(2, index)

        return [(moved(keys), moved(values)) for keys, values in self.layers]


class Roots:
    """Roots that went through a model once, under its current weights.

    With gradients enabled they are part of the autograd graph, and one backward pass frees them.
    """

    def __init__(self, prompts: list[tuple[int, ...]], parts: list[Part]) -> None:
        self.prompts, self.parts = prompts, parts
        self.index = {prompt: i for i, prompt in enumerate(prompts)}

    @classmethod
    def read(cls, model: torch.nn.Module, roots: Sequence[Sequence[int]], pad_id: int) -> "Roots":
        """Run the distinct roots through the model, those of similar length together.

        Does not work with gradient checkpointing, which discards the keys and values.
        """
        causal = causal_lm(model)
        prompts = list(dict.fromkeys(map(tuple, roots)))
        together = buckets([len(prompt) for prompt in prompts])
        return cls(prompts, [_read(causal, prompts, rows, pad_id) for rows in together])

    def scored_states(self, causal: Any, batch: TreeBatch) -> Tensor:
        """The hidden states that predict the scored tokens of trees with these roots, in this order: (N, d)."""
        rows = [part.rows for part in self.parts]
        return in_parts(batch, rows, lambda own, i: _branches(causal, own, self.parts[i]))

    def logits(self, model: torch.nn.Module, part: Part) -> Tensor:
        """Logits after the roots of a part: (B, V)."""
        return Head.of(causal_lm(model)).logits(part.last_hidden, 1.0)


def _read(causal: Any, prompts: list[tuple[int, ...]], rows: list[int], pad_id: int) -> Part:
    device = causal.get_input_embeddings().weight.device
    batch = pack([[Segment(prompts[i])] for i in rows], pad_id).to(device)
    lengths = torch.tensor(batch.lengths, device=device)
    last = torch.stack([torch.arange(len(rows), device=device), lengths - 1], 1)
    cache: Any = Cache(layer_class_to_replicate=_RecordingLayer)
    last_hidden = states(causal, replace(batch, source=last), cache)
    return Part(rows, lengths, [layer.both for layer in cache.layers], last_hidden)


def _branches(causal: Any, batch: TreeBatch, part: Part) -> Tensor:
    """Run the branches of a part's trees through the model, after the roots."""
    lengths, device = part.lengths[:, None], part.last_hidden.device
    keys = torch.arange(part.layers[0][0].shape[2], device=device).expand(len(lengths), -1)  # (B, W) their positions
    longest = max(length - root for length, root in zip(batch.lengths, batch.roots, strict=True))
    step = torch.arange(longest, device=device)
    place = lengths + step  # (B, S) columns of the branches' tokens in the row
    inside = place < batch.input_ids.shape[1]
    place = place.clamp(max=batch.input_ids.shape[1] - 1)
    positions = batch.position_ids.gather(1, place)
    segments = batch.segments.gather(1, place).masked_fill(~inside, batch.ancestors.shape[1] - 1)
    row = torch.arange(len(lengths), device=device)[:, None, None]
    among = batch.ancestors[row, segments[:, :, None], segments[:, None]] & (step <= step[:, None])  # (B, S, S)
    of_root = (keys < lengths)[:, None].expand(-1, longest, -1)
    config = causal.config.get_text_config()
    mask = additive(
        config,
        torch.cat([of_root, among], 2)[:, None],
        positions,
        torch.cat([keys, positions], 1),
        causal.get_input_embeddings().weight.dtype,
    )
    hidden = causal.get_decoder()(
        input_ids=batch.input_ids.gather(1, place),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=Cache(layers=[_PrefixLayer(*layer) for layer in part.layers]),
        use_cache=True,
    ).last_hidden_state
    every = torch.cat([part.last_hidden[:, None], hidden], 1)  # (B, 1 + S, d)
    scored: Tensor = every[batch.source[:, 0], batch.source[:, 1] - part.lengths[batch.source[:, 0]] + 1]
    return scored
