"""Sampling several continuations of each prompt: one prefill per prompt, then its branches in parallel.

The n samples of a prompt are branches of one row: each step appends one token per branch, and a branch attends to the
prompt and its own tokens. The prompt's keys and values are neither copied nor read separately for each sample.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from popi.engine.head import at_least_float32
from popi.engine.masks import additive, slides
from popi.engine.narrow import narrow_linears
from popi.engine.roots import Roots
from popi.engine.soft_prompts import with_soft_prompts

GREEDY = 1e-5
"""Below this temperature decoding is greedy: the quotient would overflow, and the limit is the same."""
PREFILL = 2048
"""Maximum tokens per prefill, including padding; larger ones are not faster."""
RUN = 512
"""Tokens per run of the vocabulary, in sampling."""
SHARED = 64
"""A common prefix of at least this many tokens (instructions, examples) is read once for all prompts."""
RESERVED = 64
"""Number of steps for which masks and cache are allocated at first."""


@dataclass
class Columns:
    """Where a forward's keys and values go; the same in all layers."""

    rows: int
    width: int
    """Columns of the prompts, including padding on the left."""
    reserved: int
    """Columns to allocate after the prompts at first."""
    prefilled: tuple[Tensor, int] | None = None
    """The rows of this prefill and their first column; None appends to all rows."""
    lengths: Tensor | None = None
    """With a shared prefix: tokens of each prefilled row after it, (rows,)."""


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer, preallocated so that appending copies only the new ones."""

    def __init__(self, columns: Columns, shared: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.columns, self.filled = columns, 0
        self.shared = shared
        """Keys and values of the prompts' shared prefix, (1, kv_heads, S, head_dim)."""
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (rows, kv_heads, new, head_dim); returns all of them, or those of a prefill."""
        both, new = (key_states, value_states), key_states.shape[2]
        columns = self.columns
        if not self.buffers:  # zeros, since masked columns must still hold numbers
            shape = (columns.rows, key_states.shape[1], columns.width + columns.reserved)
            self.buffers = [states.new_zeros(*shape, states.shape[-1]) for states in both]
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        if columns.prefilled is not None:
            rows, start = columns.prefilled
            for buffer, states in zip(self.buffers, both, strict=True):
                buffer[rows, :, start : start + new] = states
            self.filled = columns.width
            return both if self.shared is None else self._with_shared(rows, both)
        stop = self.filled + new
        if stop > self.buffers[0].shape[2]:
            more = max(RESERVED * new, stop // 4)
            self.buffers = [torch.cat([b, b.new_empty(*b.shape[:2], more, b.shape[3])], 2) for b in self.buffers]
        for buffer, states in zip(self.buffers, both, strict=True):
            buffer[:, :, self.filled : stop] = states
        self.filled = stop
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self.buffers)
        return self.keys, self.values

    def _with_shared(self, rows: Tensor, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Put the shared prefix before the keys and values of each row's prefill, in place of padding."""
        assert self.shared is not None and self.columns.lengths is not None
        size = self.shared[0].shape[2]
        start = self.columns.width - self.columns.lengths - size  # (rows,)
        place = start[:, None] + torch.arange(size, device=start.device)  # (rows, S)
        for buffer, states in zip(self.buffers, self.shared, strict=True):
            buffer[rows[:, None], :, place] = states[0].transpose(0, 1)  # (S, kv_heads, head_dim) for every row
        joined = [
            torch.cat([shared.expand(len(rows), -1, -1, -1), own], 2)
            for shared, own in zip(self.shared, both, strict=True)
        ]
        return joined[0], joined[1]

    def get_seq_length(self) -> int:
        if self.columns.prefilled is None:
            return self.filled
        return 0 if self.shared is None else self.shared[0].shape[2]


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the prompts' common prefix, without the shortest prompt's last token, which predicts; 0 if small."""
    shortest = min(map(len, prompts))
    size = min(len(commonprefix([list(prompt) for prompt in prompts])), shortest - 1)
    return size if len(prompts) > 1 and size >= SHARED else 0


def prefill_parts(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group prompts of similar length into prefills of at most `PREFILL` tokens."""
    part: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if part and (len(part) + 1) * lengths[i] > PREFILL:
            yield part
            part = []
        part.append(i)
    yield part


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    steps: int,
    temperature: float,
    top_p: float,
    stop_ids: Sequence[int],
    end_id: int,
    soft: Tensor | None = None,
    roots: Roots | None = None,
    choose: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor | None:
    """P prompts to (P·n, ≤ steps) tokens, with each prompt's samples in consecutive rows, padded with `end_id`.

    Call it in inference mode, with the model in evaluation mode.

    Args:
        stop_ids: tokens that end a sample.
        soft: (P, k, d) in place of the embeddings of the first k tokens of each prompt.
        roots: the prompts, if the model has read them already.
        choose: (logits (P·n, V), step) → tokens, in place of `pick`.

    Returns:
        The tokens, or None if some of the model's outputs are not finite.
    """
    device = model.get_input_embeddings().weight.device
    columns = Columns(len(prompts), max(map(len, prompts)), n * min(steps, RESERVED))
    shared = (
        shared_prefix(prompts) if roots is None and soft is None and not slides(model.config.get_text_config()) else 0
    )
    if shared:
        layers = _read_once(model, prompts[0][:shared])
        cache = Cache(layers=[ReservedLayer(columns, both) for both in layers])
    else:
        cache = Cache(layer_class_to_replicate=partial(ReservedLayer, columns))  # type: ignore[arg-type]
    logits = (
        _prefill(model, prompts, columns, cache, soft, shared)
        if roots is None
        else _copied(model, roots, prompts, columns, cache)
    ).repeat_interleave(n, 0)  # (P·n, V)
    if not _finite(logits):
        return None
    masks = BranchMasks(model, [len(prompt) for prompt in prompts], n)
    out: list[Tensor] = []
    done = torch.zeros(len(logits), dtype=torch.bool, device=device)
    stops = torch.tensor(stop_ids, device=device)
    with narrow_linears(model):
        for step in range(steps):
            scores = at_least_float32(logits)
            drawn = pick(scores, temperature, top_p) if choose is None else choose(scores, step)
            token = torch.where(done, end_id, drawn)  # (P·n,)
            out.append(token)
            done |= torch.isin(token, stops)
            if step + 1 == steps or bool(done.all()):
                break
            logits = model(
                input_ids=token.reshape(-1, n),
                attention_mask=masks.mask(step),
                position_ids=masks.positions(step),
                past_key_values=cache,
                use_cache=True,
            ).logits.flatten(0, 1)
            if not _finite(logits):
                return None
    return torch.stack(out, 1)


