"""Builds a phase's trainer: draws users, and computes reference log-probs and summaries."""

import json
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from popi.data.store import pick
from popi.models.local.adapters import using
from popi.models.local.user_embedding import (
    SignalsEmbedding,
    UserEmbedding,
    UserIdEmbedding,
    generic_embedding,
    hidden_states,
)
from popi.runs.files import read_jsonl, write_jsonl, write_text
from popi.runs.phase_directory import PhaseDirectory
from popi.runs.run_directory import RunDirectory
from popi.signals.types import User
from popi.training.components import GENERATOR, INFERENCE, Components
from popi.training.phases.generator import GeneratorTrainer
from popi.training.phases.inference import InferenceTrainer
from popi.training.phases.joint import JointTrainer
from popi.training.phases.user_embedding import UserEmbeddingTrainer
from popi.training.planning.plan import Phase
from popi.training.planning.shapes import copy_budget
from popi.training.processes import ALONE, Processes
from popi.training.progress import PhaseProgress
from popi.training.references import FOLDER, References
from popi.training.rehearsal import first_users, rehearsal_rows, rehearse
from popi.training.renewals import Renewal, renewals
from popi.training.reward import LengthBudget, SummaryReward
from popi.training.rows import (
    GeneratorRow,
    InferenceRow,
    copied_rows,
    draw,
    draw_groups,
    generator_rows,
    grouped,
    inference_rows,
    raw_signals_rows,
    readable,
    refuse_beyond_context,
    shuffled,
)
from popi.training.sharding import full, whole
from popi.training.written import one_signal_each, sample_summaries


@dataclass(frozen=True)
class Job:
    """A phase to run, with its run directory, users and models."""

    phase: Phase
    run: RunDirectory
    directory: PhaseDirectory
    users: Sequence[User]
    parts: Components
    seed: int
    steps: int
    progress: PhaseProgress
    held_out: Sequence[User] = field(default_factory=list)
    """Users for evaluations during the phase."""
    processes: Processes = ALONE
    """Those that run the job together."""

    def trainer(self) -> GeneratorTrainer | InferenceTrainer:
        return generator_trainer(self) if self.phase.kind == "generator" else inference_trainer(self)

    def arguments(self) -> dict[str, Any]:
        """Arguments common to all trainers."""
        return {
            "config": self.run.config,
            "run": self.run,
            "phase": self.directory,
            "seed": self.seed,
            "steps": self.steps,
            "report": self.progress.step,
            "processes": self.processes,
        }


def references_for(
    users: Sequence[User],
    run: RunDirectory,
    parts: Components,
    progress: PhaseProgress,
    processes: Processes = ALONE,
) -> References:
    """Reference log-probs of the users' targets; the base computes missing ones on the plain prompt."""
    cache = run.path.parent / FOLDER if run.config.training.share_references else None
    references = References(run.path / "references.jsonl", cache, processes)
    references.verify(users, parts.reference, run.config.evaluation.batch_size)
    todo = references.missing(users)
    if todo:
        with (
            progress.preparing("reference log-probs", len(todo)) as report,
            whole(parts.base.local.model),
            using(parts.base.local.model, None),
        ):
            references.compute(users, parts.reference, run.config.evaluation.batch_size, report)
    return references


def renewed(job: Job, users: Sequence[User], order: Sequence[int]) -> list[Renewal | None] | None:
    """Choose the rows that are renewals; the inference model writes their old summaries before it is trained."""
    parts, share = job.parts, job.run.config.training.renewal.share
    with ExitStack() as stack:

        def report(n: int) -> Callable[[int], None]:
            return stack.enter_context(job.progress.preparing("old summaries", n))

        with (
            whole(parts.inference_model.local.model),
            using(parts.inference_model.local.model, parts.adapters[INFERENCE]),
        ):
            model, folder = parts.inference_model, job.directory.path
            return renewals(users, order, share, job.seed, model, folder, report, job.processes)


