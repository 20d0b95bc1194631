"""How a step is divided among processes and into parts. Imports no torch: the dry run plans with it, too."""

from popi.config import RunConfig
from popi.errors import ConfigError
from popi.training.planning.plan import plan


def parts_of(name: str, rows: int, micro_batch: int | None, processes: int) -> int:
    """Number of parts in which each process computes its share of a step.

    Args:
        name: name of the setting with the rows per step.
        rows: rows per step, over all processes.
        micro_batch: maximum rows of one process at a time; None is unlimited.

    Raises:
        ConfigError: the rows can't be divided evenly.
    """
    if rows % processes:
        raise ConfigError(
            f"{name}={rows} can't be divided among {processes} processes; it counts the rows of a step in all of them: "
            f"make it a multiple of {processes}"
        )
    own = rows // processes
    if micro_batch is None or micro_batch >= own:
        return 1
    if own % micro_batch:
        raise ConfigError(
            f"{name}={rows} among {processes} processes is {own} for each, which is no multiple of "
            f"micro_batch={micro_batch}; change one of them"
        )
    return own // micro_batch


def share_of(config: RunConfig, processes: int) -> RunConfig:
    """What one of several processes trains: its share of each step, in as many steps.

    Raises:
        ConfigError: a step can't be divided among them.
    """
    training = config.training
    kinds = {phase.kind for phases in plan(config).values() for phase in phases}

    def divided(kind: str, name: str, rows: int, micro_batch: int | None) -> dict[str, int | None]:
        if kind in kinds:
            parts_of(f"training.{kind}.{name}", rows, micro_batch, processes)
        own = max(1, rows // processes)
        return {name: own, "micro_batch": None if micro_batch is None else min(micro_batch, own)}

    inference, generator = training.inference, training.generator
    users = divided("inference", "users_per_step", inference.users_per_step, inference.micro_batch)
    pairs = divided("generator", "batch_size", generator.batch_size, generator.micro_batch)
    phases = {
        "inference": inference.model_copy(update=users),
        "generator": generator.model_copy(update=pairs),
    }
    return config.model_copy(update={"training": training.model_copy(update=phases)})
