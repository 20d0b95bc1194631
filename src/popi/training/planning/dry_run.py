"""`popi train --dry-run`: what a run would do, need and take, and what speaks against it; no weights are loaded."""

import os
from dataclasses import dataclass

from popi.config import RunConfig
from popi.errors import ModelError
from popi.training.planning.architecture import Architecture, architecture_of
from popi.training.planning.fits import GIB, problems
from popi.training.planning.memory import HALF, Memory, dtype_of, phase_memory
from popi.training.planning.plan import Phase, plan, refuse_settings
from popi.training.planning.shapes import Shapes, shapes_of
from popi.training.planning.work import Work, work_of
from popi.training.templates import with_template


@dataclass(frozen=True)
class Device:
    """Where a run would train."""

    name: str
    memory: int
    """Bytes."""
    gpu: bool


@dataclass(frozen=True)
class PhasePlan:
    """One phase: its work, its memory and how long it may take."""

    phase: Phase
    work: Work
    memory: Memory
    hours: float


@dataclass(frozen=True)
class RunPlan:
    """All of it; `problems` is empty if the run can begin."""

    config: RunConfig
    device: Device
    model: Architecture
    source: str
    shapes: Shapes
    phases: list[PhasePlan]
    problems: list[str]

    def lines(self) -> list[str]:
        """The plan for a terminal."""
        config, shapes, model = self.config, self.shapes, self.model
        adapter = config.model.adapter
        kind = f"LoRA of rank {config.model.lora_rank}" if adapter == "lora" else "full weights"
        found = [
            f"model    {config.model.base}: {model.parameters / 1e6:,.1f} M weights, {kind}, "
            f"{dtype_of(config, self.device.gpu, model.parameters)}, context {model.context}; from {self.source}",
            f"device   {self.device.name}: {self.device.memory / GIB:.1f} GiB",
            f"data     {config.data.source}: {shapes.users:,} users, at most {shapes.signals} signals and "
            f"{shapes.targets} targets each; template set {config.signals.template}",
            f"         {'; '.join(shapes.told)}",
            f"tokens   prompt {shapes.prompt_mean:,.0f} (longest {shapes.prompt:,}), summary at most "
            f"{shapes.summary:,}, target pair with its prompt {shapes.plain_mean:,.0f} (longest {shapes.plain:,})",
        ]
        if shapes.dropped:
            found.append(
                f"         signals are dropped to fit signals.token_budget for {shapes.dropped} of those users"
            )
        if shapes.unread:
            found.append(
                f"         {shapes.unread} of those users without any signal that fits: no summary is trained on them"
            )
        for one in self.phases:
            work, memory = one.work, one.memory
            what = "target pairs" if one.phase.kind == "generator" else "summaries"
            found += [
                f"phase    {one.phase.name}: {work.steps:,} steps, {work.samples:,} {what}; tokens: {_si(work.read)} "
                f"read, {_si(work.trained)} trained on; {_time(one.hours)}",
                f"  memory {memory.total / GIB:.1f} GiB: weights {memory.weights / GIB:.1f}, gradients "
                f"{memory.gradients / GIB:.1f}, optimizer {memory.optimizer / GIB:.1f}, most for {memory.largest} "
                f"{memory.activities[memory.largest] / GIB:.1f}",
            ]
        total = _time(sum(one.hours for one in self.phases))
        return [*found, f"in all   {total}; memory and time are estimates (docs/recipes.md)"]


def dry_run(config: RunConfig, device: Device | None = None) -> RunPlan:
    """Plan a run for a device (this machine's, if none is given).

    Raises:
        ConfigError, ModelError: settings do not go together, or the model's shape is not known.
        DataError: the users are at hand and have problems.
    """
    refuse_settings(config)
    config = with_template(config)
    device = device or this_device(config)
    model, source = architecture_of(config.model.base)
    shapes = shapes_of(config)
    half = dtype_of(config, device.gpu, model.parameters) in HALF
    phases: dict[str, PhasePlan] = {}
    for phase in (phase for order in plan(config).values() for phase in order):
        work = work_of(config, phase, shapes)
        hours = work.hours(model, config.training.gradient_checkpointing, device.gpu, half)
        memory = phase_memory(config, phase, model, shapes, device.gpu)
        phases[phase.name] = PhasePlan(phase, work, memory, hours)
    found = RunPlan(config, device, model, source, shapes, list(phases.values()), [])
    found.problems.extend(problems(found))
    return found


def this_device(config: RunConfig) -> Device:
    """The device that `model.device` names on this machine.

    Raises:
        ModelError: it is not there, or not for the type that `model.dtype` names.
    """
    import torch

    from popi.models.local.loading import device_of, refuse_type

    name = config.model.device
    try:
        refuse_type(config.model.dtype, device_of(name))
    except ModelError as error:
        raise ModelError(f"{error}; a plan for a GPU elsewhere takes --gpu-memory") from None
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
    told = f"{hours / 24:.1f} days" if hours > 48 else f"{hours:.1f} h" if hours >= 1 else f"{max(minutes, 1):.0f} min"
    return f"about {told}"
