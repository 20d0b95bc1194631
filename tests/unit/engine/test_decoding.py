"""The pieces of the decoding loop: the reserved cache, masks of branches, which prompts are read together."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers.cache_utils import Cache
from tree_families import family

from popi.engine import decoding
from popi.engine.decoding import BranchMasks, Columns, ReservedLayer, prefill_parts
from popi.models.local.model import LocalModel


def test_prompts_are_read_together_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 10 tokens, padding included: 2 and 3 take 6 together, 4 with them would make 12."""
    monkeypatch.setattr(decoding, "PREFILL", 10)
    assert list(prefill_parts([4, 2, 30, 3])) == [[1, 3], [0], [2]]
    assert list(prefill_parts([30])) == [[0]]


def test_the_cache_by_hand() -> None:
    """Two rows of width 3: a prompt of 2 and one of 3, then a token each; beyond what was reserved it grows."""
    columns = Columns(rows=2, width=3, reserved=1)
    cache = Cache(layer_class_to_replicate=partial(ReservedLayer, columns))
    for rows, length in (([0], 2), ([1], 3)):
        columns.prefilled = torch.tensor(rows), 3 - length
        states = torch.full((1, 1, length, 1), 1.0 + rows[0])
        keys, _ = cache.update(states, states, 0)
        assert keys is states and cache.get_seq_length() == 0, "a prompt reads itself alone"
    columns.prefilled = None
    assert cache.get_seq_length() == 3
    for step in range(3):
        new = torch.full((2, 1, 1, 1), 10.0 + step)
        keys, values = cache.update(new, -new, 0)
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 1, 10, 11, 12], [2, 2, 2, 10, 11, 12]]
    assert values[:, 0, 3:, 0].tolist() == [[-10, -11, -12]] * 2
    assert cache.get_seq_length() == 6


def test_appending_copies_no_prompt(tiny_base: Path) -> None:
    """The buffer that the prompt was read into is the one of the last step."""
    local = LocalModel.load(tiny_base)
    seen: list[int] = []
    hook = local.model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["past_key_values"].layers[0].buffers[0].data_ptr()),
        with_kwargs=True,
    )
    local.stop_ids = ()
    local.generate([[5, 6, 7]], n=3, max_new_tokens=6, temperature=1.0)
    hook.remove()
    assert len(seen) == 6 and len(set(seen)) == 1


def test_masks_by_hand(tiny_base: Path) -> None:
    """Prompts of 1 and 2 tokens, two branches each: the second step's tokens see prompt and own branch."""
    model = LocalModel.load(tiny_base).model
    masks = BranchMasks(model, [1, 2], 2)
    assert masks.positions(1).tolist() == [[2, 2], [3, 3]]
    allowed = (masks.mask(1) == 0).int()[:, 0].tolist()
    assert allowed == [
        [[0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]],
        [[1, 1, 1, 0, 1, 0], [1, 1, 0, 1, 0, 1]],
    ]
    far = masks.mask(decoding.RESERVED + 3)
    assert far.shape == (2, 1, 2, 2 + 2 * (decoding.RESERVED + 4)), "made anew where the first ones end"
    assert_close(far[..., :6], masks.mask(1))


@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # a near tie may fall either way in float32
def test_prompts_of_any_length_together_or_alone(
    precision: torch.dtype, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = LocalModel.load(tiny_base)
    prompts = [[5 + i % 40 for i in range(n)] for n in (3, 50, 7, 20)]
    together = local.generate(prompts, n=2, max_new_tokens=5)
    monkeypatch.setattr(decoding, "PREFILL", 1)
    assert local.generate(prompts, n=2, max_new_tokens=5) == together


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_runs_compete_and_then_their_tokens(monkeypatch: pytest.MonkeyPatch, top_p: float) -> None:
    """Runs of 4 of 10 tokens: each is drawn as often as its probability says, within four standard deviations."""
    monkeypatch.setattr(decoding, "RUN", 4)
    probs = torch.tensor([0.05, 0.1, 0.2, 0.05, 0.28, 0.04, 0.08, 0.1, 0.04, 0.06])
    n = 40_000
    torch.manual_seed(0)
    drawn = decoding.pick(probs.log().expand(n, -1), 1.0, top_p)
    kept = probs if top_p == 1 else torch.where(probs >= 0.08, probs, 0.0) / 0.76  # five reach 0.7, four have 0.68
    found = torch.bincount(drawn, minlength=10) / n
    assert ((found - kept).abs() <= 4 * (kept * (1 - kept) / n).sqrt()).all()
    assert decoding.pick(probs.log()[None], 0.0, 1.0).tolist() == [4]


def test_rounding_seldom_changes_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same random numbers with probabilities that differ in the third digit: nearly all tokens stay."""
    monkeypatch.setattr(decoding, "RUN", 16)
    torch.manual_seed(0)
    logits = torch.randn(2000, 200)
    both = []
    for given in (logits, logits.bfloat16().float()):
        torch.manual_seed(1)
        both.append(decoding.pick(given, 1.0, 1.0))
    assert (both[0] != both[1]).float().mean() < 0.01


@pytest.mark.parametrize("precision", ["float64"], indirect=True)
@pytest.mark.parametrize("name", ["llama", "gemma 3", "mistral, sliding"])
def test_a_shared_beginning_is_read_once(precision: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy tokens and first log-probs as if each prompt were read whole, for rests of any length."""
    model = family(name).eval()
    beginning = [5 + i % 40 for i in range(9)]
    prompts = [[*beginning, *[7 + i % 30 for i in range(n)]] for n in (1, 12, 4, 4)]
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    drawn = {}
    for shares in (True, False):
        monkeypatch.setattr(decoding, "SHARED", 8 if shares else 1000)

        def choose(logits: torch.Tensor, step: int, seen: list[torch.Tensor] = seen[shares]) -> torch.Tensor:
            seen.append(logits)
            return logits.argmax(-1)

        settings = {"steps": 5, "temperature": 0.0, "top_p": 1.0, "stop_ids": [], "end_id": 0}
        with torch.inference_mode():
            drawn[shares] = decoding.decode(model, prompts, n=2, choose=choose, **settings)
    assert drawn[True] is not None and torch.equal(drawn[True], drawn[False])
    for shared, whole in zip(*seen.values(), strict=True):
        assert_close(shared, whole)


def test_how_much_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most all but the last token of the shortest prompt; nothing for one prompt, or where little is shared."""
    monkeypatch.setattr(decoding, "SHARED", 2)
    assert decoding.shared_prefix([[1, 2, 3, 4], [1, 2, 3]]) == 2
    assert decoding.shared_prefix([[1, 2, 3, 4], [1, 2, 9, 4]]) == 2
    assert decoding.shared_prefix([[1, 2, 3, 4], [1, 9, 3, 4]]) == 0
    assert decoding.shared_prefix([[1, 2, 3, 4]]) == 0
