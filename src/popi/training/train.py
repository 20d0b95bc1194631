"""`popi train`: the phases of the orders asked for, each once, and resumable at any moment.

    population_dpo  generator without summaries
    plug_and_play   inference-1
    alternating     inference-1, generator-1, inference-2, generator-2, …   (`rounds` pairs)
    simultaneous    joint

A phase starts from what earlier phases saved and from a seed of its own, so neither the phases around it nor a kill
changes its result: a finished phase is skipped, an unfinished one goes on from its newest complete checkpoint.
"""

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from transformers import logging as transformers_logging
from transformers import set_seed

from popi.config import RunConfig
from popi.errors import ConfigError, PopiError
from popi.signals.types import User
from popi.training.adapters import using
from popi.training.components import GENERATOR, INFERENCE, Components, load_components
from popi.training.dataset import (
    References,
    draw,
    generator_rows,
    inference_rows,
    load_training_users,
    sample_summaries,
    trainable,
)
from popi.training.progress import PhaseProgress
from popi.training.run_directory import PhaseDirectory, RunDirectory, read_jsonl, write_jsonl


@dataclass(frozen=True)
class Phase:
    """One phase of a run: what it trains, and the phases whose models it starts from (None: the base)."""

    name: str
    kind: Literal["inference", "generator", "joint"]
    inference_from: str | None = None
    generator_from: str | None = None
    summaries: bool = True

    @property
    def trains(self) -> set[str]:
        return {"inference": {INFERENCE}, "generator": {GENERATOR}, "joint": {INFERENCE, GENERATOR}}[self.kind]


def plan(config: RunConfig) -> dict[str, list[Phase]]:
    """The phases of each order, in order; an order's models are those of its last phases."""
    population = Phase("population-dpo", "generator", summaries=False)
    rounds: list[Phase] = []
    for k in range(1, config.training.rounds + 1):
        before_inference = f"inference-{k - 1}" if k > 1 else None
        before_generator = f"generator-{k - 1}" if k > 1 else None
        rounds.append(Phase(f"inference-{k}", "inference", before_inference, before_generator))
        rounds.append(Phase(f"generator-{k}", "generator", f"inference-{k}", before_generator))
    phases = {
        "population_dpo": [population],
        "plug_and_play": rounds[:1],
        "alternating": rounds,
        "simultaneous": [Phase("joint", "joint")],
    }
    return {order: phases[order] for order in phases if order in config.training.orders}


def phase_seed(seed: int, phase: str) -> int:
    """A seed for each phase of a run, whatever ran before it in the same process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{phase}".encode()).digest()[:4], "big") >> 1


def train(config: RunConfig, resume: bool = False, console: Console | None = None) -> Path:
    """Train every order of the config into its run directory and return the directory's path.

    Raises:
        RunError: the directory exists (and `resume` is not set), or belongs to another config.
        DataError, ConfigError, ModelError: users, settings or models can't be trained with.
    """
    console = console or Console(stderr=True)
    refuse(config)
    users = trainable(load_training_users(config))  # before anything is written: a bad file leaves no run behind
    fresh = not (config.directory / "config.json").exists()
    run = RunDirectory.resume(config) if resume else RunDirectory.create(config)
    with quiet():
        try:
            for order, phases in plan(config).items():
                for phase in phases:
                    run_phase(phase, run, users, console)
                run.set_method(order, *models_of(phases, config))
        except PopiError:
            if fresh and not run.began:  # a run refused before its first step leaves its name free
                shutil.rmtree(run.path)
            raise
        finally:
            run.close()
    return run.path


def refuse(config: RunConfig) -> None:
    """Raise ConfigError for settings that do not go together."""
    generator = config.training.generator
    if generator.loss == "ipo" and generator.label_smoothing:
        raise ConfigError(
            f"training.generator.label_smoothing={generator.label_smoothing} belongs to loss='dpo' (conservative DPO); "
            "with loss='ipo' set it to 0"
        )
    if not config.training.orders:
        raise ConfigError(
            "training.orders is empty; name at least one of population_dpo, plug_and_play, alternating, simultaneous"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("popi train runs in one process; start it without torchrun or accelerate launch")
    for backend in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{backend}", "false").lower() in ("true", "1"):
            raise ConfigError(
                f"ACCELERATE_USE_{backend} is set, but popi's hooks compute losses of their own beside the trainer's "
                f"(DeepSpeed, for one, would step inside the first backward); unset it"
            )
    if torch.cuda.device_count() > 1 and config.model.device != "cpu":
        raise ConfigError("several GPUs are visible and popi train uses one; start it with CUDA_VISIBLE_DEVICES=0")


def models_of(phases: list[Phase], config: RunConfig) -> tuple[str, str]:
    """Where the models of an order lie: (inference model, generator), below the run directory or the base's name."""
    found = {INFERENCE: config.model.base, GENERATOR: config.model.base}
    for phase in phases:
        for component in phase.trains:
            found[component] = f"phases/{phase.name}/{component}"
    return found[INFERENCE], found[GENERATOR]


