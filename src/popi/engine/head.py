"""From hidden states to log-probs: the LM head, in tiles of tokens × vocabulary.

The logits of a tile stay in the cache and are discarded. For each token only the largest logit and the sum of
exponentials are stored (the running log-sum-exp of Milakov and Gimelshein, arXiv 1805.02867), and the backward pass
recomputes each tile. So neither memory nor page faults grow with the vocabulary, and the head's weights are read once
for many tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

TILE = {"cpu": (512, 4096), "cuda": (2048, 2**15)}
"""Tokens and vocabulary of a tile, by device type: 8 MB of float32 logits, about the cache of a few cores, and 256 MB
on a GPU, to keep it busy."""


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Head:
    """The last step of a causal LM's forward. A few model families scale the logits or apply a soft cap."""

    linear: Any
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, causal: Any) -> "Head":
        """The head of a causal LM."""
        config = causal.config.get_text_config()
        named = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
        scales = {name: float(value) for name in named if (value := getattr(config, name, None)) is not None}
        name, scale = next(iter(scales.items()), ("", 1.0))
        if name == "logits_scaling" and config.model_type != "hyperclovax":
            scale = 1 / scale  # Granite divides by it
        return cls(causal.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        """(n, d) to (n, V), at least float32, divided by the temperature."""
        logits = at_least_float32(self.linear(hidden))
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if temperature == 1 else logits / temperature

    @property
    def tiles(self) -> bool:
        """Whether tiles apply: a plain linear layer, not quantised, adapted, hooked, under autocast, or capped."""
        plain = type(self.linear) is torch.nn.Linear and "forward" not in vars(self.linear) and not self.softcap
        hooked = plain and (self.linear._forward_hooks or self.linear._forward_pre_hooks)
        return plain and not hooked and not torch.is_autocast_enabled(self.linear.weight.device.type)


def whole_logps(hidden: Tensor, target: Tensor, head: Head, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """Log-probs (n,), differentiable, and entropies (n,), which are not; from all logits of these tokens at once."""
    logps = torch.log_softmax(head.logits(hidden, temperature), dim=-1)
    chosen = logps.gather(1, target[:, None])[:, 0]
    with torch.no_grad():
        return chosen, -(logps.exp() * logps).sum(-1) if entropy else chosen.new_zeros(0)


def tiled_logps(hidden: Tensor, target: Tensor, head: Head, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """`whole_logps` in tiles. Requires `head.tiles`."""
    weight, bias = head.linear.weight, head.linear.bias
    logps, entropies = _TiledLogps.apply(hidden, weight, bias, target, head.scale / temperature, entropy)
    return logps, entropies


class _TiledLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, factor: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        normalised = [
            _normaliser(hidden[part], weight, bias, target[part], factor, entropy)
            for part in _parts(len(hidden), _tile(hidden)[0])
        ]
        chosen, total, entropies = (torch.cat(parts) for parts in zip(*normalised, strict=True))
        ctx.save_for_backward(hidden, weight, bias, target, total)
        ctx.factor = factor
        ctx.mark_non_differentiable(entropies)
        return chosen - total, entropies

    @staticmethod
    def backward(ctx: Any, of_logps: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """d logp / d logits = onehot(target) - softmax, tile by tile; sums over tiles in at least float32."""
        hidden, weight, bias, target, total = ctx.saved_tensors
        needs_grad = ctx.needs_input_grad
        of_hidden = torch.zeros_like(hidden, dtype=total.dtype) if needs_grad[0] else None
        of_weight = torch.zeros_like(weight) if needs_grad[1] else None
        of_bias = torch.zeros_like(bias) if needs_grad[2] else None
        tokens, columns = _tile(hidden)
        for part in _parts(len(hidden), tokens):
            for tile in _parts(len(weight), columns):
                logits = _logits(hidden[part], weight, bias, tile, ctx.factor)
                gradient = logits.sub_(total[part, None]).exp_().mul_(-of_logps[part, None])
                rows, places = _inside(target[part], tile)
                gradient[rows, places] += of_logps[part][rows]
                gradient = gradient.mul_(ctx.factor).to(weight.dtype)
                if of_hidden is not None:
                    of_hidden[part] += gradient @ weight[tile]
                if of_weight is not None:
                    of_weight[tile] += gradient.T @ hidden[part]
                if of_bias is not None:
                    of_bias[tile] += gradient.sum(0)
        return None if of_hidden is None else of_hidden.to(hidden.dtype), of_weight, of_bias, None, None, None


def _normaliser(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, factor: float, entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(n,) each: the targets' logits, the log-sum-exp of all logits, and the entropies (empty if not requested)."""
    chosen = at_least_float32(hidden.new_empty(len(hidden)))
    largest = torch.full_like(chosen, -torch.inf)
    total, weighted = torch.zeros_like(chosen), torch.zeros_like(chosen)  # Σ exp(l - largest), and Σ l · the same
    for tile in _parts(len(weight), _tile(hidden)[1]):
        logits = _logits(hidden, weight, bias, tile, factor)
        rows, places = _inside(target, tile)
        chosen[rows] = logits[rows, places]
        before, largest = largest, torch.maximum(largest, logits.amax(-1))
        shrunk = (before - largest).exp_()
        if entropy:
            powers = (logits - largest[:, None]).exp_()
            weighted = weighted * shrunk + logits.mul_(powers).sum(-1)
        else:
            powers = logits.sub_(largest[:, None]).exp_()
        total = total * shrunk + powers.sum(-1)
    normaliser = largest + total.log()
    return chosen, normaliser, normaliser - weighted / total if entropy else chosen.new_zeros(0)


def _tile(hidden: Tensor) -> tuple[int, int]:
    return TILE.get(hidden.device.type, TILE["cpu"])


def _parts(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, tile: slice, factor: float) -> Tensor:
    """Logits of a tile of the vocabulary, at least float32, safe to modify in place."""
    logits = at_least_float32(linear(hidden, weight[tile], None if bias is None else bias[tile]))
    return logits if factor == 1 else logits.mul_(factor)


def _inside(target: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
    """Which targets are in a tile, and their places in it."""
    (rows,) = torch.where((target >= tile.start) & (target < tile.stop))
    return rows, target[rows] - tile.start
