"""DPO under summaries: what the policy and the reference read, which loss is taken, and stock TRL where it agrees."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from exact import assert_exact
from trl import DPOConfig, DPOTrainer

from popi.engine.scoring import pair_logps_plain
from popi.models.local.model import LocalModel
from popi.training.objective import dpo_loss, ipo_loss, margin
from popi.training.phases.generator import GeneratorTrainer
from popi.training.rows import GeneratorRow

Make = Callable[..., GeneratorTrainer]
SUMMARY = "likes short sentences"


def rows_of(bench: Any, summary: str | None) -> list[GeneratorRow]:
    generator = bench.parts.generator
    return [
        GeneratorRow(
            row.user_id,
            summary or "",
            generator.items([t.pair], summary)[0],
            t.ref_chosen,
            t.ref_rejected,
        )
        for row in bench.rows
        for t in row.targets
    ]


@pytest.fixture
def make(bench: Callable[..., Any]) -> Make:
    def build(summary: str | None = SUMMARY, adapter: str = "none", **generator: Any) -> GeneratorTrainer:
        b = bench({"generator"}, adapter, generator=generator)
        return GeneratorTrainer(local=b.parts.generator.local, rows=rows_of(b, summary), **b.common("generator-1"))

    return build


def first_batch(trainer: GeneratorTrainer) -> dict[str, Any]:
    return next(iter(trainer.get_train_dataloader()))


def hand_margins(trainer: GeneratorTrainer, rows: Sequence[GeneratorRow]) -> tuple[torch.Tensor, float]:
    """h by whole sequences, references as they came with the rows; and the largest log-prob in it."""
    chosen, rejected = pair_logps_plain(trainer.scorer.model, [row.item for row in rows])
    refs = [torch.tensor([getattr(row, f"ref_{side}") for row in rows]) for side in ("chosen", "rejected")]
    return margin(chosen, rejected, *refs), max(float(side.abs().max()) for side in refs)


def first_rows(trainer: GeneratorTrainer) -> list[GeneratorRow]:
    return list(trainer.rows[: trainer.args.per_device_train_batch_size])


def columns(rows: Sequence[GeneratorRow]) -> list[dict[str, Any]]:
    """Rows as TRL's columns."""
    return [
        {
            "prompt_ids": list(row.item.prefix),
            "chosen_ids": list(row.item.chosen),
            "rejected_ids": list(row.item.rejected),
            "ref_chosen_logps": row.ref_chosen,
            "ref_rejected_logps": row.ref_rejected,
        }
        for row in rows
    ]


def test_rows_come_in_training_order(make: Make) -> None:
    trainer = make()
    trees = first_batch(trainer)["trees"]
    first = [int(trees.target[trees.segment == 2 * i][0]) for i in range(4)]
    assert first == [row.item.chosen[0] for row in trainer.rows[:4]]


def test_the_reference_read_the_plain_prompt(precision: torch.dtype, make: Make) -> None:
    """The untrained generator has no margin without a summary, and has one with it: the reference is x alone."""
    for summary, zero in ((None, True), (SUMMARY, False)):
        trainer = make(summary, loss="dpo")
        h, size = hand_margins(trainer, first_rows(trainer))
        if zero:
            assert_exact(h, torch.zeros_like(h), of=size)
        else:
            assert h.abs().max() > 0.1
        assert_exact(trainer.compute_loss(trainer.scorer, first_batch(trainer)), dpo_loss(h, 0.1).mean(), of=size)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss": "dpo", "beta": 0.3}, lambda h: dpo_loss(h, 0.3)),
        ({"loss": "dpo", "beta": 0.3, "label_smoothing": 0.2}, lambda h: dpo_loss(h, 0.3, 0.2)),
        ({"loss": "ipo", "beta": 0.3}, lambda h: ipo_loss(h, 0.3)),
    ],
    ids=["dpo", "conservative", "ipo"],
)
def test_loss_and_gradient(precision: torch.dtype, make: Make, settings: dict[str, Any], expected: Callable) -> None:
    trainer = make(**settings)
    loss = trainer.compute_loss(trainer.scorer, first_batch(trainer))
    loss.backward()
    found = {n: p.grad.clone() for n, p in trainer.scorer.model.named_parameters()}
    trainer.scorer.zero_grad()
    h, size = hand_margins(trainer, first_rows(trainer))
    by_hand = expected(h).mean()
    by_hand.backward()
    assert_exact(loss, by_hand, of=max(size, float(by_hand)))
    assert_exact(found, {n: p.grad for n, p in trainer.scorer.model.named_parameters()})


