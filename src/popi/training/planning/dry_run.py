"""`popi train --dry-run`: a run's work and requirements, and reasons why it can't start. Loads no weights."""

import os
from dataclasses import dataclass

from popi.config import RunConfig
from popi.errors import ModelError
from popi.models.architecture import Architecture, architecture_of
from popi.training.planning.cost import HALF, Memory, Work, dtype_of, phase_memory, work_of
from popi.training.planning.plan import Phase, plan, refuse_settings
from popi.training.planning.shapes import Shapes, shapes_of
from popi.training.planning.shares import share_of
from popi.training.templates import with_template

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """The device that a run would train on."""

    name: str
    memory: int
    """Bytes."""
    gpu: bool


@dataclass(frozen=True)
class PhasePlan:
    """One phase: its work, its memory and its estimated time."""

    phase: Phase
    work: Work
    memory: Memory
    hours: float


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run. `problems` is empty if it can start."""

    config: RunConfig
    device: Device
    model: Architecture
    source: str
    shapes: Shapes
    phases: list[PhasePlan]
    problems: list[str]
    processes: int = 1
    """Processes that train together; work, memory and hours are those of each."""

    def lines(self) -> list[str]:
        """The plan for the terminal."""
        config, shapes, model = self.config, self.shapes, self.model
        adapter = config.model.adapter
        kind = f"LoRA of rank {config.model.lora_rank}" if adapter == "lora" else "full weights"
        if config.model.quantization != "none":
            kind += f" over {config.model.quantization} linear layers"
        lines = [
            f"model    {config.model.base}: {model.parameters / 1e6:,.1f} M weights, {kind}, "
            f"{dtype_of(config, self.device.gpu, model.parameters)}, context {model.context}; from {self.source}",
            f"device   {self.device.name}: {self.device.memory / GIB:.1f} GiB"
            + (
                f"; {self.processes} processes on one each, of which the figures below are one's" * (self.processes > 1)
            ),
            f"data     {config.data.source}: {shapes.users:,} users, at most {shapes.signals} signals and "
            f"{shapes.targets} targets each; template set {config.signals.template}",
            f"         {'; '.join(shapes.notes)}",
            f"tokens   prompt {shapes.prompt_mean:,.0f} (longest {shapes.prompt:,}), summary at most "
            f"{shapes.summary:,}, target pair with its prompt {shapes.plain_mean:,.0f} (longest {shapes.plain:,})",
        ]
        if shapes.dropped:
            lines.append(
                f"         signals are dropped to fit signals.token_budget for {shapes.dropped} of those users"
            )
        if shapes.unread:
            lines.append(
                f"         {shapes.unread} of those users have no signal that fits: no summary is trained on them"
            )
        for one in self.phases:
            work, memory = one.work, one.memory
            samples = "target pairs" if one.phase.kind == "generator" else "summaries"
            if work.evaluations:
                samples += f", {work.evaluations:,} evaluations on {shapes.held_out:,} users set aside"
            lines += [
                f"phase    {one.phase.name}: {work.steps:,} steps, {work.samples:,} {samples}; tokens: "
                f"{_si(work.read)} read, {_si(work.trained)} trained on; {_time(one.hours)}",
                f"  memory {memory.total / GIB:.1f} GiB: weights {memory.weights / GIB:.1f}, gradients "
                f"{memory.gradients / GIB:.1f}, optimizer {memory.optimizer / GIB:.1f}, most for {memory.largest} "
                f"{memory.activities[memory.largest] / GIB:.1f}",
            ]
        total = _time(sum(one.hours for one in self.phases))
        return [*lines, f"total    {total}; memory and time are estimates (docs/recipes.md)"]


def dry_run(config: RunConfig, device: Device | None = None, processes: int = 1) -> RunPlan:
    """Plan a run for a device, by default this machine's.

    Args:
        processes: that train together, each on its own device: memory and time are those of one. What the exchange of
            gradients takes is not counted.

    Raises:
        ConfigError, ModelError: settings conflict, or the model's shape is unknown.
        DataError: the users could be read and have problems.
    """
    refuse_settings(config)
    own = share_of(config, processes)
    config = with_template(config)
    device = device or this_device(config)
    model, source = architecture_of(config.model.base)
    shapes = shapes_of(config)
    half = dtype_of(config, device.gpu, model.parameters) in HALF
    phases: dict[str, PhasePlan] = {}
    for phase in (phase for order in plan(config).values() for phase in order):
        work = work_of(own, phase, shapes)
        hours = work.hours(model, config.training.gradient_checkpointing, device.gpu, half)
        memory = phase_memory(own, phase, model, shapes, device.gpu, processes)
        phases[phase.name] = PhasePlan(phase, work, memory, hours)
    run = RunPlan(config, device, model, source, shapes, list(phases.values()), [], processes)
    run.problems.extend(problems(run))
    return run


def problems(run: RunPlan) -> list[str]:
    """Why a run can't start: one message per reason, each with the setting to change."""
    config, shapes, context = run.config, run.shapes, run.model.context
    settings, generator = config.training.inference, config.training.generator
    out = []
    checks = [
        ("prompt and summary", shapes.prompt + shapes.summary, "lower signals.token_budget or summary.max_tokens"),
        (
            "summary, task prompt and response",
            shapes.reach + shapes.guide,
            "lower summary.max_tokens or remove such targets",
        ),
    ]
    if any(one.phase.context == "raw_signals" for one in run.phases):
        wide = shapes.reach + shapes.raw
        checks.append(("raw signals, task prompt and response", wide, "lower signals.token_budget"))
    for texts, width, change in checks:
        if context is not None and width > context:
            out.append(f"{texts} take up to {width:,} tokens and the model's context is {context:,}: {change}")
    kinds = {one.phase.kind for one in run.phases}
    if kinds & {"inference", "joint"} and shapes.users < settings.users_per_step:
        out.append(
            f"a step needs {settings.users_per_step} different users, but there are {shapes.users}: lower "
            "training.inference.users_per_step or train on more users"
        )
    if "generator" in kinds and shapes.users * shapes.targets < generator.batch_size:
        out.append(
            f"a step needs {generator.batch_size} target pairs, but there are at most {shapes.users * shapes.targets}: "
            "lower training.generator.batch_size or train on more users"
        )
    for one in run.phases:
        if one.memory.total > run.device.memory:
            out.append(
                f"{one.phase.name} needs about {one.memory.total / GIB:.1f} GiB, but {run.device.name} has "
                f"{run.device.memory / GIB:.1f}: {_remedy(config, one)}"
            )
    return out


