"""`popi train`: runs the phases of the configured orders (plan.py), each once, and can be resumed at any time.

A phase starts from the models that earlier phases saved and from its own seed, so neither other phases nor an
interruption change its result: a finished phase is skipped, an unfinished one resumes from its newest complete
checkpoint.

Under `torchrun` or `accelerate launch` every process runs this file, and the first alone writes (`processes.py`).
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import logging as transformers_logging
from transformers import set_seed

from popi.config import RunConfig
from popi.data.users import users_of
from popi.errors import BatchError, ConfigError, PopiError, RunError, UpstreamError
from popi.models.local.loading import device_of
from popi.models.local.model import quiet as no_bars
from popi.models.local.quantized import refuse_quantization
from popi.runs.bars import passes
from popi.runs.disk import full_disk_reported
from popi.runs.files import locked
from popi.runs.reporters import reporters_of
from popi.runs.run_directory import USERS, RunDirectory
from popi.signals.types import User
from popi.training.components import GENERATOR, INFERENCE, load_components
from popi.training.model_card import refresh_cards, write_card
from popi.training.optimizers import refuse_optimizers
from popi.training.planning.plan import Phase, models_of, phase_seed, plan, refuse_settings
from popi.training.planning.shares import parts_of
from popi.training.processes import Processes, launched, on_cpu, reporting
from popi.training.progress import PhaseProgress
from popi.training.rows import hold_out, trainable
from popi.training.templates import with_template
from popi.training.trainers import Job
from popi.training.vllm_rollouts import refuse_vllm

FROM_ACCELERATE = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_USE_MEGATRON_LM": "false",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "false",
}
"""Environment variables that the trainer would read, with the value that has no effect."""


def train(config: RunConfig, resume: bool = False, console: Console | None = None) -> Path:
    """Train every order of the config into its run directory and return the directory's path.

    Raises:
        RunError: the directory exists (and `resume` is not set), belongs to another config, or another process is
            training there.
        DataError, ConfigError, ModelError: the users, settings or models are unsuitable for training.
    """
    with reporting(config.directory), full_disk_reported(config.directory):
        refuse_launch(config)
        processes = Processes.started(config)
        console = (console or Console(stderr=True)) if processes.first else Console(quiet=True)
        refuse(config)
        config = with_template(config)
        with passes(console) as report:
            loaded = users_of(config, "train", cache=config.directory.parent / USERS, report=report)
        held_out: Sequence[User] = []
        users = trainable(loaded.users)  # before anything is written, so that an invalid file leaves no run
        if config.training.eval_steps:
            users, held_out = hold_out(users, config.training.eval_users, config.seed)
        with locked(config.directory) if processes.first else nullcontext():
            path = _train(config, users, held_out, loaded.facts, resume, console, processes)
        processes.wait()
    return path


def _open(config: RunConfig, facts: dict[str, Any] | None, resume: bool, processes: Processes) -> RunDirectory:
    """The run directory, made or opened by the first process."""
    if processes.first:
        run = RunDirectory.resume(config) if resume else RunDirectory.create(config)
        run.keep_data(facts)
    processes.wait()
    if not (config.directory / "config.json").is_file():
        raise RunError(
            f"{config.directory}: this process does not see the run that the first process opened; name a root that "
            "lies on a file system which all nodes share"
        )
    return RunDirectory(config.directory, config)


def _train(
    config: RunConfig,
    users: Sequence[User],
    held_out: Sequence[User],
    facts: dict[str, Any] | None,
    resume: bool,
    console: Console,
    processes: Processes,
) -> Path:
    fresh = processes.first and not (config.directory / "config.json").exists()
    run = _open(config, facts, resume, processes)
    with quiet():
        try:
            for order, phases in plan(config).items():
                for phase in phases:
                    run_phase(phase, run, users, held_out, console, processes)
                if processes.first:
                    run.set_method(order, *models_of(phases, config))
            if processes.first:
                refresh_cards(run)  # now that each model's methods are known
        except BaseException as error:
            with suppress(Exception):  # the reporters' own failure, as on a full disk, would hide the reason
                run.close()
            if isinstance(error, PopiError) and fresh and not run.began:
                shutil.rmtree(run.path)  # a run that fails before its first step keeps no directory
            elif isinstance(error, UpstreamError | BatchError):
                raise RunError(
                    f"{error}. Completed work is safe; once the server answers, resume with: popi train "
                    f"{run.path / 'config.json'} --resume"
                ) from None
            raise
        run.close()
    return run.path


def refuse(config: RunConfig) -> None:
    """Raise ConfigError for conflicting settings and unsupported ways of launching."""
    refuse_settings(config)
    refuse_vllm(config)
    refuse_launch(config)
    for variable, off in FROM_ACCELERATE.items():
        value = os.environ.get(variable, off)
        if value.lower() not in (off, ""):
            raise ConfigError(
                f"{variable}={value} is set, perhaps by accelerate's config, and would change how the trainer "
                "computes; unset it and use popi's own settings (model.dtype, micro_batch)"
            )
    if config.model.quantization != "none":
        refuse_quantization(config.model.quantization, device_of(config.model.device))
    refuse_optimizers(config)
    reporters_of(config)


SHARDED = {
    "DEEPSPEED": "its engine steps inside each backward pass, and a step of simultaneous training has two",
    "FSDP": "accelerate would wrap the models itself, and on CPUs silently fall back to DDP",
}
"""Ways of dividing the weights among processes that popi does not take, and why."""


def refuse_launch(config: RunConfig) -> None:
    """Raise ConfigError for numbers of processes and kinds of launch that a config can't be trained in; warn where the
    number leaves a setting without effect."""
    for backend, why in SHARDED.items():
        if os.environ.get(f"ACCELERATE_USE_{backend}", "false").lower() in ("true", "1"):
            raise ConfigError(
                f"ACCELERATE_USE_{backend} is set, which popi does not use: {why}. To divide the models among the "
                "processes, set training.sharding=fsdp2; launch with torchrun or configs/accelerate/ddp.yaml"
            )
    training, processes = config.training, launched()
    if processes == 1:
        if torch.cuda.device_count() > 1 and config.model.device != "cpu":
            raise ConfigError(
                f"{torch.cuda.device_count()} GPUs are visible, and this is one process: start one for each with "
                f"torchrun --nproc-per-node {torch.cuda.device_count()} -m popi train … (docs/scaling.md), or choose "
                "one with CUDA_VISIBLE_DEVICES=0"
            )
        if training.sharding != "none":
            warnings.warn(
                f"training.sharding = {training.sharding!r} has no effect in a single process, which holds the whole "
                "models; start several with torchrun",
                stacklevel=2,
            )
        return
    if training.rollouts == "vllm":
        raise ConfigError(
            f"training.rollouts = 'vllm' runs in one process, and {processes} were started: use rollouts = 'own'"
        )
    if config.model.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"model.device={config.model.device!r} would be the device of all {processes} processes; use 'auto', which "
            "gives each process the GPU of its local rank, or 'cpu'"
        )
    if not on_cpu(config) and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count():
        raise ConfigError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes were started on this machine, which has "
            f"{torch.cuda.device_count()} GPUs: start one for each GPU"
        )
    refuse_sharding(config)
    kinds = {phase.kind for phases in plan(config).values() for phase in phases}
    if kinds & {"inference", "joint"}:
        own = training.inference
        parts_of("training.inference.users_per_step", own.users_per_step, own.micro_batch, processes)
    if "generator" in kinds:
        parts_of(
            "training.generator.batch_size", training.generator.batch_size, training.generator.micro_batch, processes
        )


def refuse_sharding(config: RunConfig) -> None:
    """Raise ConfigError for settings that can't be trained with sharded models."""
    training = config.training
    if training.sharding == "none":
        return
    if orders := [order for order in training.orders if order.startswith("user_embedding")]:
        raise ConfigError(
            f"training.sharding = 'fsdp2' with training.orders = {orders}: users' embeddings can't be sharded yet; "
            "train these orders in a separate run with sharding = 'none'"
        )
    if config.model.quantization != "none":
        raise ConfigError(
            f"training.sharding = 'fsdp2' with model.quantization = {config.model.quantization!r}: packed weights "
            "can't be sharded; use sharding = 'none', with the quantised base in each process, or no quantization"
        )
    for phase in ("inference", "generator"):
        if not (optim := getattr(training, phase).optim).startswith(("adamw_torch", "sgd")):
            raise ConfigError(
                f"training.sharding = 'fsdp2' with training.{phase}.optim = {optim!r}: only adamw_torch, "
                "adamw_torch_fused and sgd are known to work on shards"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """A context without the libraries' progress bars and notices, since popi has its own."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with no_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT uses renamed arguments
            warnings.filterwarnings("ignore", "Could not find a config file")  # PEFT, because a GGUF base has none
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def run_phase(
    phase: Phase,
    run: RunDirectory,
    users: Sequence[User],
    held_out: Sequence[User],
    console: Console,
    processes: Processes,
) -> None:
    """Run a phase to its end, or skip it if it is done."""
    directory = run.phase(phase.name)
    if processes.decide(lambda: directory.done):
        if processes.first and run.config.training.save_total_limit is None:
            directory.tidy()  # an interruption may have left them
        return
    config = run.config
    for name, component in ((phase.inference_from, INFERENCE), (phase.generator_from, GENERATOR)):
        if name is not None:
            processes.decide(partial(run.phase(name).verify, component))
    checkpoint = processes.decide(lambda: directory.checkpoint(console.print))
    if processes.first:
        run.rewind(phase.name, checkpoint[1] if checkpoint else 0)
        if checkpoint is None and directory.path.exists():
            shutil.rmtree(directory.checkpoints, ignore_errors=True)
        run.reporters(phase.name, checkpoint[1] + 1 if checkpoint else 1)  # before models load, which takes minutes
    seed = phase_seed(config.seed, phase.name)
    set_seed(seed)
    parts = load_components(
        config, phase.trains, saved(run, phase.inference_from, INFERENCE), saved(run, phase.generator_from, GENERATOR)
    )
    steps = phase.steps(config)
    with PhaseProgress(console, phase.name, steps, checkpoint[1] if checkpoint else 0) as progress:
        trainer = Job(phase, run, directory, users, parts, seed, steps, progress, held_out, processes).trainer()
        trainer.run_phase()
        facts = {"phase": phase.name, "seed": seed, **trainer.facts()}
        for component in sorted(phase.trains):
            weights = parts.gathered(component, processes.first)
            if processes.first:
                folder = directory.save(component, parts.saver(component, config.model.base, weights))
                write_card(folder, run, phase.name, component)
        if processes.first:
            directory.finish(facts, keep=config.training.save_total_limit is not None)
        processes.wait()
        if "saved_step" in facts:
            progress.say(
                f"{phase.name}: stopped at step {facts['steps']} of {steps} and saved the weights of step "
                f"{facts['saved_step']}: the chosen responses had lost {facts['chosen_loss']:.3f} nats per token, but "
                f"training.generator.max_chosen_loss is {config.training.generator.max_chosen_loss:g}; a lower "
                "learning_rate, fewer steps or loss=ipo reduce the loss (docs/method.md)"
            )
        elif "best_step" in facts:
            progress.say(f"{phase.name}: saved the best weights, of step {facts['best_step']} of {facts['steps']}")
    del trainer, parts
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def saved(run: RunDirectory, phase: str | None, component: str) -> Path | None:
    """The folder where an earlier phase saved a component."""
    return None if phase is None else run.phase(phase).path / component
