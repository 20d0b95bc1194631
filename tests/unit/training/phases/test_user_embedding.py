"""DPO behind soft prompts: loss and gradients by whole sequences, what moves, and which rows are the generic user's."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from exact import assert_exact
from rich.console import Console

from popi.data.users import users_of
from popi.generator import Generator
from popi.models.local.user_embedding import SignalsEmbedding, UserEmbedding, UserIdEmbedding
from popi.training.objective import dpo_loss, margin
from popi.training.phases.user_embedding import UserEmbeddingTrainer
from popi.training.planning.plan import Phase
from popi.training.progress import PhaseProgress
from popi.training.rows import GeneratorRow
from popi.training.trainers import Job, generator_trainer

K, WIDTH = 2, 32


def rows_of(bench: Any) -> list[GeneratorRow]:
    """Users 0, 1, 2 of the phase, and every second row unknown."""
    generator: Generator = bench.parts.generator
    rows = [
        GeneratorRow(row.user_id, "", generator.items([t.pair], None)[0], t.ref_chosen, t.ref_rejected, n % 3)
        for n, row in enumerate(bench.rows)
        for t in row.targets
    ]
    return [replace(row, user=-1) if i % 2 else row for i, row in enumerate(rows)]


@pytest.fixture(params=["user_id", "signals"])
def make(request: pytest.FixtureRequest, bench: Callable[..., Any]) -> Callable[..., UserEmbeddingTrainer]:
    def build(adapter: str = "none", **generator: Any) -> UserEmbeddingTrainer:
        b = bench({"generator"}, adapter, generator=generator)
        torch.manual_seed(0)
        embedding: UserEmbedding
        if request.param == "user_id":
            embedding = UserIdEmbedding(0.3 * torch.randn(K, WIDTH), ["a", "b", "c"])
            embedding.offsets.data.normal_(std=0.3)
            inputs = torch.tensor([0, 1, 2])
        else:
            embedding = SignalsEmbedding.of(0.3 * torch.randn(K, WIDTH), torch.randn(3, WIDTH))
            embedding.map.weight.data.normal_(std=0.05)
            inputs = torch.randn(3, WIDTH)
        return UserEmbeddingTrainer(
            local=b.parts.generator.local,
            rows=rows_of(b),
            embedding=embedding,
            inputs=inputs,
            **b.common("user-embedding"),
        )

    return build


def plain_margins(trainer: UserEmbeddingTrainer, rows: Sequence[GeneratorRow]) -> tuple[torch.Tensor, float]:
    """h of each row, from whole sequences of embeddings; and the largest log-prob in it."""
    model, sums = trainer.scorer.model, []
    embed = model.get_input_embeddings()
    for row in rows:
        generic = trainer.embedding.generic
        known = trainer.embedding(trainer.inputs[row.user][None])[0] if row.user >= 0 else generic
        for side in (row.item.chosen, row.item.rejected):
            ids = torch.tensor([*row.item.prefix, *side])
            logits = model(inputs_embeds=torch.cat([known, embed(ids)])[None]).logits[0]
            before = K + len(row.item.prefix) - 1
            sums.append(torch.log_softmax(logits, -1)[before:-1].gather(1, torch.tensor(side)[:, None]).sum())
    logps = torch.stack(sums).reshape(-1, 2)
    references = [torch.tensor([getattr(row, f"ref_{side}") for row in rows]) for side in ("chosen", "rejected")]
    return margin(logps[:, 0], logps[:, 1], *references), float(logps.detach().abs().max())


def test_loss_and_gradient(precision: torch.dtype, make: Callable[..., UserEmbeddingTrainer]) -> None:
    trainer = make(loss="dpo", beta=0.3)
    batch = next(iter(trainer.get_train_dataloader()))
    rows = trainer.rows[:4]
    assert batch["users"].tolist() == [row.user for row in rows] == [0, -1, 1, -1]
    loss = trainer.compute_loss(trainer.scorer, batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.scorer.named_parameters()}
    assert any(name.startswith("user_embedding.") for name in found)
    trainer.scorer.zero_grad()
    h, size = plain_margins(trainer, rows)
    by_hand = dpo_loss(h, 0.3).mean()
    by_hand.backward()
    assert_exact(loss, by_hand, of=size)
    assert_exact(found, {name: p.grad for name, p in trainer.scorer.named_parameters()})


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_what_moves(make: Callable[..., UserEmbeddingTrainer], adapter: str) -> None:
    trainer = make(adapter)
    before = {name: p.detach().clone() for name, p in trainer.scorer.named_parameters()}
    trainer.run_phase()
    assert not any("user_embedding" in name for name, _ in trainer.scorer.model.named_parameters())
    own = {f"user_embedding.{name}": p for name, p in trainer.embedding.named_parameters()}
    moved = {name for name, p in trainer.scorer.named_parameters() if (p != before[name]).any()}
    assert own.keys() <= moved
    others = moved - own.keys()
    assert others and (adapter == "none" or all(".default." in name for name in others))
    rates = [group["initial_lr"] for group in trainer.optimizer.param_groups]
    assert rates == [trainer.args.learning_rate, trainer.embedding_rate] == [1e-4, 1e-3]
    assert trainer.optimizer.param_groups[1]["params"] == list(trainer.embedding.parameters())


@pytest.mark.parametrize("source", ["user_id", "signals"])
def test_the_phase_as_the_runner_makes_it(bench: Callable[..., Any], source: Any) -> None:
    b = bench({"generator"}, user_embedding={"tokens": 4, "generic_share": 0.5}, generator={"steps": 6})
    users = users_of(b.config, "train").users
    phase = Phase("user-embedding", "generator", context="none", embedding=source)
    with PhaseProgress(Console(quiet=True), phase.name, 6, 0) as progress:
        job = Job(phase, b.run, b.run.phase(phase.name), users, b.parts, 7, 6, progress)
        trainer, again = generator_trainer(job), generator_trainer(job)
    assert isinstance(trainer, UserEmbeddingTrainer) and b.parts.generator.embedding is again.embedding
    rows = trainer.rows
    assert [row.user for row in rows] == [row.user for row in again.rows], "drawn with the seed"
    assert 0 < sum(row.user < 0 for row in rows) < len(rows) == 24
    plain = {tuple(item.prefix) for user in users for item in b.parts.generator.reference_items(user.targets)}
    assert {row.item.prefix for row in rows} <= plain, "nothing but the soft prompt tells of the user"
    assert trainer.embedding.tokens == 4
    soft = trainer.embedding(trainer.inputs)
    assert torch.equal(soft, trainer.embedding.generic.expand_as(soft)), "everyone begins as the generic user"
