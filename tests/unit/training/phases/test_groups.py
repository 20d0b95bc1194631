"""Target pairs of one user behind one summary: a step's numbers are those of separate rows, for fewer tokens."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from exact import assert_exact
from rich.console import Console

from popi.config import resolve
from popi.data.users import users_of
from popi.engine.plain import run_plain
from popi.engine.tree import causal_lm
from popi.errors import ConfigError
from popi.models.local.user_embedding import UserIdEmbedding
from popi.runs.files import read_jsonl
from popi.signals.types import User
from popi.training.phases.generator import GeneratorTrainer
from popi.training.phases.scorer import pair_sums
from popi.training.phases.user_embedding import UserEmbeddingTrainer
from popi.training.planning.plan import Phase, refuse_settings
from popi.training.progress import PhaseProgress
from popi.training.references import References
from popi.training.rows import GeneratorRow, draw, draw_groups, generator_rows, grouped, in_groups, raw_signals_rows
from popi.training.trainers import Job, generator_trainer

Bench = Callable[..., Any]
CONTEXTS = ["summary", "raw_signals", "none"]


@pytest.fixture
def start(bench: Bench) -> Bench:
    """start(k, adapter, micro_batch=…) -> bench with `targets_per_summary = k`, and its users with references."""

    def make(each: int, adapter: str = "none", **generator: Any) -> tuple[Any, list[User], References]:
        settings = {"targets_per_summary": each, "batch_size": 8, "learning_rate": 1e-9, **generator}
        b = bench({"generator"}, adapter, generator=settings)
        references = References(b.run.path / "references.jsonl")
        return b, list(users_of(b.config, "train").users), references

    return make


def pool(b: Any, users: list[User], references: References, context: str, each: int) -> list[GeneratorRow]:
    generator = b.parts.generator
    if context == "raw_signals":
        return raw_signals_rows(users, generator, references, 200, each)
    summaries = [[f"likes cats {n}"] * 4 for n in range(len(users))] if context == "summary" else None
    return generator_rows(users, summaries, generator, references, each)


def gradients(trainer: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    trainer.scorer.zero_grad()
    loss = trainer.compute_loss(trainer.scorer, batch)
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in trainer.scorer.named_parameters() if p.grad is not None}


def assert_same_step(make: Callable[[list[GeneratorRow]], Any], rows: list[GeneratorRow]) -> tuple[int, int]:
    """Of a step with groups and of one without; returns the tokens that each sends through the model."""
    tokens, steps = [], []
    alone = [replace(row, group=None) for row in rows]
    for some in (rows, alone):
        trainer = make(some)
        batch = next(iter(trainer.get_train_dataloader()))
        tokens.append(sum(batch["trees"].lengths))
        logps = pair_sums(trainer.score(trainer.scorer, batch), batch["trees"])
        steps.append((logps, *gradients(trainer, batch)))
    size = max(abs(row.ref_rejected) for row in rows)
    (logps, loss, found), (by_hand, expected, whole) = steps
    assert_exact(logps, by_hand)
    assert_exact(loss, expected, of=size)
    assert_exact(found, whole)
    assert logps.unique().numel() == 2 * len(rows) and any(one.abs().max() > 1e-4 for one in whole.values())
    return tokens[0], tokens[1]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_step_of_groups_is_that_of_separate_rows(
    precision: torch.dtype, start: Bench, adapter: str, context: str
) -> None:
    b, users, references = start(4, adapter)
    rows = pool(b, users[:2], references, context, 4)

    def make(some: list[GeneratorRow]) -> GeneratorTrainer:
        return GeneratorTrainer(local=b.parts.generator.local, rows=some, **b.common("generator-1"))

    grouped_tokens, alone = assert_same_step(make, rows)
    assert grouped_tokens < alone
    if adapter == "none":
        run_plain(causal_lm(b.parts.generator.local.model), "a test")
        assert_same_step(make, rows)


def test_behind_soft_prompts(precision: torch.dtype, start: Bench) -> None:
    """One of a group's user, and that of the unknown user for the other group."""
    b, users, references = start(4)
    rows = pool(b, users[:2], references, "none", 4)
    rows = [replace(row, user=row.user if row.user else -1) for row in rows]
    embedding = UserIdEmbedding(0.3 * torch.randn(2, 32), ["a", "b"])
    embedding.offsets.data.normal_(std=0.3)

    def make(some: list[GeneratorRow]) -> UserEmbeddingTrainer:
        arguments = {"embedding": embedding, "inputs": torch.tensor([0, 1]), **b.common("user-embedding")}
        return UserEmbeddingTrainer(local=b.parts.generator.local, rows=some, **arguments)

    grouped_tokens, alone = assert_same_step(make, rows)
    head = [2 + len(prefix) for prefix in (shared_beginning(rows[:4]), shared_beginning(rows[4:]))]
    assert alone - grouped_tokens == 3 * sum(head), "the vectors of the soft prompt stand once, too"


def shared_beginning(rows: list[GeneratorRow]) -> tuple[int, ...]:
    prefixes = [row.item.prefix for row in rows]
    n = next(n for n in range(len(min(prefixes, key=len)) + 1) if len({p[: n + 1] for p in prefixes}) > 1)
    return prefixes[0][:n]


