"""Credit per clause: texts in clauses, tokens in segments, and what the estimator estimates, by enumeration."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chat_families import FAMILIES, tokenizer_of
from exact import assert_exact
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from popi.config import resolve
from popi.errors import ConfigError
from popi.models.local.model import LocalModel
from popi.nano.tokenizer import build_tokenizer
from popi.runs.files import read_jsonl
from popi.training.credit import CREDITED_CLAUSES, Clauses, token_advantages
from popi.training.objective import clause_advantages, group_advantages, policy_loss
from popi.training.phases.inference import InferenceTrainer
from popi.training.phases.joint import JointTrainer
from popi.training.reward import LengthBudget, SummaryReward

NANO = "wants a formal tone, any level, jokes and recaps."
PROSE = "I love hiking. I value honesty; not flattery!\n- short answers\n- jokes"
EMOJI = "Likes café ☕ talk, naïve art and 🎉 parties. Über-long texts; no 日本語。"


# -- clauses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clauses", "first_two", "without_last"),
    [
        (NANO, ["a formal tone", "any level", "jokes", "recaps"], "wants a formal tone and any level.", None),
        ("Prefers jokes and recaps.", ["jokes", "recaps"], "Prefers jokes and recaps.", "Prefers jokes."),
        (
            PROSE,
            ["I love hiking.", "I value honesty;", "not flattery!", "short answers", "jokes"],
            "I love hiking. I value honesty.",
            "I love hiking. I value honesty; not flattery!\n- short answers",
        ),
        (
            "I love hiking\nI value honesty",
            ["I love hiking", "I value honesty"],
            "I love hiking\nI value honesty",
            None,
        ),
        (
            "This user likes short, clear answers. They avoid talk of money, which bores them.",
            ["short", "clear answers", "They avoid talk of money, which bores them."],
            "This user likes short, clear answers.",
            "This user likes short, clear answers.",
        ),
        ("no end", ["no end"], "no end", ""),
        ("", [], "", ""),
    ],
)
def test_a_summary_in_clauses(text: str, clauses: list[str], first_two: str, without_last: str | None) -> None:
    found = Clauses.of(text)
    assert found.texts == clauses and len(found) == len(clauses)
    assert found.up_to(2) == first_two and found.up_to(0) == "" and found.up_to(len(found)) == text
    if without_last is not None:
        assert found.up_to(max(len(found) - 1, 0)) == without_last


def test_what_is_left_of_a_list_is_a_list() -> None:
    found = Clauses.of(NANO)
    assert [found.only({0, 1, 2, 3} - {i}) for i in range(4)] == [
        "wants any level, jokes and recaps.",
        "wants a formal tone, jokes and recaps.",
        "wants a formal tone, any level and recaps.",
        "wants a formal tone, any level and jokes.",
    ]


def test_a_summary_that_goes_on_and_on_has_so_many_clauses_and_no_more() -> None:
    text = " ".join(f"They like game {i} a lot." for i in range(CREDITED_CLAUSES + 5))
    found = Clauses.of(text)
    assert len(found) == len(found.texts) == CREDITED_CLAUSES
    assert found.up_to(CREDITED_CLAUSES - 1) + " " + found.texts[-1] == text


@given(st.one_of(st.text(), st.lists(st.sampled_from([*NANO.split(), *PROSE.split(" "), ";", "\n", "- ", "é."]))))
def test_any_text_has_clauses_and_they_make_it_up(text: str | list[str]) -> None:
    whole = (text if isinstance(text, str) else " ".join(text)).strip()
    found = Clauses.of(whole)
    kept = found.only(range(10**6))
    assert kept == whole or (whole.endswith(";") and kept == f"{whole[:-1]}.")
    assert sorted(found.ends) == list(found.ends) and all(1 <= end <= len(whole) + 1 for end in found.ends)
    assert len(found.texts) == len(found)


# -- tokens -------------------------------------------------------------------------------------------------------


def learned() -> PreTrainedTokenizerFast:
    """A byte-level BPE that has learned words, with the blank in front of them."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=[*FAMILIES["smollm2"].specials], initial_alphabet=sorted(alphabet)
    )
    made.train_from_iterator([NANO, PROSE, "a. I b. I c. I d. I"] * 3, trainer)
    like = tokenizer_of("smollm2")
    named = {"eos_token": like.eos_token, "pad_token": like.pad_token, "chat_template": like.chat_template}
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "nano": build_tokenizer,
    "bytes": lambda: tokenizer_of("smollm2"),
    "pieces": lambda: tokenizer_of("mistral"),
    "learned": learned,
}


