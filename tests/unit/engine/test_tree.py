"""Tree rows against whole sequences: log-probs and gradients."""

import pytest
import torch
from exact import assert_exact
from transformers import LlamaConfig, LlamaForCausalLM

from popi.engine.scoring import ScoringItem, pair_logps, pair_logps_plain
from popi.engine.tree import Segment, buckets, pack, segment_logps, token_logps, token_logps_and_entropies


@pytest.fixture
def model(precision: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # far from uniform, so that a wrong mask shows
    return model.eval()


def random_ids(n: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(1, 50, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def items() -> list[ScoringItem]:
    return [ScoringItem(random_ids(5 + i, i), random_ids(3 + i % 2, 10 + i), random_ids(4, 20 + i)) for i in range(5)]


def test_layout_by_hand() -> None:
    """Root [1 2], branches [3 4] (scored) and [5] (scored): the branches do not see each other."""
    batch = pack([[Segment([1, 2]), Segment([3, 4], 0, True), Segment([5], 0, True)]], pad_id=0)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.root == 2 and torch.equal(batch.mask(2), batch.mask()[:, :, 2:])
    assert batch.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert batch.source.tolist() == [[0, 1], [0, 2], [0, 1]]
    assert batch.target.tolist() == [3, 4, 5]
    assert batch.segment.tolist() == [0, 0, 1]


def test_scored_root_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a parent"):
        pack([[Segment([1], None, True)]], pad_id=0)


def test_rows_of_like_length_go_together(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths 9, 100, 10, 95 with room for 5 padding tokens: 9 and 10 together, 95 and 100 together."""
    monkeypatch.setattr("popi.engine.tree.FEW", 5)
    monkeypatch.setattr("popi.engine.tree.PADDING", 0.0)
    assert buckets([9, 100, 10, 95]) == [[0, 2], [3, 1]]
    assert buckets([9, 100, 10, 95], most=105) == [[0, 2], [3], [1]]
    some = items()
    long = [ScoringItem(random_ids(60 + i, i), random_ids(7, 10 + i), random_ids(4 + i, 20 + i)) for i in range(3)]
    mixed = [some[0], long[1], some[1], long[0], long[2], some[2]]
    batch = pack([item.tree for item in mixed], pad_id=0)
    assert len(buckets(batch.lengths)) > 1
    plain = torch.stack(pair_logps_plain(model, mixed), 1).flatten()
    assert_exact(segment_logps(model, batch), plain)
    monkeypatch.setattr("popi.engine.tree.LAYER_BYTES", {"cpu": 1})  # each row by itself
    widths = []
    model.model.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].shape), with_kwargs=True
    )
    with torch.no_grad():
        assert_exact(segment_logps(model, batch), plain)
    assert widths == [(1, length) for length in sorted(batch.lengths)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tree_rows_equal_whole_sequences(model: LlamaForCausalLM, attention: str) -> None:
    model.set_attn_implementation(attention)
    assert_exact(pair_logps(model, items(), pad_id=0, batch_size=2), pair_logps_plain(model, items()))


def test_equal_items_are_scored_once(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr(
        "popi.engine.scoring.pack", lambda trees, pad_id: rows.append(len(trees)) or pack(trees, pad_id)
    )
    distinct = items()[:2]
    chosen, _ = pair_logps(model, [distinct[0], distinct[1], distinct[0]], pad_id=0)
    assert sum(rows) == 2
    assert chosen[0] == chosen[2] != chosen[1]


def test_gradients_equal_whole_sequences(model: LlamaForCausalLM) -> None:
    def grads(logps: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (logps[0] - 0.5 * logps[1]).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    batch = pack([item.tree for item in items()], pad_id=0)
    both = segment_logps(model, batch).reshape(-1, 2)
    assert_exact(grads((both[:, 0], both[:, 1])), grads(pair_logps_plain(model, items())))


def test_three_levels_share_two_prefixes(model: LlamaForCausalLM) -> None:
    """summary → task prompts → responses, as when one summary is scored on several targets."""
    summary, prompts = random_ids(6, 1), [random_ids(3, 2), random_ids(4, 3)]
    answers = [random_ids(3, s) for s in (4, 5, 6, 7)]
    row = [Segment(summary), Segment(prompts[0], 0), Segment(prompts[1], 0)]
    row += [Segment(answer, 1 + i // 2, True) for i, answer in enumerate(answers)]
    sums = segment_logps(model, pack([row], pad_id=0))
    plain = pair_logps_plain(
        model, [ScoringItem(summary + prompts[i], answers[2 * i], answers[2 * i + 1]) for i in range(2)]
    )
    assert_exact(sums, torch.stack(plain, 1).flatten())


@pytest.mark.parametrize("large", [False, True])
def test_chunks_entropy_and_recomputation(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr("popi.engine.tree.LARGE_VOCABULARY", 10 if large else 10**6)
    batch = pack([item.tree for item in items()], pad_id=0)
    whole, entropy = token_logps_and_entropies(model, batch, temperature=0.7)
    chunked, chunked_entropy = token_logps_and_entropies(model, batch, temperature=0.7, chunk=3)
    assert_exact((chunked, chunked_entropy), (whole, entropy))
    assert_exact(token_logps(model, batch, temperature=0.7), whole)
    ids = torch.tensor([[*items()[0].prefix, *items()[0].chosen]])
    logits = model(input_ids=ids).logits[0, len(items()[0].prefix) - 1] / 0.7
    size = float(logits.detach().abs().max())
    assert_exact(whole[0], torch.log_softmax(logits, -1)[items()[0].chosen[0]], of=size)
    assert_exact(entropy[0], torch.distributions.Categorical(logits=logits).entropy(), of=size)
