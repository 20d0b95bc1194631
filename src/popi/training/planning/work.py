"""How much a phase does, in samples, tokens and operations, and how long that may take."""

from dataclasses import dataclass

from popi.config import RunConfig
from popi.inference_model import BATCH
from popi.training.planning.architecture import Architecture
from popi.training.planning.plan import Phase
from popi.training.planning.shapes import Shapes

SPEED = {("gpu", 2): 1.5e14, ("gpu", 4): 3e13, ("cpu", 2): 5e11, ("cpu", 4): 2e11}
"""Floating-point operations a second that a model reaches: (device, bytes a weight). Assumed for one GPU of an H100's
kind (a sixth of its peak in bfloat16, half of it in float32 without TF32); for two CPU cores, below what one machine
with AMX was measured at: 240 GFLOP/s in float32, 570 to 800 in bfloat16."""
DECODE = {"gpu": 0.03, "cpu": 0.03}
"""Seconds that one token of a batch takes beside its arithmetic: layers are launched one by one."""


@dataclass(frozen=True)
class Work:
    """What a phase does in all its steps. Lengths are means, summaries of full length: more than will be."""

    steps: int
    samples: int
    """Summaries that are sampled, or target pairs that train."""
    decoded: float
    """Positions that only sampling adds: tokens written one by one, for a whole batch at a time."""
    read: float
    """Tokens that go forward, without gradient."""
    trained: float
    """Tokens that go forward and backward."""

    def operations(self, model: Architecture, checkpointing: bool) -> float:
        """2 a weight and token forward, 4 backward, 2 more where the forward is done again."""
        return model.parameters * (2 * (self.read) + (8 if checkpointing else 6) * self.trained)

    def hours(self, model: Architecture, checkpointing: bool, gpu: bool, half: bool) -> float:
        """How long it may take, to an order of magnitude; `half`: two bytes a weight."""
        device = "gpu" if gpu else "cpu"
        seconds = self.operations(model, checkpointing) / SPEED[device, 2 if half else 4]
        return (seconds + self.decoded * DECODE[device]) / 3600


def work_of(config: RunConfig, phase: Phase, shapes: Shapes) -> Work:
    """What a phase does: tokens by the means of the lengths."""
    settings, generator = config.training.inference, config.training.generator
    steps = phase.steps(config)
    if phase.kind == "generator":
        pairs = steps * generator.batch_size
        users = min(shapes.users, -(-pairs // max(shapes.targets, 1)))
        row = shapes.row_mean(phase.context, phase.soft(config))
        read, decoded = users * shapes.targets * shapes.plain_mean, 0.0
        if phase.embedding == "signals":
            read += users * shapes.raw_mean
        if phase.context == "summary":
            written = users * shapes.targets if config.summary.conditioned_on_prompt else users  # prompts to write from
            read += written * shapes.prompt_mean + users * shapes.targets * shapes.summary
            decoded = -(-written // config.evaluation.users_at_once) * shapes.summary
            read, decoded = read + _old(config, shapes, users).read, decoded + _old(config, shapes, users).decoded
        return Work(steps, pairs, decoded, read, pairs * row)
    users = settings.users_per_step
    tree = users * (shapes.prompt_mean + settings.group_size * shapes.summary)
    targets = min(settings.targets_per_summary, shapes.targets)
    scored = users * settings.group_size * targets * shapes.row_mean()
    references = min(steps * users, shapes.users) * shapes.targets * shapes.plain_mean
    read = steps * (tree + scored + (tree if settings.kl else 0)) + references
    trained = steps * tree
    old = _old(config, shapes, steps * users)
    read, decoded = read + old.read, steps * settings.parts * shapes.summary + old.decoded
    if phase.kind == "joint":
        trained += steps * generator.batch_size * shapes.row_mean()
    return Work(steps, steps * users * settings.group_size, decoded, read, trained)


def _old(config: RunConfig, shapes: Shapes, rows: int) -> Work:
    """Writing the old summaries that a share of the rows renew."""
    written = config.training.renewal.share * rows
    decoded = -(-written // BATCH) * shapes.summary
    return Work(0, 0, decoded, written * (shapes.earlier_mean + shapes.summary), 0.0)