def _read_once(model: Any, ids: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer for the prompts' shared prefix: (1, kv_heads, S, head_dim)."""
    device = model.get_input_embeddings().weight.device
    cache: Any = DynamicCache()
    model(input_ids=torch.tensor([list(ids)], device=device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _prefill(
    model: Any, prompts: Sequence[Sequence[int]], columns: Columns, cache: Cache, soft: Tensor | None, shared: int
) -> Tensor:
    """Fill the cache, each prompt up to the last column; returns the logits after each prompt: (P, V).

    Args:
        shared: length of the shared prefix, whose keys and values the cache's layers have already.
    """
    prompts = [prompt[shared:] for prompt in prompts]
    embed = model.get_input_embeddings()
    device = embed.weight.device
    next_logits: Tensor | None = None
    for part in prefill_parts([len(prompt) for prompt in prompts]):
        own = max(len(prompts[i]) for i in part)
        ids = torch.zeros((len(part), own), dtype=torch.long)
        mask = torch.zeros((len(part), own), dtype=torch.long)
        for row, i in enumerate(part):  # padded on the left, so that all rows end together
            ids[row, own - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, own - len(prompts[i]) :] = 1
        ids, mask, rows = ids.to(device), mask.to(device), torch.tensor(part, device=device)
        inputs: dict[str, Tensor] = {"input_ids": ids}
        if soft is not None:
            inputs = {"inputs_embeds": with_soft_prompts(embed, ids, soft[part], own - mask.sum(1))}
        columns.prefilled, columns.lengths = (rows, columns.width - own), mask.sum(1)
        logits = model(
            **inputs,
            attention_mask=pad(mask, (shared, 0), value=1),
            position_ids=shared + (mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        next_logits = logits.new_empty(len(prompts), logits.shape[-1]) if next_logits is None else next_logits
        next_logits[rows] = logits
    columns.prefilled = None
    assert next_logits is not None
    return next_logits


def _copied(model: Any, roots: Roots, prompts: Sequence[Sequence[int]], columns: Columns, cache: Cache) -> Tensor:
    """Like `_prefill`, from roots that the model has read already."""
    which = [roots.index[tuple(prompt)] for prompt in prompts]
    next_logits: Tensor | None = None
    for part in roots.parts:
        rows = [p for p, root in enumerate(which) if root in part.rows]
        if not rows:
            continue
        indices = [part.rows.index(which[p]) for p in rows]
        layers = part.to_the_right(indices)
        columns.prefilled = torch.tensor(rows, device=part.last_hidden.device), columns.width - layers[0][0].shape[2]
        for i, layer in enumerate(layers):
            cache.update(*layer, i)
        logits = roots.logits(model, part)[indices]
        next_logits = logits.new_empty(len(prompts), logits.shape[-1]) if next_logits is None else next_logits
        next_logits[rows] = logits
    columns.prefilled = None
    assert next_logits is not None
    return next_logits


class BranchMasks:
    """Positions and masks for P·n branches, made for many steps at once.

    Args:
        lengths: P lengths of the prompts.
        n: branches per prompt.
    """

    def __init__(self, model: Any, lengths: Sequence[int], n: int) -> None:
        weight = model.get_input_embeddings().weight
        self.config, self.dtype, self.n = model.config.get_text_config(), weight.dtype, n
        self.device = weight.device
        self.first = torch.tensor(lengths, device=self.device)[:, None]  # (P, 1) position of the first token
        self.width = max(lengths)
        self.keys = torch.arange(self.width, device=self.device) - self.width + self.first  # < 0: padding
        self.steps = 0
        self._whole: Any = None

    def positions(self, step: int) -> Tensor:
        """Positions of the tokens that step `step` (from 0) appends: (P, n)."""
        return (self.first + step).expand(-1, self.n)

    def mask(self, step: int) -> Any:
        """Their attention mask: (P, 1, n, width + n·(step + 1))."""
        if slides(self.config):  # the window moves with each step
            return self._additive(step + 1, step)
        if step >= self.steps:
            self.steps = max(RESERVED, 2 * self.steps)
            self._whole = self._additive(self.steps, step)
        return self._whole[..., : self.width + self.n * (step + 1)]

    def _additive(self, steps: int, step: int) -> Any:
        own = torch.eye(self.n, dtype=torch.bool, device=self.device).repeat(1, steps)
        prompt = (self.keys >= 0)[:, None, None].expand(-1, 1, self.n, -1)
        allowed = torch.cat([prompt, own.expand(len(self.keys), 1, -1, -1)], -1)
        appended = torch.cat([self.positions(s) for s in range(steps)], -1)
        return additive(self.config, allowed, self.positions(step), torch.cat([self.keys, appended], -1), self.dtype)


def pick(logits: Tensor, temperature: float, top_p: float, among: tuple[int, int] | None = None) -> Tensor:
    """One token per row: greedy at temperature 0, else sampled from the nucleus. (rows, V) -> (rows,).

    By `torch.multinomial`, a race of exponentials: a rounding changes the winner only where two are next to each other.
    It draws one of them for each competitor, on a CPU as slowly as a forward where the vocabulary is large. So runs of
    `RUN` tokens compete first, by their sums, and then the tokens of the one that won.

    Args:
        among: (first, of) where these rows are part of `of` rows that are sampled elsewhere, too: they are drawn as
            rows `first` and following of all of them.
    """
    if temperature < GREEDY:
        return logits.argmax(-1)
    probs = torch.softmax(logits / temperature, dim=-1)
    if top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)  # the first token always stays
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)
    runs = probs[:, None] if probs.shape[1] <= RUN else pad(probs, (0, -probs.shape[1] % RUN)).unflatten(1, (-1, RUN))
    won = torch.zeros(len(probs), dtype=torch.long, device=probs.device)
    if runs.shape[1] > 1:
        won = _race(runs.sum(-1), among)
    inside = _race(runs[torch.arange(len(probs), device=probs.device), won], among)
    return won * runs.shape[2] + inside


def _race(weights: Tensor, among: tuple[int, int] | None) -> Tensor:
    """(rows, K) weights -> (rows,) places drawn in proportion to them."""
    if among is None:
        return torch.multinomial(weights, 1)[:, 0]
    first, of = among
    times = weights.new_empty(of, weights.shape[1]).exponential_()  # what torch.multinomial draws for `of` rows
    return (weights / times[first : first + len(weights)]).argmax(-1)


def skip(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
    """Draw the random numbers that `pick` takes for so many rows, and use none."""
    runs = 1 if vocabulary <= RUN else -(-vocabulary // RUN)
    for width in ([runs] if runs > 1 else []) + [min(RUN, vocabulary)]:
        torch.empty(rows, width, dtype=dtype, device=device).exponential_()


def _finite(logits: Tensor) -> bool:
    """Whether they can be sampled from. A row's maximum is NaN if any of its logits is."""
    return bool(logits.amax(-1).isfinite().all())
