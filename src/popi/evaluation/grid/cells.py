"""A cell: one benchmark's users and summaries with one generator."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from popi.evaluation.grid.benchmarks import Benchmark
from popi.evaluation.grid.settings import OWN, REFERENCE, GridConfig, GridGenerator
from popi.evaluation.job import SUMMARIES, Job
from popi.evaluation.methods import METHODS, Context
from popi.evaluation.models import Models
from popi.evaluation.progress import evaluation_progress
from popi.evaluation.runner import choose_methods
from popi.runs.files import write_text


@dataclass
class Cell:
    """One benchmark with one generator.

    Attributes:
        benchmark: run and users.
        generator: the other generator, or None for the run's own.
        models: loads the models.
        methods: the methods to measure, in the order of the tables.
        skipped_methods: reason → the methods that were skipped for it.
        folder: where the cell's files go.
        job: scores the cell.
    """

    benchmark: Benchmark
    generator: GridGenerator | None
    models: Models
    methods: list[str]
    skipped_methods: dict[str, list[str]]
    folder: Path
    job: Job

    @property
    def name(self) -> str:
        """The generator's name in the tables."""
        return OWN if self.generator is None else self.generator.name

    @property
    def scored(self) -> bool:
        """Whether its generator gives log-probs."""
        return self.generator is None or self.generator.scored

    def score(self, console: Console) -> None:
        """Compute the missing rows, method by method; write metrics.json.

        Raises:
            RunError: existing rows were made under other settings (the message lists them).
            ModelError: a model can't be loaded.
        """
        with evaluation_progress(console) as progress:
            for name in self.methods:
                label = METHODS[name].label
                task = progress.add_task(label, total=len(self.job.expected(name)))
                self.job.run_method(name, progress, task)
        self.write_metrics()

    def write_metrics(self) -> None:
        """Write metrics.json from the methods' files."""
        import json

        result = self.job.metrics(self.methods) | self.skipped_methods
        result["generator"] = self.models.untrained
        if self.benchmark.data is not None:
            result["data"] = self.benchmark.data
        write_text(self.folder / "metrics.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")

    def contexts(self, name: str, progress: Progress, task: TaskID) -> list[Context]:
        """A method's context for each user's task prompts."""
        return self.job.contexts(name, progress, task)

    @property
    def answering(self) -> list[str]:
        """The methods whose responses can be judged; per-user adapters are not saved."""
        return [name for name in self.methods if not METHODS[name].per_user]


def cells_of(benchmark: Benchmark, grid: GridConfig) -> list[Cell]:
    """The cells of a benchmark, the run's own generator first."""
    generators = [*([None] if grid.own_generator else []), *grid.generators]
    return [_cell(benchmark, generator, grid) for generator in generators]


def _cell(benchmark: Benchmark, generator: GridGenerator | None, grid: GridConfig) -> Cell:
    other = None if generator is None else generator.spec
    models = Models(benchmark.config, benchmark.trained, other)
    chosen, skipped_methods = choose_methods(models, benchmark.people, transfer=other is not None)
    method_names = set(METHODS if grid.methods is None else [REFERENCE, *grid.methods])
    skipped_methods = {
        reason: [name for name in names if name in method_names] for reason, names in skipped_methods.items()
    }
    name = OWN if generator is None else generator.name
    folder = grid.directory / "cells" / benchmark.name
    job = Job(
        benchmark.config,
        benchmark.people,
        models,
        folder / name,
        summaries=folder / SUMMARIES,
        benchmark=benchmark.facts | {"generator": name},
        refuse_changes=True,
    )
    methods = [method for method in chosen if method in method_names]
    return Cell(benchmark, generator, models, methods, skipped_methods, folder / name, job)
