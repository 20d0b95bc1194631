"""Once per load: does this model compute the same in popi's layouts as in its own forward?

popi puts several texts into one row and keeps them apart by masks and positions: tree rows, branches behind cached
roots, samples decoded side by side. Whether a model honours them can't be told from its config: MPT takes a token's
place from its column, GPT-Neo ignores the mask's positions, states run along the row. So a few short texts go through
the loaded model both ways. Where they differ, the model runs the plain way (`popi.engine.plain`): right, and slower.
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
"""Largest difference of a token's log-prob, by the weights' type. float64 has float32's: the norms of transformers are
float32 in any model."""
HALF, NOISE = (0.05, 0.25), 3.0
"""The mean and the largest difference in half precision. There rounding alone reaches tenths of a nat in deep models:
if that is more, `NOISE` times the difference between the model's own forwards of the texts together and of each alone.
"""
WINDOW = 4
"""The window of sliding attention while a model is probed: the texts are longer than that."""
KINDS = {"full_attention", "sliding_attention", "attention"}
"""Kinds of layers, as configs name them, that the probe's short texts can judge."""
HIDDEN = re.compile(r"window_size|chunk_size|index_topk|index_block_size|local_attention")
"""Settings that limit what a token sees of a long text, in ways that popi's masks don't know."""
LENGTHS = [(6, 0, 5, 5), (4, 4, 3, 3)]
"""Tokens of each row's root, of a segment behind it, and of two branches behind both: all texts of one length."""


def probe(causal: Any, name: str) -> float | None:
    """Compare popi's layouts with the model's own forward; where they differ, have the model run the plain way.

    Draws no random numbers. Call it in evaluation mode, before the attention is switched to popi's.

    Returns:
        The largest difference of a token's log-prob (nats) in popi's layouts; None where they can't be computed.

    Raises:
        ModelError: the model can't be run the plain way either, or is no causal LM.
    """
    worst, reason = None, _hidden_window(causal)
    with torch.inference_mode(), _short_window(causal.config.get_text_config()):
        texts = _Texts(causal)
        try:
            truth = texts.plain()
        except Exception as error:  # a model's own code may raise anything
            raise ModelError(f"{name}: its own forward fails on a few tokens ({_line(error)})") from None
        if not bool(truth.isfinite().all()):
            raise ModelError(f"{name}: its outputs are not finite: the weights are damaged, or need another dtype")
        for what, compute in texts.layouts().items():
            try:
                found, expected = compute(truth)
                difference = (found - expected).abs()
            except Exception as error:
                reason = reason or f"{what} fail ({_line(error)})"
                break
            worst = max(worst or 0.0, float(difference.max()))
            if not texts.close(difference):
                nats = f"{float(difference.max()):.2g} nats per token"
                reason = reason or f"{what} differ from its own forward by up to {nats}"
        if reason is not None:
            run_plain(causal, reason)
            _check_plain(causal, texts, truth, name)
    if reason is not None:
        kind = type(causal).__name__
        warnings.warn(
            f"{name} ({kind}): {reason}; popi runs each text in a row of its own, which is right but slower",
            stacklevel=2,
        )
    return worst