def _remedy(config: RunConfig, one: PhasePlan) -> str:
    memory, training = one.memory, config.training
    writes = one.phase.kind == "generator"
    activity = memory.activities[memory.largest]
    if memory.total - activity > activity:
        if config.model.adapter == "none":
            return "most of it is weights and optimizer: set model.adapter=lora, or use a smaller model"
        return "most of it is weights: use a smaller model, or set model.dtype=bfloat16"
    if memory.largest == "reference log-probs" or (writes and memory.largest == "sampling"):
        return "lower evaluation.batch_size, the rows or users that go through a model at once"
    if memory.largest.startswith("training") and not training.gradient_checkpointing:
        return "set training.gradient_checkpointing=true"
    if one.phase.kind == "joint":
        joint = "generator.batch_size" if memory.largest == "training the generator" else "inference.users_per_step"
        return f"lower training.{joint}"
    settings = training.generator if writes else training.inference
    if settings.micro_batch != 1:
        section, now = "generator" if writes else "inference", settings.micro_batch or "unset, that is all at once"
        return f"lower training.{section}.micro_batch (now {now})"
    return "lower signals.token_budget, summary.max_tokens or training.inference.group_size"


def this_device(config: RunConfig) -> Device:
    """The device that `model.device` names on this machine.

    Raises:
        ModelError: this machine does not have the device, or the device does not support `model.dtype`.
    """
    import torch

    from popi.models.local.loading import device_of, refuse_type
    from popi.models.local.quantized import refuse_quantization

    name = config.model.device
    try:
        refuse_type(config.model.dtype, device_of(name))
        refuse_quantization(config.model.quantization, device_of(name))
    except ModelError as error:
        raise ModelError(f"{error}; to plan for a GPU elsewhere, use --gpu-memory") from None
    if name != "cpu" and torch.cuda.is_available():
        index = torch.device(name).index or 0 if name.startswith("cuda:") else 0
        about = torch.cuda.get_device_properties(index)
        return Device(about.name, about.total_memory, gpu=True)
    return Device("this machine", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), gpu=False)


def _si(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _time(hours: float) -> str:
    minutes = hours * 60
    text = f"{hours / 24:.1f} days" if hours > 48 else f"{hours:.1f} h" if hours >= 1 else f"{max(minutes, 1):.0f} min"
    return f"about {text}"