def local_of(name: str) -> LocalModel:
    return LocalModel(SimpleNamespace(), TOKENIZERS[name](), name)


def starts_of(local: LocalModel, ids: Sequence[int]) -> list[int]:
    """Where each token begins: the last place for which it is the first, or an earlier one is."""
    firsts = local.first_tokens(ids, range(len(local.decode(ids)) + 1))
    return [max(place for place, first in enumerate(firsts) if first <= k) for k in range(len(ids))]


@pytest.mark.parametrize("name", ["nano", "bytes", "learned"])
@pytest.mark.parametrize("text", [NANO, PROSE, EMOJI])
def test_where_tokens_begin(name: str, text: str) -> None:
    local = local_of(name)
    ids = [*local.tokenizer(text, add_special_tokens=False)["input_ids"], local.end_id]
    text = local.decode(ids)
    starts = starts_of(local, ids)
    assert starts[0] == 0 and starts[-1] == len(text) and sorted(starts) == starts
    for token, start, stop in zip(ids, starts, starts[1:], strict=False):
        piece = local.tokenizer.decode([token])
        if "\ufffd" not in piece and name != "nano":  # not a byte of a longer character; nano's have no blanks
            assert text[start:stop] == piece
        elif name == "nano" and "unk" not in piece:
            assert text[start:stop].strip() == piece.strip().removeprefix("##")


@pytest.mark.parametrize("name", list(TOKENIZERS))
@pytest.mark.parametrize("text", [NANO, PROSE.replace("\n", " ")])
def test_every_token_of_a_clause_is_of_its_segment(name: str, text: str) -> None:
    """Segment i begins behind the mark that ends clause i: what the tokens of each segment spell, put together."""
    local = local_of(name)
    ids = [*local.tokenizer(text, add_special_tokens=False)["input_ids"], local.end_id]
    text = local.decode(ids)
    found = Clauses.of(text)
    starts = starts_of(local, ids)
    segments = found.segments(local, ids)
    assert segments == sorted(segments) and set(segments) == set(range(len(found) + (found.ends[-1] <= len(text))))
    spelled = [""] * (len(found) + 1)
    for segment, start, stop in zip(segments, starts, [*starts[1:], len(text)], strict=True):
        spelled[segment] += text[start:stop]
    assert "".join(spelled) == text
    expected = [text[a:b] for a, b in zip((0, *found.ends), (*found.ends, len(text)), strict=True)]
    assert spelled == expected


def test_a_token_that_straddles_belongs_to_the_clause_it_begins_in() -> None:
    made = Tokenizer(models.WordLevel({"I": 0, " ski": 1, ". I": 2, " swim.": 3, "<|im_end|>": 4}, unk_token="I"))
    made.decoder = decoders.Fuse()
    like = tokenizer_of("smollm2")
    local = LocalModel(SimpleNamespace(), like, "straddling")
    local.tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    local.stop_ids = (4,)
    found = Clauses.of(local.decode([0, 1, 2, 3, 4]))
    assert found.text == "I ski. I swim." and found.ends == (6, 14)
    assert found.segments(local, [0, 1, 2, 3, 4]) == [0, 0, 0, 1, 2]
    assert Clauses.of("I ski").segments(local, [0, 1, 4]) == [0, 0, 0], "the end token ends what has no full stop"


def test_token_advantages() -> None:
    by_segment = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    assert_close(token_advantages(by_segment, [[0, 1, 1, 2], [0, 1]]), torch.tensor([[1.0, 2, 2, 0], [3, 0, 0, 0]]))


# -- the estimator ------------------------------------------------------------------------------------------------