def test_tokens_of_a_pair_by_hand(start: Bench) -> None:
    """The four targets of a user of the nano world: their prompts have nothing in common but what stands in front."""
    b, users, references = start(4)
    local = b.parts.generator.local
    front = len(local._encode("<|system|> preferences of this user : likes cats 0 <|end|> <|user|>"))
    rows = pool(b, users[:1], references, "summary", 4)
    assert (front, [len(row.item) for row in rows]) == (11, [64, 62, 62, 62])
    assert tokens(b, rows) == 11 + (53 + 51 + 51 + 51), "217 for 250: 54 a pair for 62"
    rows = pool(b, users[:1], references, "raw_signals", 4)
    assert (len(shared_beginning(rows)), [len(row.item) for row in rows]) == (177, [230, 228, 228, 228])
    assert tokens(b, rows) == 177 + (53 + 51 + 51 + 51), "383 for 914: 96 a pair for 228"


def tokens(b: Any, rows: list[GeneratorRow]) -> int:
    """That go through the generator for these rows of a step."""
    trainer = GeneratorTrainer(local=b.parts.generator.local, rows=rows, **b.common("generator-1"))
    return sum(trainer.data_collator(rows)["trees"].lengths)


def test_draws_of_single_pairs_are_as_before() -> None:
    for n, per_step, steps in ((7, 3, 9), (6, 6, 2), (50, 4, 3)):
        assert draw_groups([[i] for i in range(n)], per_step, steps, 5) == draw(n, per_step, steps, 5)
    with pytest.raises(ConfigError, match="a step needs 4 different users or target pairs, but there are 3"):
        draw_groups([[1, 2], [3]], 4, 1, 0)


def test_groups_are_drawn_whole_and_cut_by_a_step_alone() -> None:
    groups = [["a1", "a2", "a3"], ["b1", "b2"], ["c1", "c2", "c3"]]
    order = draw_groups(groups, 4, 4, 1)
    assert len(order) == 16
    for start in (0, 8):  # a pass: two steps of four, all but none of eight pairs
        one_pass = order[start : start + 8]
        assert sorted(one_pass) == sorted(member for group in groups for member in group)
        for group in groups:
            at = one_pass.index(group[0])
            assert one_pass[at : at + len(group)] == group
    assert order[:8] != order[8:]


def test_sizes_of_groups() -> None:
    assert [in_groups(n, 4) for n in (0, 1, 4, 5, 9)] == [[], [1], [4], [3, 2], [3, 3, 3]]
    row = GeneratorRow("u", "", None, 0.0, 0.0)  # type: ignore[arg-type]
    rows = [row, row, replace(row, group=1), replace(row, group=1), replace(row, group=2)]
    assert [len(some) for some in grouped(rows)] == [1, 1, 2, 1]


@pytest.mark.parametrize(("each", "texts"), [(1, 4), (2, 2)])
def test_the_phase_as_the_runner_makes_it(start: Bench, each: int, texts: int) -> None:
    """A summary for each group, its pairs side by side; of the soft prompts one for each group."""
    b, users, _ = start(each, batch_size=4)
    users = [user.model_copy(update={"targets": user.targets[:4]}) for user in users]
    assert all(len(user.targets) == 4 for user in users)
    phase = Phase("generator-1", "generator", "inference-1")
    with PhaseProgress(Console(quiet=True), phase.name, 6, 0) as progress:
        job = Job(phase, b.run, b.run.phase(phase.name), users, b.parts, 7, 6, progress)
        rows = generator_trainer(job).rows
        again = generator_trainer(job).rows
        assert [row.item for row in again] == [row.item for row in rows], "summaries are kept"
        other = Phase("user-embedding", "generator", context="none", embedding="user_id")
        embedded = generator_trainer(replace(job, phase=other, directory=b.run.phase(other.name))).rows
    written = read_jsonl(job.directory.path / "summaries.jsonl")
    assert {len(row["summaries"]) for row in written} == {texts}
    assert len(rows) == len(embedded) == 24
    for start_of in range(0, 24, 4):
        sizes = [len(group) for group in grouped(rows[start_of : start_of + 4])]
        assert sizes == [each] * (4 // each)
        for group in grouped(rows[start_of : start_of + 4]):
            assert len({(row.user_id, row.summary) for row in group}) == 1
        assert all(len({row.user for row in group}) == 1 for group in grouped(embedded[start_of : start_of + 4]))
    assert 0 < sum(row.user < 0 for row in embedded) < 24


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="targets_per_summary = 3 does not divide batch_size = 32"):
        resolve({"training": {"generator": {"targets_per_summary": 3}}})
    with pytest.raises(ConfigError, match="targets_per_summary = 4 does not divide micro_batch = 2; divisors: 1, 2"):
        resolve({"training": {"generator": {"targets_per_summary": 4, "micro_batch": 2}}})
    tree = {"inference": {"targets_per_summary": 1}, "generator": {"targets_per_summary": 2}}
    config = resolve({"summary": {"conditioned_on_prompt": True}, "training": tree})
    with pytest.raises(ConfigError, match="training.generator.targets_per_summary=2 does not work with"):
        refuse_settings(config)
