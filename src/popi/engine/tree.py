"""Texts that share prefixes, laid out so that each distinct token goes through the model once.

A *tree row* holds a root segment (such as the signals) followed by branches (the summaries of a group). A token
attends to its own segment and to the ancestors of that segment; positions continue after the parent. It is an
ordinary forward with a 4-D mask: no cache is carried through autograd, and gradients are exact.

Only tokens of *scored* segments get log-probabilities. Their hidden states are gathered before the LM head, so the
vocabulary's cost is incurred only for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from popi.engine.attention import takes_tree_masks
from popi.engine.head import Head, at_least_float32, tiled_logps, whole_logps
from popi.engine.masks import additive, slides
from popi.engine.plain import plain_logps, plain_rows
from popi.engine.soft_prompts import with_soft_prompts

if TYPE_CHECKING:
    from popi.engine.roots import Roots

LARGE_VOCABULARY = 8192
"""From this size on, logits are recomputed in the backward pass instead of stored."""
PADDING, FEW = 0.1, 512
"""Rows of one forward may be padded by this share of their tokens, or by this many tokens, which cost less than another
forward."""
LOGITS_BYTES = {"cpu": 2**26, "cuda": 2**28}
"""Maximum bytes of float32 logits at once if the LM head does not use tiles (`popi.engine.head`), by device type. It
limits the tokens per chunk, whatever the vocabulary. A GPU needs more to be busy."""
LAYER_BYTES = {"cpu": 9 * 2**20}
"""Maximum bytes of the MLP's activations at once without gradients, by device type. Larger tensors exceed the caches,
and the C library maps them again each time, with a page fault for every page."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens. `parent` is the index of an earlier segment of the same row; None for the root."""

    ids: Sequence[int]
    parent: int | None = None
    scored: bool = False


@dataclass
class TreeBatch:
    """Rows of segments as tensors: B rows of T positions, N scored tokens in `n_segments` scored segments.

    What attends to what is stored as a tree and converted to a mask on use.
    """

    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    segments: Tensor  # (B, T) index of each token's segment in its row; K - 1 is the padding
    ancestors: Tensor  # (B, K, K) bool: whether the tokens of segment i attend to earlier ones of segment j
    lengths: tuple[int, ...]  # B: tokens of each row
    roots: tuple[int, ...]  # B: tokens of each row's first segment
    scored: tuple[int, ...]  # B: scored tokens of each row
    source: Tensor  # (N, 2) row and position of the hidden state that predicts the token, row after row
    target: Tensor  # (N,) the token
    segment: Tensor  # (N,) index of its scored segment, counted over the batch
    place: Tensor  # (N,) the token's column in its row
    n_segments: int
    soft: Tensor | None = None  # (B, k, d) in place of the embeddings of the first k tokens of each row

    def to(self, device: torch.device | str) -> "TreeBatch":
        """The same batch on another device."""
        names = [field.name for field in fields(self) if isinstance(getattr(self, field.name), Tensor)]
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def root(self) -> int:
        """Number of leading positions that are causal in every row."""
        return min(self.roots)

    def mask(self, first: int = 0) -> Tensor:
        """(B, 1, T - first, T) bool for the positions from `first` on: True where attention is allowed."""
        rows, width = self.input_ids.shape
        place = torch.arange(width, device=self.segments.device)
        queries = self.segments[:, first:, None]  # (B, S, 1)
        row = torch.arange(rows, device=place.device)[:, None, None]
        related = self.ancestors[row, queries, self.segments[:, None]]
        return (related & (place <= place[first:, None]))[:, None]

    def part(self, rows: Sequence[int]) -> "TreeBatch":
        """Some of the rows, without padding that they don't need. Segments keep their numbers."""
        lengths = tuple(self.lengths[r] for r in rows)
        width = max(lengths)
        starts = [sum(self.scored[:r]) for r in rows]
        tokens = torch.tensor([i for r, s in zip(rows, starts, strict=True) for i in range(s, s + self.scored[r])])
        tokens = tokens.long().to(self.source.device)
        own = torch.tensor([n for n, r in enumerate(rows) for _ in range(self.scored[r])], dtype=torch.long)
        index = torch.tensor(rows, device=self.input_ids.device)
        return TreeBatch(
            self.input_ids[index, :width],
            self.position_ids[index, :width],
            self.segments[index, :width],
            self.ancestors[index],
            lengths,
            tuple(self.roots[r] for r in rows),
            tuple(self.scored[r] for r in rows),
            torch.stack([own.to(tokens.device), self.source[tokens, 1]], 1),
            self.target[tokens],
            self.segment[tokens],
            self.place[tokens],
            self.n_segments,
            None if self.soft is None else self.soft[index],
        )