def test_clause_advantages_by_hand() -> None:
    """Rewards after 0, 1, 2 clauses: (0, 1, 3), (0, 2), (0, 1, 4). To go: (3, 2, 0), (2, 0), (4, 3, 0)."""
    stopped = torch.tensor([[[0.0, 1, 3], [0, 2, 9], [0, 1, 4]]])
    counts = torch.tensor([[2, 1, 2]])
    two_thirds = 2 / 3
    expected = [[0.0, 2 - 1.5, 0], [2 - 3.5, 0 - 2.5, 0], [4 - 2.5, 3 - 1.0, 0]]
    assert_close(clause_advantages(stopped, counts), two_thirds * torch.tensor([expected]))
    # with decay ½: 1 + ½·2 = 2, 2; 2; 1 + ½·3 = 2.5, 3
    expected = [[2 - 2.25, 2 - 1.5, 0], [2 - 2.25, 0 - 2.5, 0], [2.5 - 2, 3 - 1.0, 0]]
    assert_close(clause_advantages(stopped, counts, decay=0.5), two_thirds * torch.tensor([expected]))
    rewards = torch.tensor([[3.0, 2.0, 4.0]])
    for scale in (False, True):
        first = clause_advantages(stopped, counts, scale=scale)[..., 0]
        assert_close(first, group_advantages(rewards, scale), msg="segment 0 has the whole summary's advantage")


class Toy:
    """A writer of one to three clauses, `a` or `b` each, then the end: every choice depends on all before it, or on
    none; and a reward with interactions that saturates, of any list of clauses."""

    def __init__(self, dependent: bool, ends: bool) -> None:
        generator = torch.Generator().manual_seed(3)
        self.dependent, self.ends = dependent, ends
        names = ["".join(z) for n in range(3) for z in product("ab", repeat=n)]
        keys = names if dependent else ["", "-", "--"]
        table = torch.randn(len(keys), 3, generator=generator, dtype=torch.float64)
        self.logits = table.requires_grad_()
        self.row = {key: i for i, key in enumerate(keys)}
        values = torch.randn(4, generator=generator, dtype=torch.float64).tolist()
        self.values = {"a": values[0], "b": values[1], "aa": 2 * values[2], "ab": values[3]}

    def reward(self, z: str) -> float:
        weight = (1.0, 0.7, 1.3)
        total = sum(weight[i] * self.values[c] for i, c in enumerate(z)) + self.values["aa"] * ("aa" in z)
        return -math.log1p(math.exp(-(total + self.values["ab"] * z.startswith("ab"))))

    def log_probs(self, z: str) -> list[Tensor]:
        """Of each token: the clauses', and the end's, which the third clause leaves no choice."""
        found = []
        for i, choice in enumerate([*z, "."][:3]):
            logits = self.logits[self.row[z[:i] if self.dependent else "-" * i]]
            allowed = logits if i and self.ends else logits[:2]
            found.append(torch.log_softmax(allowed, 0)["ab.".index(choice)])
        return found

    @property
    def summaries(self) -> Iterator[str]:
        for n in (1, 2, 3) if self.ends else (3,):
            yield from map("".join, product("ab", repeat=n))

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits)[0]


