"""The last layer for those positions alone whose output is read.

Nothing after the last layer looks at the tokens of a tree's root: there they give their keys and values, and no more.
Their attention, their output projection and their feed-forward part are left out, forward and backward.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

OF_TOKENS = ("position_ids", "position_embeddings")
"""What a layer is given for each token, in dimension 1, besides the mask."""
CACHE = "past_key_values"


class _Known(Exception):
    """The keys and values are known: the rest of the layer is not wanted."""


class _Unknown(Exception):
    """The layer asked its cache for something else."""


class _Before:
    """In the place of a layer's cache: ends the first call at its keys and values, and gives them to the next; those of
    both go to the cache that was there."""

    def __init__(self, cache: Any = None) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None
        self.cache = cache

    def update(self, keys: Tensor, values: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of (B, kv_heads, new, head_dim), behind those that were kept."""
        if self.kept is None:
            self.kept = keys, values
            raise _Known
        both = torch.cat([self.kept[0], keys], 2), torch.cat([self.kept[1], values], 2)
        return both if self.cache is None else self.cache.update(*both, *others, **named)

    def __getattr__(self, name: str) -> Any:
        raise _Unknown


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def _takes_part(tokens: int, first: int, others: tuple[Any, ...], arguments: dict[str, Any]) -> bool:
    """Whether what a layer was given can be cut at position `first`."""
    mask = arguments.get("attention_mask")
    if not (isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[2] >= tokens - first) or _tensors(others):
        return False
    given = {name: found for name, value in arguments.items() if (found := _tensors(value))}
    del given["attention_mask"]
    return given.keys() <= set(OF_TOKENS) and all(
        isinstance(arguments[name], Tensor | tuple) and t.dim() > 1 and t.shape[1] == tokens
        for name, tensors in given.items()
        for t in tensors
    )


def _cut(value: Any, part: slice) -> Any:
    return value[:, part] if isinstance(value, Tensor) else tuple(_cut(one, part) for one in value)


def _from(
    layer: Any, whole: Any, first: int, hidden: Tensor, others: tuple[Any, ...], arguments: dict[str, Any]
) -> Any:
    """The layer's output from position `first` on."""
    before, root, rest = _Before(arguments.get(CACHE)), slice(None, first), slice(first, None)
    cut = [name for name in OF_TOKENS if arguments.get(name) is not None]
    given = arguments | {CACHE: before, "use_cache": True}
    # Checkpointing takes the cache away; what is left of this layer is less than another layer's recomputation.
    checkpointed, layer.gradient_checkpointing = getattr(layer, "gradient_checkpointing", False), False
    try:
        with suppress(_Known):
            of_root = {name: _cut(arguments[name], root) for name in cut}
            whole(hidden[:, root], *others, **given | of_root | {"attention_mask": None})
        if before.kept is not None:
            of_rest = {name: _cut(arguments[name], rest) for name in cut}
            mask = arguments["attention_mask"][:, :, first - hidden.shape[1] :]
            return whole(hidden[:, rest], *others, **given | of_rest | {"attention_mask": mask})
    except _Unknown:
        pass
    finally:
        layer.gradient_checkpointing = checkpointed
    return whole(hidden, *others, **arguments)


@cache
def _takes_cache(forward: Any) -> bool:
    return CACHE in signature(forward).parameters


@contextmanager
def read_from(decoder: Any, first: int) -> Iterator[None]:
    """Within it, the decoder's hidden states are those of the positions from `first` on.

    A decoder without `layers`, or whose last layer knows no `CACHE`, does anything else with it than to put keys and
    values there, or is given something else for each token than `OF_TOKENS`, gives those of all positions as ever:
    look at the length. The mask must have rows for the positions from `first` on. Not for several threads at a time on
    one model.
    """
    layers = getattr(decoder, "layers", None)
    if not layers or first <= 0 or not _takes_cache(type(layers[-1]).forward):
        yield
        return
    layer = layers[-1]
    own, whole = vars(layer).get("forward"), layer.forward

    def forward(hidden: Tensor, *others: Any, **arguments: Any) -> Any:
        if _takes_part(hidden.shape[1], first, others, arguments):
            return _from(layer, whole, first, hidden, others, arguments)
        return whole(hidden, *others, **arguments)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own
