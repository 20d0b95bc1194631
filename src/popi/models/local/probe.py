"""Check once per load whether a model computes the same in popi's layouts as in its own forward pass.

popi puts several texts into one row and separates them by masks and positions: tree rows, branches after cached roots,
and samples decoded side by side. A config does not show whether a model respects these: MPT derives a token's position
from its column, GPT-Neo ignores the mask's positions, and recurrent states run along the row. So a few short texts go
through the loaded model both ways. If the results differ, the model runs the plain way (`popi.engine.plain`), which is
correct but slower.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from popi.engine.attention import takes_tree_masks
from popi.engine.decoding import decode
from popi.engine.head import at_least_float32
from popi.engine.masks import slides
from popi.engine.plain import plain_decode, run_plain
from popi.engine.roots import Roots
from popi.engine.tree import Segment, pack, token_logps_and_entropies
from popi.errors import ModelError

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Maximum difference of a token's log-prob, by dtype. float64 has the same as float32, since transformers computes
norms in float32."""
HALF, NOISE = (0.05, 0.25), 3.0
"""Maximum mean and maximum single difference in half precision. In deep models, rounding alone reaches tenths of a nat,
so the limit is at least `NOISE` times the difference between the model's own forward passes of the texts together and
of each text alone."""
WINDOW = 4
"""The sliding-attention window during the probe, shorter than the texts."""
KINDS = {"full_attention", "sliding_attention", "attention"}
"""Layer types, as named in configs, that the probe's short texts can check."""
HIDDEN = re.compile(r"window_size|chunk_size|index_topk|index_block_size|local_attention")
"""Settings that restrict attention in long texts in ways that popi's masks do not implement."""
LENGTHS = [(6, 0, 5, 5), (4, 4, 3, 3)]
"""Tokens of each row's root, of a segment after it, and of two branches after both. All texts have the same length."""


def probe(causal: Any, name: str) -> float | None:
    """Compare popi's layouts with the model's own forward pass; if they differ, make the model run the plain way.

    Draws no random numbers. Call it in evaluation mode, before the attention is switched to popi's.

    Returns:
        The largest difference of a token's log-prob (nats) in popi's layouts; None if they can't be computed.

    Raises:
        ModelError: if the model can't be run the plain way either, or is not a causal LM.
    """
    worst, reason = None, _hidden_window(causal)
    with torch.inference_mode(), _short_window(causal.config.get_text_config()):
        texts = _Texts(causal)
        try:
            truth = texts.plain()
        except Exception as error:  # a model's code may raise any exception
            raise ModelError(f"{name}: its own forward pass fails on a few tokens ({_line(error)})") from None
        if not bool(truth.isfinite().all()):
            raise ModelError(f"{name}: its outputs are not finite: the weights are damaged, or need another dtype")
        for layout, compute in texts.layouts().items():
            try:
                computed, expected = compute(truth)
                difference = (computed - expected).abs()
            except Exception as error:
                reason = reason or f"{layout} fail ({_line(error)})"
                break
            worst = max(worst or 0.0, float(difference.max()))
            if not texts.close(difference):
                nats = f"{float(difference.max()):.2g} nats per token"
                reason = reason or f"{layout} differ from its own forward pass by up to {nats}"
        if reason is not None:
            run_plain(causal, reason)
            _check_plain(causal, texts, truth, name)
    if reason is not None:
        kind = type(causal).__name__
        warnings.warn(
            f"{name} ({kind}): {reason}; popi runs each text in its own row, which is correct but slower",
            stacklevel=2,
        )
    return worst