def inference_trainer(job: Job) -> InferenceTrainer:
    """The trainer of an inference or joint phase."""
    run, parts = job.run, job.parts
    config = run.config
    settings = config.training.inference
    only_pairs = settings.scored_on == "signal"
    with job.progress.preparing("signals that fit", len(job.users)) as looked_at:
        users = readable(job.users, parts.inference_model, looked_at, only_pairs)
    if skipped := len(job.users) - len(users):
        reason = f"none of their {'preference pairs' if only_pairs else 'signals'} fits signals.token_budget"
        job.progress.say(f"{job.phase.name}: skipping {skipped} of {len(job.users)} users: {reason}")
    order: Sequence[int] = draw(len(users), settings.users_per_step, job.steps, job.seed)
    held_out = readable(job.held_out, parts.inference_model, only_pairs=only_pairs) if job.held_out else []
    if parts.inference_model.per_signal:
        single = partial(one_signal_each, inference_model=parts.inference_model, scored_on=settings.scored_on)
        users, order = single(users, order, seed=job.seed), range(len(order))
        held_out = single(held_out, range(len(held_out)), seed=job.seed)
    drawn = pick(users, dict.fromkeys(order))
    references = references_for([*drawn, *held_out], run, parts, job.progress, job.processes)
    rows = inference_rows(
        users,
        order,
        parts.inference_model,
        references,
        settings.targets_per_summary,
        job.seed,
        renewed(job, users, order),
    )
    per_summary = settings.targets_per_summary
    everyone = range(len(held_out))
    held_rows = inference_rows(held_out, everyone, parts.inference_model, references, per_summary, job.seed)
    refuse_beyond_context(rows + held_rows, parts.inference_model, parts.generator)
    reward = SummaryReward(
        parts.generator,
        parts.adapters[GENERATOR],
        settings.beta,
        config.training.rows_at_once,
        LengthBudget.of(settings),
    )
    arguments: dict[str, Any] = {
        "local": parts.inference_model.local,
        "rows": rows,
        "held_out": held_rows,
        "reward": reward,
        "anchor": parts.base.local.model,
        **job.arguments(),
    }
    if job.phase.kind == "inference":
        trainer = InferenceTrainer(**arguments)
    else:
        separate = parts.adapters[GENERATOR] is None
        trainer = JointTrainer(generator=parts.generator.local if separate else None, **arguments)
    step_zero(job, rehearsal_rows(users, first_users(order, config), parts, references, config, job.seed), reward)
    return trainer


def step_zero(job: Job, rows: Sequence[InferenceRow], reward: SummaryReward) -> None:
    """Report once, before a phase trains, how reliable its rewards are. Only the first process does it."""
    file = job.directory.reliability
    if job.processes.decide(lambda: file.exists() or job.directory.checkpoint() is not None):
        return
    with whole(job.parts.inference_model.local.model, reward.model):
        if job.processes.first:
            _rehearsed(job, rows, reward, file)


def _rehearsed(job: Job, rows: Sequence[InferenceRow], reward: SummaryReward, file: Path) -> None:
    with job.progress.preparing("reliability of the rewards", len(rows)):
        rehearsal = rehearse(rows, job.parts, reward, job.run.config, job.seed)
    if rehearsal is None:
        return
    for line in rehearsal.lines(job.phase.name):
        job.progress.say(line)
    write_text(file, json.dumps(rehearsal.facts(), indent=2) + "\n")


