"""GRPO on summaries against stock TRL, on one tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from exact import assert_exact
from torch.testing import assert_close
from trl import GRPOConfig, GRPOTrainer

from popi.engine.scoring import pair_logps_plain
from popi.generator import Generator
from popi.models.local.adapters import TRAINED, save_adapter, using
from popi.models.local.model import LocalModel
from popi.runs.files import read_jsonl
from popi.training.objective import margin, summary_reward
from popi.training.phases.inference import InferenceTrainer, Samples, summary_logps
from popi.training.phases.scorer import TreeScorer
from popi.training.reward import SummaryReward
from popi.training.rollout_check import RolloutError, check_rollouts

Make = Callable[..., InferenceTrainer]


@pytest.fixture
def make(bench: Callable[..., Any]) -> Make:
    def build(adapter: str = "none", **arguments: Any) -> InferenceTrainer:
        b = bench({"inference_model"}, adapter, **arguments)
        reward = SummaryReward(b.parts.generator, b.parts.adapters["generator"], 0.1)
        return InferenceTrainer(
            local=b.parts.inference_model.local,
            rows=b.rows,
            reward=reward,
            anchor=b.parts.base.local.model,
            **b.common("inference-1"),
        )

    return build


def stock(base: Path, tmp_path: Path, **arguments: Any) -> GRPOTrainer:
    """TRL's own trainer over a copy of the same weights, with its fused head and its own loading of the KL anchor."""
    local = LocalModel.load(base, device="cpu")
    return GRPOTrainer(
        model=local.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(tmp_path / "stock"),
            per_device_train_batch_size=12,
            num_generations=4,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            **arguments,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b", "c"]}),
        processing_class=local.tokenizer,
    )


def batch_of(trainer: InferenceTrainer) -> Samples:
    """The samples of one step of three groups of four, rewarded, as they train."""
    trainer.scorer.train()
    [batch] = trainer.samples(trainer.rows[:3])
    return batch


def padded(batch: Samples, pad_id: int = 0) -> dict[str, torch.Tensor]:
    """As TRL lays a batch out: prompts padded on the left, completions on the right."""
    left, right = max(map(len, batch.prompts)), max(map(len, batch.summaries))
    ids = torch.full((len(batch), left + right), pad_id)
    mask = torch.zeros_like(ids)
    for row, (prompt, summary) in enumerate(zip(batch.prompts, batch.summaries, strict=True)):
        both = slice(left - len(prompt), left + len(summary))
        ids[row, both], mask[row, both] = torch.tensor([*prompt, *summary]), 1
    found = {"prompt_ids": ids[:, :left], "prompt_mask": mask[:, :left]}
    return found | {"completion_ids": ids[:, left:], "completion_mask": mask[:, left:]}


def logps_of(trainer: InferenceTrainer, batch: Samples, model: Any = None, temperature: float = 1.0) -> torch.Tensor:
    scorer = trainer.scorer if model is None else TreeScorer(model)
    return summary_logps(scorer, batch.prompts, batch.summaries, trainer.local.pad_id, temperature)[0]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_entropies_and_gradients_equal_stock(
    precision: torch.dtype, make: Make, tiny_base: Path, tmp_path: Path, temperature: float
) -> None:
    ours, theirs = make(), stock(tiny_base, tmp_path, temperature=temperature)
    batch = batch_of(ours)
    batch.summaries[0] = batch.summaries[0][:2]  # one that ended early
    laid_out = padded(batch)
    assert (laid_out["prompt_mask"][:, 0] == 0).any(), "prompts of different lengths"
    on = laid_out["completion_mask"].to(precision)
    weights = torch.randn(on.shape)
    logps, entropies = summary_logps(ours.scorer, batch.prompts, batch.summaries, ours.local.pad_id, temperature, True)
    (logps * weights).sum().backward()
    expected, expected_entropies, _ = theirs._get_per_token_logps_and_entropies(
        theirs.model,
        torch.cat([laid_out["prompt_ids"], laid_out["completion_ids"]], 1),
        torch.cat([laid_out["prompt_mask"], laid_out["completion_mask"]], 1),
        on.shape[1],
        compute_entropy=True,
    )
    (expected * weights * on).sum().backward()
    assert_exact(logps, expected * on)
    assert_exact(entropies, expected_entropies * on)
    assert_exact(gradients(ours.local.model), gradients(theirs.model))