def buckets(lengths: Sequence[int], most: float = float("inf")) -> list[list[int]]:
    """Group rows of similar length, to limit padding, with at most `most` tokens per group, or a single row."""
    groups: list[list[int]] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        length = lengths[row]
        if groups:
            padding = (len(groups[-1]) + 1) * length - tokens - length
            if padding <= max(FEW, PADDING * (tokens + length)) and (len(groups[-1]) + 1) * length <= most:
                groups[-1].append(row)
                tokens += length
                continue
        groups.append([row])
        tokens = length
    return groups


def pack(rows: Sequence[Sequence[Segment]], pad_id: int) -> TreeBatch:
    """Lay rows of segments out as one batch, padded on the right.

    Raises:
        ValueError: a scored segment has no parent or an empty one, so that nothing predicts its first token.
    """
    lengths = [sum(len(segment.ids) for segment in row) for row in rows]
    width, most = max(lengths), max(map(len, rows))
    # numpy arrays, because assigning a slice takes a tenth of the time that it takes for a tensor.
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    position_ids = np.zeros((len(rows), width), dtype=np.int64)
    segments = np.full((len(rows), width), most, dtype=np.int64)
    ancestors = np.tile(
        np.eye(most + 1, dtype=bool), (len(rows), 1, 1)
    )  # padding attends to itself, to avoid an empty softmax
    source: list[tuple[int, int]] = []
    target: list[int] = []
    owner: list[int] = []
    place: list[int] = []
    scored = [0] * len(rows)
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
            segments[r, cursor:stop] = s
            if segment.parent is not None:
                ancestors[r, s] |= ancestors[r, segment.parent]
            if segment.scored:
                if segment.parent is None or not len(row[segment.parent].ids):
                    raise ValueError(f"scored segment {s} of row {r} needs a parent with tokens")
                before = starts[segment.parent] + len(row[segment.parent].ids) - 1
                source.extend((r, before if i == 0 else cursor + i - 1) for i in range(n))
                target.extend(segment.ids)
                owner.extend([n_scored] * n)
                place.extend(range(cursor, stop))
                n_scored += 1
                scored[r] += n
            cursor = stop
    return TreeBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(segments),
        torch.from_numpy(ancestors),
        tuple(lengths),
        tuple(len(row[0].ids) for row in rows),
        tuple(scored),
        torch.tensor(source, dtype=torch.long).reshape(-1, 2),
        torch.tensor(target, dtype=torch.long),
        torch.tensor(owner, dtype=torch.long),
        torch.tensor(place, dtype=torch.long),
        n_scored,
    )


def causal_lm(model: torch.nn.Module) -> torch.nn.Module:
    """The causal LM itself, including adapters, if PEFT wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def chunk_of(vocabulary: int, device: torch.device | str = "cpu") -> int:
    """Tokens per chunk if the head does not use tiles: as many as fit `LOGITS_BYTES`, and at least 16."""
    return max(16, LOGITS_BYTES.get(torch.device(device).type, 2**26) // (4 * vocabulary))


def token_logps(model: torch.nn.Module, batch: TreeBatch, temperature: float = 1.0, chunk: int | None = None) -> Tensor:
    """Log-probability of every scored token: (N,). See `token_logps_and_entropies`."""
    return token_logps_and_entropies(model, batch, temperature, chunk, entropy=False)[0]


def token_logps_and_entropies(
    model: torch.nn.Module,
    batch: TreeBatch,
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = True,
    roots: "Roots | None" = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of every scored token and the entropy (nats) of its distribution: (N,) and (N,), float32, or
    float64 if the model is.

    Log-probabilities are differentiable, entropies are not. The LM head works in tiles (`popi.engine.head`), so memory
    grows neither with N nor with the vocabulary. Heads that are not plain linear layers, and training with small
    vocabularies, whose logits are stored, process `chunk` tokens at a time instead (by default `chunk_of`). Without
    `entropy` the second tensor is empty. A model with SDPA attention is switched to popi's
    (`popi.engine.attention`) for good. `roots` are the batch's roots, in order, if the model has read them already
    (`popi.engine.roots`); then only the branches go through it. Rows that can't be trees use the fallback
    (`popi.engine.plain`): all rows of a model that failed the probe at load, and rows beyond the limit of LongRoPE.
    """
    causal = causal_lm(model)
    if plain := plain_rows(causal, batch):
        return _some_plain(causal, batch, plain, temperature, chunk, entropy)
    hidden = scored_states(causal, batch) if roots is None else roots.scored_states(causal, batch)
    if not len(hidden):
        nothing = at_least_float32(hidden.new_zeros(0))
        return nothing, nothing
    head = Head.of(causal)
    vocabulary = causal.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    large = vocabulary >= LARGE_VOCABULARY
    if head.tiles and (large or not torch.is_grad_enabled()):
        return tiled_logps(hidden, batch.target, head, temperature, entropy)
    chunk = chunk or chunk_of(vocabulary, hidden.device)
    parts = []
    for start in range(0, len(hidden), chunk):
        arguments = (hidden[start : start + chunk], batch.target[start : start + chunk], head, temperature, entropy)
        if large and torch.is_grad_enabled():
            parts.append(checkpoint(whole_logps, *arguments, use_reentrant=False))
        else:
            parts.append(whole_logps(*arguments))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _some_plain(
    causal: Any, batch: TreeBatch, plain: list[int], temperature: float, chunk: int | None, entropy: bool
) -> tuple[Tensor, Tensor]:
    others = [row for row in range(len(batch.lengths)) if row not in set(plain)]
    if not others:
        return plain_logps(causal, batch, temperature, entropy)

    def compute(part: TreeBatch, which: int) -> Tensor:
        if which:
            logps, entropies = plain_logps(causal, part, temperature, entropy)
        else:
            logps, entropies = token_logps_and_entropies(causal, part, temperature, chunk, entropy)
        return torch.stack([logps, entropies if entropy else logps.detach()], 1)

    both = in_parts(batch, [others, plain], compute)
    return both[:, 0], both[:, 1].detach() if entropy else both.new_zeros(0)


