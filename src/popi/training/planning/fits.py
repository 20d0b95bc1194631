"""What speaks against a planned run, each with the setting to change."""

from typing import TYPE_CHECKING

from popi.config import RunConfig

if TYPE_CHECKING:
    from popi.training.planning.dry_run import PhasePlan, RunPlan

GIB = 2**30


def problems(found: "RunPlan") -> list[str]:
    """What speaks against a run, each with what to change."""
    config, shapes, context = found.config, found.shapes, found.model.context
    settings, generator = config.training.inference, config.training.generator
    out = []
    checks = [
        ("prompt and summary", shapes.prompt + shapes.summary, "lower signals.token_budget or summary.max_tokens"),
        (
            "summary, task prompt and response",
            shapes.reach + shapes.guide,
            "lower summary.max_tokens or leave such targets out",
        ),
    ]
    if any(one.phase.context == "raw_signals" for one in found.phases):
        wide = shapes.reach + shapes.raw
        checks.append(("raw signals, task prompt and response", wide, "lower signals.token_budget"))
    for what, width, change in checks:
        if context is not None and width > context:
            out.append(f"{what} take up to {width:,} tokens and the model's context is {context:,}: {change}")
    kinds = {one.phase.kind for one in found.phases}
    if kinds & {"inference", "joint"} and shapes.users < settings.users_per_step:
        out.append(
            f"a step needs {settings.users_per_step} different users and there are {shapes.users}: lower "
            "training.inference.users_per_step or train on more users"
        )
    if "generator" in kinds and shapes.users * shapes.targets < generator.batch_size:
        out.append(
            f"a step needs {generator.batch_size} target pairs and there are at most {shapes.users * shapes.targets}: "
            "lower training.generator.batch_size or train on more users"
        )
    for one in found.phases:
        if one.memory.total > found.device.memory:
            out.append(
                f"{one.phase.name} needs about {one.memory.total / GIB:.1f} GiB and {found.device.name} has "
                f"{found.device.memory / GIB:.1f}: {_way_out(config, one)}"
            )
    return out


def _way_out(config: RunConfig, one: "PhasePlan") -> str:
    memory, training = one.memory, config.training
    writes = one.phase.kind == "generator"
    activity = memory.activities[memory.largest]
    if memory.total - activity > activity:
        if config.model.adapter == "none":
            return "most of it is weights and optimizer: set model.adapter=lora, or take a smaller model"
        return "most of it is weights: take a smaller model, or model.dtype=bfloat16"
    if memory.largest == "reference log-probs" or (writes and memory.largest == "sampling"):
        return "lower evaluation.batch_size: so many rows, or users, go through a model at once"
    if memory.largest.startswith("training") and not training.gradient_checkpointing:
        return "set training.gradient_checkpointing=true"
    if one.phase.kind == "joint":
        joint = "generator.batch_size" if memory.largest == "training the generator" else "inference.users_per_step"
        return f"lower training.{joint}"
    settings = training.generator if writes else training.inference
    if settings.micro_batch != 1:
        section, now = "generator" if writes else "inference", settings.micro_batch or "unset: all at once"
        return f"lower training.{section}.micro_batch (it is {now})"
    return "lower signals.token_budget, summary.max_tokens or training.inference.group_size"