@pytest.mark.parametrize("scale", [False, True])
def test_a_whole_step_equals_stock(
    precision: torch.dtype, make: Make, tiny_base: Path, tmp_path: Path, scale: bool
) -> None:
    """Loss, metrics and gradient of one batch: TRL's own of our samples, advantages and anchor."""
    ours = make(inference={"kl": 0.02, "scale_rewards": scale})
    theirs = stock(
        tiny_base, tmp_path, loss_type="dr_grpo", beta=0.02, max_completion_length=6, use_bias_correction_kl=True
    )
    theirs.model.train()
    theirs.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        for mine, other in zip(ours.local.model.parameters(), theirs.model.parameters(), strict=True):
            mine.add_(0.02 * torch.randn_like(mine))  # away from the anchor, so that the KL term pulls
            other.copy_(mine)
    batch = batch_of(ours)
    ours.metrics.clear()
    loss = ours.compute_loss(ours.scorer, batch)
    loss.backward()
    inputs = {**padded(batch), "advantages": batch.advantages, "ref_per_token_logps": batch.ref_logps}
    expected = theirs._compute_loss(theirs.model, inputs)
    expected.backward()
    assert_exact(loss, expected, of=float(batch.advantages.abs().max()))
    assert_exact(gradients(ours.local.model), gradients(theirs.model))
    found = {name: torch.tensor([value for value, _ in ours.metrics[name]]) for name in ("kl", "entropy")}
    assert found["kl"] > 0
    assert_exact(found, {name: torch.tensor(theirs._metrics["train"][name]) for name in found})


@pytest.mark.parametrize("scale", ["none", "group"])
def test_advantages_equal_stock(
    precision: torch.dtype, make: Make, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str
) -> None:
    """TRL's own, of the same rewards."""
    ours = make(inference={"scale_rewards": scale == "group"})
    monkeypatch.setattr(torch, "randperm", torch.arange)  # in their order
    batch = batch_of(ours)
    rewards = [row["reward"] for row in read_jsonl(ours.phase.samples)]  # rounded to six digits
    theirs = stock(tiny_base, tmp_path, scale_rewards=scale, max_completion_length=6)
    theirs.reward_funcs = [lambda **_: rewards]
    expected = theirs._generate_and_score_completions([{"prompt": "a"}] * 12)["advantages"]
    assert_close(batch.advantages, expected.to(batch.advantages), atol=1e-3 if scale == "group" else 2e-6, rtol=0)