@contextmanager
def quiet() -> Iterator[None]:
    """Progress comes from popi's own bar: the libraries' bars and notices are off."""
    import datasets

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # renamed arguments that TRL still passes
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
        datasets.enable_progress_bars()


def run_phase(phase: Phase, run: RunDirectory, users: list[User], console: Console) -> None:
    """Run one phase to its end, or skip it if it is done."""
    directory = run.phase(phase.name)
    if directory.done:
        return
    config = run.config
    found = directory.checkpoint()
    run.rewind(phase.name, found[1] if found else 0)
    if found is None and directory.path.exists():
        shutil.rmtree(directory.checkpoints, ignore_errors=True)
    seed = phase_seed(config.seed, phase.name)
    set_seed(seed)
    parts = load_components(
        config, phase.trains, saved(run, phase.inference_from, INFERENCE), saved(run, phase.generator_from, GENERATOR)
    )
    steps = (
        config.training.joint_steps
        if phase.kind == "joint"
        else (config.training.generator.steps if phase.kind == "generator" else config.training.inference.steps)
    )
    with PhaseProgress(console, phase.name, steps, found[1] if found else 0) as progress:
        build = generator_trainer if phase.kind == "generator" else inference_trainer
        trainer = build(phase, run, directory, users, parts, seed, steps, progress)
        trainer.run_phase()
        for component in sorted(phase.trains):
            directory.save(component, parts.saver(component, config.model.base))
        directory.finish({"phase": phase.name, "steps": steps, "seed": seed})
    del trainer, parts
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def saved(run: RunDirectory, phase: str | None, component: str) -> Path | None:
    """The folder in which an earlier phase saved a component."""
    return None if phase is None else run.phase(phase).path / component


def references_for(users: list[User], run: RunDirectory, parts: Components, progress: PhaseProgress) -> References:
    """Reference log-probs of the users' targets: what is missing is computed by the base on the plain prompt."""
    references = References(run.path / "references.jsonl")
    todo = references.missing(users)
    if todo:
        with progress.preparing("reference log-probs", len(todo)) as report, using(parts.base.local.model, None):
            references.compute(users, parts.base, run.config.evaluation.batch_size, report)
    return references


def inference_trainer(
    phase: Phase,
    run: RunDirectory,
    directory: PhaseDirectory,
    users: list[User],
    parts: Components,
    seed: int,
    steps: int,
    progress: PhaseProgress,
) -> Any:
    """The trainer of an inference or joint phase."""
    from popi.training.inference_phase import InferenceTrainer
    from popi.training.joint_phase import JointTrainer
    from popi.training.reward import SummaryReward

    config = run.config
    settings = config.training.inference
    order = draw(len(users), settings.users_per_step, steps, seed)
    references = references_for([users[i] for i in order], run, parts, progress)
    rows = inference_rows(
        users, order, parts.inference_model, parts.generator, references, settings.targets_per_summary, seed
    )
    reward = SummaryReward(parts.generator, parts.adapters[GENERATOR], settings.beta)
    arguments: dict[str, Any] = {
        "local": parts.inference_model.local,
        "rows": rows,
        "reward": reward,
        "anchor": parts.base.local.model,
        "config": config,
        "run": run,
        "phase": directory,
        "seed": seed,
        "steps": steps,
        "report": progress.step,
    }
    if phase.kind == "inference":
        return InferenceTrainer(**arguments)
    separate = parts.adapters[GENERATOR] is None
    return JointTrainer(generator=parts.generator.local if separate else None, **arguments)


def generator_trainer(
    phase: Phase,
    run: RunDirectory,
    directory: PhaseDirectory,
    users: list[User],
    parts: Components,
    seed: int,
    steps: int,
    progress: PhaseProgress,
) -> Any:
    """The trainer of a generator phase, its summaries written."""
    from popi.training.generator_phase import GeneratorTrainer

    config = run.config
    batch_size = config.training.generator.batch_size
    chosen: list[User] = []
    pairs = 0
    for i in draw(len(users), 1, len(users), seed):  # whole users, until the steps are filled
        if pairs >= steps * batch_size:
            break
        chosen.append(users[i])
        pairs += len(users[i].targets)
    references = references_for(chosen, run, parts, progress)
    summaries = None
    if phase.summaries:
        file = directory.path / "summaries.jsonl"
        rows = read_jsonl(file)
        if not rows:
            inference_model = parts.inference_model
            with progress.preparing("summaries to train on", len(chosen)) as report:
                with using(inference_model.local.model, parts.adapters[INFERENCE]):
                    drawn = sample_summaries(
                        chosen, inference_model, config.summary.temperature, config.summary.top_p, report
                    )
            rows = [{"user_id": u.user_id, "summaries": texts} for u, texts in zip(chosen, drawn, strict=True)]
            write_jsonl(file, rows)
        summaries = [row["summaries"] for row in rows]
    pool = generator_rows(chosen, summaries, parts.generator, references)
    order = draw(len(pool), batch_size, steps, seed + 1)
    return GeneratorTrainer(
        local=parts.generator.local,
        rows=[pool[i] for i in order],
        config=config,
        run=run,
        phase=directory,
        seed=seed,
        steps=steps,
        report=progress.step,
    )
