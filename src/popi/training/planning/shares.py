"""How a step is divided among processes and into parts. Imports no torch: the dry run plans with it, too."""

from popi.errors import ConfigError


def parts_of(name: str, rows: int, micro_batch: int | None, processes: int) -> int:
    """In how many parts each process goes through its share of a step.

    Args:
        name: of the setting that says how many rows a step has.
        rows: of a step, in all processes.
        micro_batch: maximum rows of one process at a time; None is no maximum.

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