@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # a near tie may fall either way in float32
def test_rollouts_belong_to_their_prompts(precision: torch.dtype, make: Make) -> None:
    trainer = make()
    prompts = [row.prompt_ids for row in trainer.rows[:3]]
    trainer.summary = trainer.summary.model_copy(update={"temperature": 1e-4})  # as good as greedy
    drawn, _ = trainer.sample([prompt for prompt in prompts for _ in range(4)])
    assert len(drawn) == 12
    for i, prompt in enumerate(prompts):
        plain = (
            trainer.local.model.eval()
            .generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=trainer.local.end_id,
            )[0, len(prompt) :]
            .tolist()
        )
        assert drawn[4 * i : 4 * i + 4] == [plain] * 4


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # a sample may fall otherwise in float32
def test_signals_read_once_train_the_same(precision: torch.dtype, make: Make, adapter: str) -> None:
    """One pass over them for sampling and update, or one for each: the same summaries, the same weights at the end. A
    step's update lets only the summaries through the model."""
    widths: dict[bool, list[int]] = {True: [], False: []}
    ends = {}
    for once in (True, False):
        torch.manual_seed(1)  # new adapters
        trainer = make(adapter)
        assert trainer.reads_once
        trainer.reads_once = once
        model = trainer.local.model
        base = model.get_base_model() if adapter == "lora" else model
        base.get_decoder().layers[0].register_forward_hook(
            lambda _, given, out, once=once: widths[once].append(given[0].shape[1]) if torch.is_grad_enabled() else None
        )
        trainer.train()  # from the first step on
        ends[once] = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    written = read_jsonl(trainer.phase.samples)
    assert written[: len(written) // 2] == written[len(written) // 2 :] and len(written) > 1
    assert len(widths[True]) == 2 * len(widths[False]), "a step reads the signals, and then the summaries"
    roots, branches = widths[True][::2], widths[True][1::2]
    for root, branch, whole in zip(roots, branches, widths[False], strict=True):
        assert branch <= 4 * 6 < root < whole <= root + branch, "a group of four summaries of at most six tokens"
    # Adam divides by the gradient's size plus 1e-8: one that is nothing but rounding, 1e-14, takes 1e-6 of a step.
    for name, end in ends[True].items():
        assert_close(end, ends[False][name], atol=1e-5 * trainer.args.learning_rate, rtol=0)


def test_prompts_that_were_not_read(make: Make) -> None:
    trainer = make()
    batch = batch_of(trainer)
    assert batch.roots is not None
    others = [(*prompt, 7) for prompt in batch.prompts]
    with pytest.raises(ValueError, match="roots are for other prompts"):
        summary_logps(trainer.scorer, others, batch.summaries, trainer.local.pad_id, 1.0, roots=batch.roots)


def test_the_reward_is_the_methods(precision: torch.dtype, make: Make) -> None:
    trainer = make()
    rows = [trainer.rows[0], trainer.rows[0], trainer.rows[1], trainer.rows[2]]
    texts = ["likes cats", "likes short sentences", "", "likes cats"]
    scores = trainer.reward.score(texts, rows, [2, 3, 0, 2])
    generator = trainer.reward.generator
    for text, row, reward in zip(texts, rows, scores.rewards, strict=True):
        items = generator.items([t.pair for t in row.targets], text)
        with torch.no_grad():
            chosen, rejected = pair_logps_plain(generator.local.model, items)
        refs = [torch.tensor([getattr(t, f"ref_{side}") for t in row.targets]) for side in ("chosen", "rejected")]
        size = float(torch.stack(refs).abs().max())
        assert_exact(reward, summary_reward(margin(chosen, rejected, *refs), 0.1).mean(), of=size)
    empty = scores.margins[scores.owner == 2]  # no summary, untrained generator: the reference itself
    assert_exact(empty, torch.zeros_like(empty), of=size)


def test_the_reward_comes_from_the_partner_adapter(precision: torch.dtype, make: Make, tmp_path: Path) -> None:
    """Rewards under two adapters on one base equal those of a generator loaded alone, and change no gradient flag."""
    donor = make("lora")
    with torch.no_grad():
        for name, parameter in donor.local.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_adapter(
        donor.local.model,
        TRAINED,
        tmp_path / "generator",
        donor.local.model.peft_config[TRAINED].base_model_name_or_path,
    )
    trainer = make("lora", generator_from=tmp_path / "generator")
    alone = SummaryReward(Generator.from_pretrained(tmp_path / "generator", "nano", device="cpu"), TRAINED, 0.1)
    flags = [p.requires_grad for p in trainer.local.model.parameters()]
    texts, rows = ["likes cats", "likes short sentences", ""], trainer.rows[:3]
    for training in (True, False):
        trainer.local.model.train(training)
        scores = trainer.reward.score(texts, rows, [2, 3, 0])
        assert trainer.local.model.training == training
    size = max(abs(target.ref_chosen) for row in rows for target in row.targets)
    assert_exact(scores.rewards, alone.score(texts, rows, [2, 3, 0]).rewards, of=size)
    bare = donor.reward.score(texts, rows, [2, 3, 0]).rewards
    assert not torch.allclose(bare, scores.rewards, atol=0.1)
    assert [p.requires_grad for p in trainer.local.model.parameters()] == flags


def test_the_kl_is_to_the_initial_model_not_loaded_again(precision: torch.dtype, make: Make) -> None:
    trainer = make()
    anchor = trainer.anchor.model
    assert anchor is trainer.reward.generator.local.model  # anchor, reference and frozen generator: one
    with torch.no_grad():
        for parameter in trainer.local.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = batch_of(trainer)
    with torch.no_grad():
        anchored, own = (logps_of(trainer, batch, model) for model in (anchor, trainer.local.model))
    assert_exact(batch.ref_logps, anchored)
    assert (batch.ref_logps - own).abs().max() > 0.05


def test_lora_trains_default_alone(make: Make) -> None:
    trainer = make("lora")
    model = trainer.local.model
    assert set(model.peft_config) == {TRAINED} and model.active_adapter == TRAINED
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.run_phase()
    moved = {name for name, p in model.named_parameters() if (p != before[name]).any()}
    assert moved and all(f".{TRAINED}." in name for name in moved)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {n for n in before if ".default." in n}


def test_lora_kl_anchors_at_the_base_not_at_the_adapter_it_starts_from(
    precision: torch.dtype, make: Make, tmp_path: Path
) -> None:
    first = make("lora")
    with torch.no_grad():
        for name, parameter in first.local.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    first.local.model.save_pretrained(tmp_path / "adapter")
    trainer = make("lora", inference_from=tmp_path / "adapter")
    batch = batch_of(trainer)
    found = {}
    for adapter in (None, TRAINED):
        with torch.no_grad(), using(trainer.local.model, adapter):
            found[adapter] = logps_of(trainer, batch)
    assert_exact(batch.ref_logps, found[None])
    assert (batch.ref_logps - found[TRAINED]).abs().max() > 0.05
    trained = {name for name, p in trainer.local.model.named_parameters() if p.requires_grad}
    assert trained and all(".default." in name for name in trained)  # though the KL switched adapters off and on


def test_rollouts_from_other_weights_are_noticed(precision: torch.dtype, make: Make, tiny_base: Path) -> None:
    trainer = make()
    trainer.check()
    trainer.local = LocalModel.load(tiny_base, device="cpu")
    trainer.check()  # another copy, but still of the same weights
    with torch.no_grad():
        trainer.scorer.model.model.layers[0].mlp.up_proj.weight.mul_(1.2)
    with pytest.raises(RolloutError, match="do not come from the weights being trained"):
        trainer.save_model()


def test_the_check_draws_no_random_numbers(make: Make) -> None:
    trainer = make()
    before = torch.random.get_rng_state()
    check_rollouts(trainer.local, trainer.local.model, trainer.rows[0].prompt_ids, 4)
    assert torch.equal(before, torch.random.get_rng_state())