def scored_states(causal: Any, batch: TreeBatch) -> Tensor:
    """The last layer's hidden states that predict the scored tokens: (N, d)."""
    together = buckets(batch.lengths, float("inf") if torch.is_grad_enabled() else _tokens_at_once(causal))
    if len(together) == 1:
        return states(causal, batch)
    return in_parts(batch, together, lambda part, _: states(causal, part))


def in_parts(batch: TreeBatch, together: Sequence[list[int]], compute: Callable[[TreeBatch, int], Tensor]) -> Tensor:
    """Results of `compute(part, index)` for the scored tokens of each part, in the whole batch's order: (N, d)."""
    results, places, starts = [], [], [0]
    for n in batch.scored:
        starts.append(starts[-1] + n)
    for i, rows in enumerate(together):
        results.append(compute(batch.part(rows), i))
        places += [place for row in rows for place in range(starts[row], starts[row + 1])]
    order = torch.tensor(places, dtype=torch.long, device=batch.source.device).argsort()
    return torch.cat(results)[order]


def _tokens_at_once(causal: Any) -> float:
    embed, config = causal.get_input_embeddings().weight, causal.config.get_text_config()
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    wide = max(wide) if isinstance(wide, list | tuple) else wide  # Gemma 3n: one per layer
    return LAYER_BYTES.get(embed.device.type, float("inf")) / (wide * embed.element_size())


def states(causal: Any, batch: TreeBatch, cache: Any = None) -> Tensor:
    """The last layer's hidden states at the batch's `source`, from one forward of all rows: (N, d).

    `cache`: a transformers cache that receives the keys and values of every layer.
    """
    embed = causal.get_input_embeddings()
    config = causal.config.get_text_config()
    inputs = (
        {"input_ids": batch.input_ids}
        if batch.soft is None
        else {"inputs_embeds": with_soft_prompts(embed, batch.input_ids, batch.soft)}
    )
    read = int(batch.source[:, 1].min()) if len(batch.source) else 0
    # The root's causal positions need no mask if the attention supports that and has no sliding window.
    first = min(batch.root, read) if takes_tree_masks(causal) and not slides(config) else 0
    positions = batch.position_ids
    hidden: Tensor = causal.get_decoder()(
        **inputs,
        # Additive and made once: SDPA would convert a boolean mask in every layer, and eager attention would add 1.
        attention_mask=additive(config, batch.mask(first), positions[:, first:], positions, embed.weight.dtype),
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state
    return hidden[batch.source[:, 0], batch.source[:, 1]]


def segment_logps(model: torch.nn.Module, batch: TreeBatch) -> Tensor:
    """Summed log-probability of each scored segment: (n_segments,)."""
    logps = token_logps(model, batch)
    return logps.new_zeros(batch.n_segments).index_add(0, batch.segment, logps)