class _Texts:
    """The probe's texts and their log-probs in each layout, in the order of tree rows."""

    def __init__(self, causal: Any) -> None:
        self.causal = causal
        vocabulary = causal.get_input_embeddings().weight.shape[0]
        self.device = causal.get_input_embeddings().weight.device
        self.dtype = causal.get_input_embeddings().weight.dtype
        tokens = iter(range(10**6))

        def next_tokens(n: int) -> list[int]:
            return [(next(tokens) * 7919 + 11) % max(vocabulary - 8, 1) + min(8, vocabulary - 1) for _ in range(n)]

        self.rows = [[next_tokens(n) for n in lengths] for lengths in LENGTHS]

    @property
    def chains(self) -> list[tuple[list[int], list[int]]]:
        """(prefix, branch) of each branch."""
        return [(root + middle, branch) for root, middle, *branches in self.rows for branch in branches]

    def plain(self) -> Tensor:
        """(N,) from the model's own forward pass over all texts at once, which have equal length and need no mask."""
        ids = torch.tensor([before + branch for before, branch in self.chains], device=self.device)
        self.truth = self._logps(ids, 0)
        return self.truth

    @cached_property
    def noise(self) -> Tensor:
        """(N,) difference between the model's own forward pass of each text alone and of all together."""
        texts = [torch.tensor([before + branch], device=self.device) for before, branch in self.chains]
        return (torch.cat([self._logps(text, i) for i, text in enumerate(texts)]) - self.truth).abs()

    def _logps(self, ids: Tensor, first: int) -> Tensor:
        logps = torch.log_softmax(at_least_float32(self.causal(input_ids=ids, use_cache=False).logits), -1)
        chains = self.chains[first : first + len(ids)]
        return torch.cat(
            [
                row[len(before) - 1 : -1].gather(1, text[len(before) :, None])[:, 0]
                for row, text, (before, _) in zip(logps, ids, chains, strict=True)
            ]
        )

    def close(self, difference: Tensor) -> bool:
        """Whether differences of log-probs are small enough to be rounding."""
        if self.dtype in TOLERANCE:
            return bool(difference.max() <= TOLERANCE[self.dtype])
        mean, largest = (float(value) for value in (difference.mean(), difference.max()))
        if mean <= HALF[0] and largest <= HALF[1]:
            return True
        noise = float(self.noise.mean()), float(self.noise.max())
        return mean <= max(HALF[0], NOISE * noise[0]) and largest <= max(HALF[1], NOISE * noise[1])

    def layouts(self) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """popi's layouts: name → function from the true log-probs to (computed, expected)."""
        return {"tree rows": self.trees, "branches after cached roots": self.cached, "samples side by side": self.side}

    def _batch(self) -> Any:
        trees = []
        for root, middle, *branches in self.rows:
            inner = [Segment(middle, 0)] if middle else []
            trees.append([Segment(root), *inner, *(Segment(branch, len(inner), True) for branch in branches)])
        return pack(trees, 0).to(self.device)

    def trees(self, truth: Tensor) -> tuple[Tensor, Tensor]:
        takes_tree_masks(self.causal)
        return token_logps_and_entropies(self.causal, self._batch(), entropy=False)[0], truth

    def cached(self, truth: Tensor) -> tuple[Tensor, Tensor]:
        roots = Roots.read(self.causal, [row[0] for row in self.rows], 0)
        return token_logps_and_entropies(self.causal, self._batch(), entropy=False, roots=roots)[0], truth

    def side(self, truth: Tensor) -> tuple[Tensor, Tensor]:
        """The first tokens of every branch, as if they had been sampled."""
        steps = min(len(branch) for _, branch in self.chains)
        forced = torch.tensor([branch[:steps] for _, branch in self.chains], device=self.device)
        seen: list[Tensor] = []

        def choose(logits: Tensor, step: int) -> Tensor:
            seen.append(torch.log_softmax(logits, -1).gather(1, forced[:, step, None])[:, 0])
            return forced[:, step]

        prompts = [root + middle for root, middle, *_ in self.rows]
        drawn = decode(
            self.causal,
            prompts,
            n=2,
            steps=steps,
            temperature=1.0,
            top_p=1.0,
            stop_ids=[],
            end_id=0,
            choose=choose,
        )
        if drawn is None:
            raise ValueError("the outputs are not finite")
        starts = torch.tensor([0, *(len(branch) for _, branch in self.chains)]).cumsum(0)[:-1]
        places = (starts[:, None] + torch.arange(steps)).to(self.device)
        return torch.stack(seen, 1), truth[places]


def _check_plain(causal: Any, texts: _Texts, truth: Tensor, name: str) -> None:
    """Check that a model that runs the plain way is causal, and generates the tokens its forward pass prefers."""
    kind = type(causal).__name__
    before, branch = texts.chains[0]
    ids = torch.tensor([before + branch], device=texts.device)  # (1, L)
    cut = len(before) // 2  # more tokens to compare than the branch has
    halves = [causal(input_ids=ids[:, :stop], use_cache=False).logits[0, : cut - 1] for stop in (cut, None)]
    logps = [torch.log_softmax(at_least_float32(half), -1).gather(1, ids[0, 1:cut, None]) for half in halves]
    difference = (logps[0] - logps[1]).abs()
    if not texts.close(difference):
        raise ModelError(
            f"{name} ({kind}): not a causal LM: a token's log-probs change by up to {float(difference.max()):.2g} nats "
            "depending on the text after it"
        )
    steps = 3
    try:
        drawn = plain_decode(causal, [before], n=1, steps=steps, temperature=0.0, top_p=1.0, stop_ids=[], end_id=0)
        assert drawn is not None, "its outputs are not finite"
        sequences = torch.cat([torch.tensor([before], device=texts.device), drawn], 1)
        logits = causal(input_ids=sequences, use_cache=False).logits[0, len(before) - 1 : -1]
        every = torch.log_softmax(at_least_float32(logits), -1)
    except Exception as error:
        raise ModelError(f"{name} ({kind}): its own generation fails ({_line(error)})") from None
    gap = every.amax(-1) - every.gather(1, drawn[0][:, None])[:, 0]
    if not texts.close(gap):
        raise ModelError(
            f"{name} ({kind}): generates other tokens than its forward pass prefers (by up to {float(gap.max()):.2g} "
            "nats), so sampling and training would disagree"
        )


def _hidden_window(causal: Any) -> str | None:
    config = causal.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := kinds - KINDS:
        return f"layers of type {', '.join(sorted(others))} may differ in tree rows"
    context = getattr(config, "max_position_embeddings", None) or float("inf")
    settings = {key: value for key, value in config.to_dict().items() if HIDDEN.search(key)}
    for key, value in settings.items():
        if key != "sliding_window" and type(value) is int and 1 < value < context:
            return f"its {key} of {value} may make long tree rows differ"
    return None


@contextmanager
def _short_window(config: Any) -> Iterator[None]:
    if not slides(config):
        yield
        return
    window, config.sliding_window = config.sliding_window, WINDOW
    try:
        yield
    finally:
        config.sliding_window = window


def _line(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:200]