def generator_trainer(job: Job) -> GeneratorTrainer:
    """The trainer of a generator phase; writes summaries or reads signals first."""
    run, users, parts, progress = job.run, job.users, job.parts, job.progress
    config = run.config
    batch_size, each = config.training.generator.batch_size, config.training.generator.targets_per_summary
    chosen: list[User] = []
    pairs = 0
    for i in shuffled(len(users), random.Random(job.seed)):  # whole users, until the steps are filled
        if pairs >= job.steps * batch_size:
            break
        chosen.append(users[i])
        pairs += len(users[i].targets)
    held_out = job.held_out
    references = references_for([*chosen, *held_out], run, parts, progress, job.processes)
    summaries = held_summaries = None
    if job.phase.context == "summary":
        file = job.directory.path / "summaries.jsonl"
        written = job.processes.decide(lambda: read_jsonl(file))
        if [row.get("user_id") for row in written] != [user.user_id for user in chosen]:  # none yet, or a damaged file
            inference_model = parts.inference_model
            old = renewed(job, chosen, range(len(chosen)))
            with progress.preparing("summaries to train on", len(chosen)) as report:
                with whole(inference_model.local.model), using(inference_model.local.model, parts.adapters[INFERENCE]):
                    drawn = sample_summaries(
                        chosen,
                        inference_model,
                        config.summary.temperature,
                        config.summary.top_p,
                        report,
                        config.evaluation.users_at_once,
                        old,
                        each,
                        job.processes,
                    )
            written = [{"user_id": u.user_id, "summaries": texts} for u, texts in zip(chosen, drawn, strict=True)]
            if job.processes.first:
                write_jsonl(file, written)
        summaries = [row["summaries"] for row in written]
        if held_out:
            held_summaries = greedy_summaries(job)
    generator = parts.generator
    if job.phase.context == "raw_signals":
        budget = config.signals.token_budget
        pool = raw_signals_rows(chosen, generator, references, budget, each)
        held_rows = raw_signals_rows(held_out, generator, references, budget)
    elif job.phase.context == "copy":
        budget = copy_budget(config)
        pool = copied_rows(chosen, generator, references, budget, each)
        held_rows = copied_rows(held_out, generator, references, budget)
    else:
        pool = generator_rows(chosen, summaries, generator, references, each)
        held_rows = generator_rows(held_out, held_summaries, generator, references)
    rows = draw_groups(grouped(pool), batch_size, job.steps, job.seed + 1)
    if job.phase.embedding is not None:
        return user_embedding_trainer(job, chosen, rows, held_rows)
    base = None if job.phase.context == "none" else parts.base.local.model
    return GeneratorTrainer(local=generator.local, rows=rows, held_out=held_rows, base=base, **job.arguments())


def greedy_summaries(job: Job) -> list[list[str]]:
    """A greedy summary for each held-out user, repeated for each of their targets."""
    model, config, users = job.parts.inference_model, job.run.config, job.held_out
    with job.progress.preparing("summaries to evaluate on", len(users)) as report:
        with whole(model.local.model), using(model.local.model, job.parts.adapters[INFERENCE]):
            at_once = config.evaluation.users_at_once
            return sample_summaries(users, model, 0.0, 1.0, report, at_once, processes=job.processes)


def user_embedding_trainer(
    job: Job, users: Sequence[User], rows: list[GeneratorRow], held_out: list[GeneratorRow]
) -> UserEmbeddingTrainer:
    """The trainer of a user-embedding phase, with new embeddings and a choice of rows that train the generic one."""
    config, parts, generator = job.run.config, job.parts, job.parts.generator
    settings = config.training.user_embedding
    weights = generator.local.model.get_input_embeddings().weight
    generic = generic_embedding(full(weights), settings.tokens, job.seed)
    embedding: UserEmbedding
    if job.phase.embedding == "user_id":
        embedding = UserIdEmbedding(generic, [UserIdEmbedding.key(user) for user in users])
        inputs = embedding.inputs([*users, *job.held_out], parts.base, config.signals.token_budget)
    else:
        everyone = job.processes.share([*users, *job.held_out])
        with job.progress.preparing("signals read by the base", len(everyone)) as report:
            with whole(parts.base.local.model), using(parts.base.local.model, None):
                own = hidden_states(
                    everyone, parts.base, config.signals.token_budget, config.evaluation.users_at_once, report
                )
        states = torch.cat(job.processes.gather(own))
        embedding = SignalsEmbedding.of(generic, states[: len(users)])
        inputs = embedding.standardised(states)
    picker = random.Random(job.seed + 2)
    batch = config.training.generator.batch_size
    groups = [group for start in range(0, len(rows), batch) for group in grouped(rows[start : start + batch])]
    drawn = [picker.random() < settings.generic_share for _ in groups]  # a tree row has one soft prompt
    rows = [
        replace(row, user=-1) if unknown else row for group, unknown in zip(groups, drawn, strict=True) for row in group
    ]
    generator.embedding = embedding.to(generator.local.device)
    arguments = {"rows": rows, "embedding": embedding, "inputs": inputs, **job.arguments()}
    held_out = [replace(row, user=len(users) + row.user) for row in held_out]
    return UserEmbeddingTrainer(local=generator.local, held_out=held_out, **arguments)