def stock(base: Path, tmp_path: Path, **arguments: Any) -> DPOTrainer:
    local = LocalModel.load(base, device="cpu")
    data = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
    return DPOTrainer(
        model=local.model,
        args=DPOConfig(
            output_dir=str(tmp_path / "stock"),
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            max_length=None,
            precompute_ref_log_probs=True,
            **arguments,
        ),
        train_dataset=Dataset.from_dict(data),
        processing_class=local.tokenizer,
    )


def test_equals_stock_trl_where_it_is_given_the_references(
    precision: torch.dtype, make: Make, tiny_base: Path, tmp_path: Path
) -> None:
    """Sigmoid loss; conservative DPO is TRL's `robust` with −ε/(1−2ε), since its `sigmoid` ignores ε."""
    epsilon = 0.1
    for settings, arguments in (
        ({"beta": 0.2}, {"beta": 0.2}),
        (
            {"beta": 0.2, "label_smoothing": epsilon},
            {"beta": 0.2, "loss_type": ["robust"], "label_smoothing": -epsilon / (1 - 2 * epsilon)},
        ),
    ):
        trainer, theirs = make(loss="dpo", **settings), stock(tiny_base, tmp_path, **arguments)
        batch = theirs.data_collator(columns(first_rows(trainer)))
        expected = theirs._compute_loss(theirs.model, batch, False)
        size = float(batch["ref_rejected_logps"].abs().max())
        assert_exact(trainer.compute_loss(trainer.scorer, first_batch(trainer)), expected, of=size)


def test_why_stock_trl_is_not_enough(precision: torch.dtype, make: Make, tiny_base: Path, tmp_path: Path) -> None:
    """The traps in which popi's own loss and references do not step."""
    rows = columns(first_rows(make()))
    smoothed, plain = (stock(tiny_base, tmp_path, beta=0.2, label_smoothing=e) for e in (0.2, 0.0))
    batch = plain.data_collator(rows)
    losses = [trainer._compute_loss(trainer.model, batch, False) for trainer in (smoothed, plain)]
    assert_exact(losses[0], losses[1])  # label_smoothing ignored by `sigmoid`
    with pytest.raises(ValueError, match="uplicate"):  # its own pass over the references doubles the columns
        DPOTrainer._precompute_ref_logps(plain, Dataset.from_list(rows), "train", 2)
    plain.precompute_ref_logps, plain.ref_model = False, LocalModel.load(tiny_base, device="cpu").model
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(plain.ref_model)
    ignored = plain._compute_loss(plain.model, batch, False)
    size = float(batch["ref_rejected_logps"].abs().max())
    assert_exact(ignored, torch.tensor(math.log(2)), of=size)  # the reference saw the summary: no margin at all


def test_nothing_is_truncated(make: Make) -> None:
    trainer = make()
    item = trainer.rows[0].item
    row = replace(trainer.rows[0], item=replace(item, prefix=(7,) * 1200))  # TRL's default max_length is 1024
    trees = trainer.data_collator([row])["trees"]
    assert trees.input_ids.shape[1] == 1200 + len(item.chosen) + len(item.rejected)


def test_lora_trains_default_alone(make: Make) -> None:
    trainer = make(adapter="lora")
    model = trainer.scorer.model
    assert set(model.peft_config) == {"default"}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.run_phase()
    moved = {name for name, p in model.named_parameters() if (p != before[name]).any()}
    assert moved and all(".default." in name for name in moved)
