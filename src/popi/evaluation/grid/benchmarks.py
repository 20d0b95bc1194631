"""A grid's benchmarks: one run each, trained first if missing, and the users to evaluate it on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from popi.config import RunConfig, load_config, with_method
from popi.data.users import Person
from popi.errors import ConfigError, PopiError, RunError
from popi.evaluation.grid.settings import GridBenchmark, GridConfig
from popi.evaluation.models import trained_models
from popi.evaluation.users import benchmark_of, held_out
from popi.runs.bars import passes
from popi.runs.run_directory import USERS, RunDirectory, config_differences, refuse_other_loader
from popi.training.planning.shapes import unavailable
from popi.training.templates import with_template


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that can be evaluated.

    Attributes:
        name: its name in the tables.
        config: the run's config, with the grid's evaluation settings.
        trained: training order → paths of inference model and generator.
        people: the held-out users.
        facts: where the users come from, for every row.
        data: for a benchmark set, its loader's facts.
    """

    name: str
    config: RunConfig
    trained: dict[str, tuple[str, str]]
    people: Sequence[Person]
    facts: dict[str, str | None]
    data: dict[str, Any] | None


def open_benchmark(entry: GridBenchmark, grid: GridConfig, console: Console) -> Benchmark:
    """Finish training a benchmark's run if necessary, and read its users.

    Raises:
        ConfigError, RunError: settings are wrong, or the existing run was trained under other settings.
        DataError, ModelError: users or models can't be loaded, or the users leak targets.
    """
    run, config = (opened(entry), None) if entry.run is not None else trained_run(entry, console)
    config = evaluation_config(entry, grid, config or run.config)
    with passes(console) as report:
        people, data = held_out(config, entry.users, cache=run.path.parent / USERS, report=report)
    refuse_other_loader(run.path, data)
    trained = trained_models(run)
    facts = benchmark_of(config, data, entry.users)
    return Benchmark(entry.label, config, trained, people[: grid.max_users], facts, data)


def available_entries(grid: GridConfig, console: Console) -> list[GridBenchmark]:
    """The grid's benchmarks; with `skip_missing`, only those that this machine can run. Prints the others.

    Raises:
        ConfigError: no benchmark can run here.
    """
    if not grid.skip_missing:
        return list(grid.benchmarks)
    available = []
    for entry in grid.benchmarks:
        if reason := missing(entry):
            console.print(f"skipped {entry.label}: {reason}", highlight=False)
        else:
            available.append(entry)
    if not available:
        raise ConfigError(
            "no benchmark of this grid is available: put the data where its configs expect it (see above)"
        )
    return available


def missing(entry: GridBenchmark) -> str | None:
    """What a benchmark lacks on this machine; None if nothing. Imports torch only for a model's tokenizer."""
    if entry.run is not None:
        return None if (Path(entry.run) / "config.json").is_file() else f"there is no run in {entry.run}"
    config = entry.run_config()
    if reason := unavailable(config):
        return reason
    from popi.models.local.loading import load_tokenizer, locate

    try:
        load_tokenizer(locate(config.model.base), local_files_only=True)
    except (PopiError, OSError, ImportError) as error:
        return f"the model {config.model.base} is not available ({str(error).splitlines()[0]})"
    return None


def opened(entry: GridBenchmark) -> RunDirectory:
    """The trained run that a benchmark names.

    Raises:
        RunError: the directory is not a run, or no training order in it is complete.
    """
    assert entry.run is not None
    run = RunDirectory.open(entry.run)
    run.models()
    return run


def trained_run(entry: GridBenchmark, console: Console) -> tuple[RunDirectory, RunConfig]:
    """The fully trained run of the config that a benchmark names, and that config.

    Settings of `evaluation` do not affect training, so a run that differs only in them is reused.

    Raises:
        RunError: the existing run was trained under other settings; the message lists them.
    """
    config = entry.run_config()
    if not is_trained(config):
        from popi.training.processes import refuse_several
        from popi.training.train import train

        refuse_several("training for a grid")
        console.print(f"training {config.directory} for {entry.label}", highlight=False)
        train(_as_begun(config), resume=True, console=console)
    return RunDirectory.open(config.directory), with_template(config)


def is_trained(config: RunConfig) -> bool:
    """Whether a config's run exists with all of its orders trained.

    Raises:
        RunError: the existing run has other settings.
    """
    if not (config.directory / "config.json").is_file():
        return False
    run = RunDirectory.open(config.directory)
    if changed := config_differences(run.config, with_template(_as_begun(config))):
        raise RunError(
            f"{run.path} was started with other settings:\n  " + "\n  ".join(changed) + "\n"
            "use those settings in the grid's benchmark (overrides), or choose another name for the run"
        )
    return set(config.training.orders) <= set(run.methods())


def _as_begun(config: RunConfig) -> RunConfig:
    """The config with the evaluation settings of the existing run, if there is one."""
    if not (config.directory / "config.json").is_file():
        return config
    return config.model_copy(update={"evaluation": RunDirectory.open(config.directory).config.evaluation})


def evaluation_config(entry: GridBenchmark, grid: GridConfig, config: RunConfig) -> RunConfig:
    """The config to evaluate under: the run's, with the evaluation settings of benchmark and grid."""
    if entry.run is not None and entry.overrides:
        config = load_config(None, entry.overrides, tree=config.model_dump(mode="json"))
    if grid.methods is not None:
        config = with_method(config, "per_user_lora", "per_user_lora" in grid.methods)
        config = with_method(config, "copied", "copy" in grid.methods)
    return config