class _Texts:
    """The probe's texts, and their log-probs in each layout, all in the order of tree rows."""

    def __init__(self, causal: Any) -> None:
        self.causal = causal
        vocabulary = causal.get_input_embeddings().weight.shape[0]
        self.device = causal.get_input_embeddings().weight.device
        self.dtype = causal.get_input_embeddings().weight.dtype
        tokens = iter(range(10**6))

        def some(n: int) -> list[int]:
            return [(next(tokens) * 7919 + 11) % max(vocabulary - 8, 1) + min(8, vocabulary - 1) for _ in range(n)]

        self.rows = [[some(n) for n in lengths] for lengths in LENGTHS]

    @property
    def chains(self) -> list[tuple[list[int], list[int]]]:
        """(what stands before, branch) of each branch."""
        return [(root + middle, branch) for root, middle, *branches in self.rows for branch in branches]

    def plain(self) -> Tensor:
        """(N,) by the model's own forward, all texts of one length side by side, without a mask."""
        ids = torch.tensor([before + branch for before, branch in self.chains], device=self.device)
        self.truth = self._logps(ids, 0)
        return self.truth

    @cached_property
    def noise(self) -> Tensor:
        """(N,) how the model's own forward of each text alone differs from that of all together."""
        texts = [torch.tensor([before + branch], device=self.device) for before, branch in self.chains]
        return (torch.cat([self._logps(one, i) for i, one in enumerate(texts)]) - self.truth).abs()

    def _logps(self, ids: Tensor, first: int) -> Tensor:
        logps = torch.log_softmax(at_least_float32(self.causal(input_ids=ids, use_cache=False).logits), -1)
        chains = self.chains[first : first + len(ids)]
        return torch.cat(
            [
                of_one[len(before) - 1 : -1].gather(1, one[len(before) :, None])[:, 0]
                for of_one, one, (before, _) in zip(logps, ids, chains, strict=True)
            ]
        )

    def close(self, difference: Tensor) -> bool:
        """Whether differences of log-probs are rounding."""
        if self.dtype in TOLERANCE:
            return bool(difference.max() <= TOLERANCE[self.dtype])
        mean, largest = (float(value) for value in (difference.mean(), difference.max()))
        if mean <= HALF[0] and largest <= HALF[1]:
            return True
        noise = float(self.noise.mean()), float(self.noise.max())
        return mean <= max(HALF[0], NOISE * noise[0]) and largest <= max(HALF[1], NOISE * noise[1])

    def layouts(self) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """What popi does with texts: name → truth → (log-probs, those expected)."""
        return {"tree rows": self.trees, "branches behind cached roots": self.behind, "samples side by side": self.side}

    def _batch(self) -> Any:
        trees = []
        for root, middle, *branches in self.rows:
            inner = [Segment(middle, 0)] if middle else []
            trees.append([Segment(root), *inner, *(Segment(branch, len(inner), True) for branch in branches)])
        return pack(trees, 0).to(self.device)

    def trees(self, truth: Tensor) -> tuple[Tensor, Tensor]:
        takes_tree_masks(self.causal)
        return token_logps_and_entropies(self.causal, self._batch(), entropy=False)[0], truth

    def behind(self, truth: Tensor) -> tuple[Tensor, Tensor]:
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
    """A model that runs the plain way has to be causal, and to generate what its forward says."""
    kind = type(causal).__name__
    before, branch = texts.chains[0]
    ids = torch.tensor([before + branch], device=texts.device)  # (1, L)
    cut = len(before) // 2  # more tokens to compare than the branch has
    halves = [causal(input_ids=ids[:, :stop], use_cache=False).logits[0, : cut - 1] for stop in (cut, None)]
    logps = [torch.log_softmax(at_least_float32(half), -1).gather(1, ids[0, 1:cut, None]) for half in halves]
    difference = (logps[0] - logps[1]).abs()
    if not texts.close(difference):
        raise ModelError(
            f"{name} ({kind}): is no causal LM: a token's log-probs change by up to {float(difference.max()):.2g} nats "
            "with what stands behind it"
        )
    steps = 3
    try:
        drawn = plain_decode(causal, [before], n=1, steps=steps, temperature=0.0, top_p=1.0, stop_ids=[], end_id=0)
        assert drawn is not None, "its outputs are not finite"
        whole = torch.cat([torch.tensor([before], device=texts.device), drawn], 1)
        logits = causal(input_ids=whole, use_cache=False).logits[0, len(before) - 1 : -1]
        every = torch.log_softmax(at_least_float32(logits), -1)
    except Exception as error:
        raise ModelError(f"{name} ({kind}): its own generation fails ({_line(error)})") from None
    short = every.amax(-1) - every.gather(1, drawn[0][:, None])[:, 0]
    if not texts.close(short):
        raise ModelError(
            f"{name} ({kind}): generates other tokens than its forward prefers (by up to {float(short.max()):.2g} "
            "nats), so what is sampled would not be what is trained"
        )


def _hidden_window(causal: Any) -> str | None:
    config = causal.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := kinds - KINDS:
        return f"layers of {', '.join(sorted(others))} can differ in tree rows"
    context = getattr(config, "max_position_embeddings", None) or float("inf")
    settings = {key: value for key, value in config.to_dict().items() if HIDDEN.search(key)}
    for key, value in settings.items():
        if key != "sliding_window" and type(value) is int and 1 < value < context:
            return f"its {key} of {value} can make long tree rows differ"
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