def expected_estimate(toy: Toy, advantages: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """The expectation over groups of two of what `policy_loss` descends: (n, T) advantages by enumeration."""
    total = torch.zeros_like(toy.logits)
    for group in product(toy.summaries, repeat=2):
        logps = [toy.log_probs(z) for z in group]
        p = math.exp(sum(float(logp.detach()) for own in logps for logp in own))
        stacked = torch.nn.utils.rnn.pad_sequence([torch.stack(own) for own in logps], batch_first=True)
        mask = torch.arange(stacked.shape[1]) < torch.tensor([len(own) for own in logps])[:, None]
        total -= p * toy.gradient(policy_loss(stacked, advantages(group)[:, : stacked.shape[1]], mask, max_tokens=1))
    return total


def by_clause(toy: Toy, decay: float = 1.0) -> Callable[[Sequence[str]], Tensor]:
    def advantages(group: Sequence[str]) -> Tensor:
        rewards = [torch.tensor([toy.reward(z[:i]) for i in range(len(z) + 1)], dtype=torch.float64) for z in group]
        stopped = torch.nn.utils.rnn.pad_sequence(rewards, batch_first=True)[None]
        found = clause_advantages(stopped, torch.tensor([[len(z) for z in group]]), decay)[0]
        return token_advantages(found, [range(len(z) + 1) for z in group])  # the end is of segment K

    return advantages


def probability(toy: Toy, z: str) -> Tensor:
    return torch.exp(torch.stack(toy.log_probs(z)).sum())


def true_gradient(toy: Toy) -> Tensor:
    return toy.gradient(torch.stack([probability(toy, z) * toy.reward(z) for z in toy.summaries]).sum())


@pytest.mark.parametrize("ends", [False, True], ids=["always three clauses", "one to three"])
@pytest.mark.parametrize("dependent", [False, True], ids=["independent", "dependent"])
def test_the_expectation_is_the_true_gradient(dependent: bool, ends: bool) -> None:
    """Times 1 − 1/G, as that of the whole summary's advantage is."""
    toy = Toy(dependent, ends)
    truth = true_gradient(toy)
    assert truth.abs().max() > 0.02

    def whole(group: Sequence[str]) -> Tensor:
        rewards = torch.tensor([[toy.reward(z) for z in group]], dtype=torch.float64)
        return group_advantages(rewards)[0][:, None].expand(-1, 3)

    assert_close(expected_estimate(toy, whole), truth / 2, atol=1e-12, rtol=0)
    assert_close(expected_estimate(toy, by_clause(toy)), truth / 2, atol=1e-12, rtol=0)


def scores(toy: Toy, z: str) -> list[Tensor]:
    """∇ log π of each token."""
    return [toy.gradient(logp) if logp.requires_grad else torch.zeros_like(toy.logits) for logp in toy.log_probs(z)]


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_the_bias_of_a_decay_below_one(decay: float) -> None:
    """E[estimate] = ∇J − Σ_i E[∇ log π(segment i) · Σ_{j>i} (1 − decay^{j−i−1}) d_j], times 1 − 1/G."""
    toy = Toy(dependent=True, ends=True)
    bias = torch.zeros_like(toy.logits)
    for z in toy.summaries:
        gains = [toy.reward(z[: j + 1]) - toy.reward(z[:j]) for j in range(len(z))]
        for i, score in enumerate(scores(toy, z)):
            lost = sum((1 - decay ** (j - i)) * gains[j] for j in range(i + 1, len(z)))
            bias += float(probability(toy, z).detach()) * lost * score
    assert bias.abs().max() > 0.01
    found = expected_estimate(toy, by_clause(toy, decay))
    assert_close(found, (true_gradient(toy) - bias) / 2, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dependent", [False, True], ids=["independent", "dependent"])
def test_why_not_what_leaving_a_clause_out_costs(dependent: bool) -> None:
    """r(z) − r(z without clause i) on clause i: unbiased where later clauses do not depend on it; else short of
    Σ_i E[r(z without i) · ∇ log π(clause i)], through which naming one thing keeps another from being named."""
    toy = Toy(dependent, ends=False)
    estimate, bias = torch.zeros_like(toy.logits), torch.zeros_like(toy.logits)
    for z in toy.summaries:
        p = float(probability(toy, z).detach())
        for i, score in enumerate(scores(toy, z)):
            rest = sum_of_slots(toy, z, i)
            estimate += p * (toy.reward(z) - rest) * score
            bias += p * rest * score
    assert_close(estimate, true_gradient(toy) - bias, atol=1e-12, rtol=0)
    assert bias.abs().max() > 0.01 if dependent else bias.abs().max() < 1e-12


def sum_of_slots(toy: Toy, z: str, left_out: int) -> float:
    """The reward of the other clauses."""
    return toy.reward(z[:left_out] + z[left_out + 1 :])


# -- training -----------------------------------------------------------------------------------------------------


SUMMARIES = (NANO, "prefers jokes and recaps.", "likes any tone, any level and short answers.", "wants humor.", "jokes")


def listing(local: LocalModel) -> Callable[..., list[list[list[int]]]]:
    """Samples that their prompt fixes: summaries of none to four clauses."""
    encoded = [local.encode_response(text)[:12] for text in SUMMARIES]

    def generate(prompts: Sequence[Sequence[int]], *, n: int = 1, **_: Any) -> list[list[list[int]]]:
        return [[encoded[(sum(p) + j) % len(encoded)] for j in range(n)] for p in prompts]

    return generate


def trainer_of(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, budget: LengthBudget | None = None, **inference: Any
) -> InferenceTrainer:
    monkeypatch.setattr(InferenceTrainer, "check", lambda self: None)  # it compares real rollouts
    b = bench({"inference_model"}, inference={"learning_rate": 1e-9, **inference})
    local = b.parts.inference_model.local
    monkeypatch.setattr(local, "generate", listing(local))
    reward = SummaryReward(b.parts.generator, None, 0.1, budget=budget)
    common = b.common("inference-1") | {"local": local, "rows": b.rows, "reward": reward}
    return InferenceTrainer(anchor=b.parts.base.local.model, **common)


def test_a_step_gives_each_token_what_is_gained_from_it_on(
    precision: torch.dtype, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advantages of a step against the definition, reward by reward, the length penalty among them."""
    monkeypatch.setattr(torch, "randperm", torch.arange)
    trainer = trainer_of(bench, monkeypatch, LengthBudget(2, 0.5), credit="clause")
    [batch] = trainer.samples(trainer.rows[:3])
    local, size = trainer.local, trainer.group_size
    assert batch.advantages.shape == (12, max(map(len, batch.summaries)))
    rows = [row for row in trainer.rows[:3] for _ in range(size)]
    parsed = [Clauses.of(local.decode(ids)) for ids in batch.summaries]

    def reward(text: str, n: int) -> float:
        return float(trainer.reward.score([text], [rows[n]], [local.count_tokens(text)]).rewards)

    to_go = [
        [reward(own.text, n) - reward(own.up_to(i), n) for i in range(max(len(own), 1) + 1)]
        for n, own in enumerate(parsed)
    ]
    for n, (own, ids) in enumerate(zip(parsed, batch.summaries, strict=True)):
        group = [m for m in range(n // size * size, (n // size + 1) * size) if m != n]
        expected = []
        for i in own.segments(local, ids):
            others = [to_go[m][i] for m in group if i < len(to_go[m])]
            expected.append(0.75 * (to_go[n][i] - (sum(others) / len(others) if others else 0.0)))
        padded = [*expected, *[0.0] * (batch.advantages.shape[1] - len(ids))]
        assert_exact(batch.advantages[n], torch.tensor(padded), of=100.0)
    written = read_jsonl(trainer.phase.samples)
    for row, own, gone in zip(written, parsed, to_go, strict=True):
        assert [text for text, _ in row["clauses"]] == own.texts
        assert sum(gain for _, gain in row["clauses"]) == pytest.approx(gone[0], abs=1e-4)
    assert trainer.metrics["clauses"] == [(sum(map(len, parsed)) / 12, 1.0)] and trainer.metrics["credit_std"][0][0] > 0


def test_the_default_has_one_advantage_for_a_summary(
    bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(bench, monkeypatch)
    [batch] = trainer.samples(trainer.rows[:3])
    assert batch.advantages.shape == (12,) and "clauses" not in read_jsonl(trainer.phase.samples)[0]
    assert not {"clauses", "credit_std"} & trainer.metrics.keys()


def test_a_step_in_parts_has_the_gradient_of_the_whole(
    precision: torch.dtype, bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for micro_batch in (None, 1):
        trainer = trainer_of(bench, monkeypatch, credit="clause", micro_batch=micro_batch)
        trainer.training_step(trainer.scorer, list(trainer.rows[:3]))
        found.append({n: p.grad.clone() for n, p in trainer.local.model.named_parameters() if p.grad is not None})
    assert any(gradient.abs().max() > 1e-4 for gradient in found[0].values())
    assert_exact(found[1], found[0])


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_simultaneous_training_gives_credit_to_clauses(bench: Callable[..., Any], adapter: str) -> None:
    b = bench({"inference_model", "generator"}, adapter, inference={"credit": "clause", "clause_decay": 0.5})
    trainer = JointTrainer(
        generator=b.parts.generator.local if adapter == "none" else None,
        local=b.parts.inference_model.local,
        rows=b.rows,
        reward=SummaryReward(b.parts.generator, b.parts.adapters["generator"], 0.1),
        anchor=b.parts.base.local.model,
        **b.common("joint"),
    )
    trainer.run_phase()
    log = [row for row in read_jsonl(b.run.log_file) if "loss" in row]
    assert len(log) == 2 and all(row["clauses"] > 0 and "generator_loss" in row for row in log)


def test_a_decay_goes_with_credit_for_clauses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='clause_decay = 0.5 requires credit = "clause"'):
        resolve({"training": {"inference": {"clause_decay": 0.5}}})
