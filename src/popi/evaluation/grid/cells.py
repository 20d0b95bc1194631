"""A cell: one benchmark's users and summaries with one generator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from popi.config import ApiGeneratorConfig
from popi.evaluation.grid.benchmarks import Benchmark
from popi.evaluation.grid.settings import OWN, REFERENCE, GridConfig, GridGenerator
from popi.evaluation.job import SUMMARIES, Job
from popi.evaluation.methods import METHODS, Context
from popi.evaluation.models import Models, Other
from popi.evaluation.progress import evaluation_progress
from popi.evaluation.runner import choose_methods
from popi.models.remote.usage import Prices
from popi.runs.run_directory import write_text


@dataclass
class Cell:
    """One benchmark with one generator.

    Attributes:
        benchmark: run and users.
        generator: the other generator; None: the run's own.
        models: loads the models.
        methods: what is measured, in the order of the tables.
        left_out: the other methods, by the reason.
        folder: of its files.
        job: what scores it.
    """

    benchmark: Benchmark
    generator: GridGenerator | None
    models: Models
    methods: list[str]
    left_out: dict[str, list[str]]
    folder: Path
    job: Job

    @property
    def name(self) -> str:
        """What the tables call its generator."""
        return OWN if self.generator is None else self.generator.name

    @property
    def scored(self) -> bool:
        """Whether its generator gives log-probs."""
        return self.generator is None or self.generator.scored

    def score(self, console: Console) -> None:
        """Make the rows that are missing, method by method; write metrics.json.

        Raises:
            RunError: rows are there that other settings made (the message says which).
            ModelError: a model can't be loaded.
        """
        with evaluation_progress(console) as progress:
            for name in self.methods:
                label = METHODS[name].label
                task = progress.add_task(label, total=len(self.job.expected(name)))
                self.job.run_method(name, progress, task)
        self.write_metrics()

    def write_metrics(self) -> None:
        """metrics.json from the methods' files."""
        import json

        result = self.job.metrics(self.methods) | self.left_out
        result["generator"] = self.models.untrained
        if self.benchmark.data is not None:
            result["data"] = self.benchmark.data
        write_text(self.folder / "metrics.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")

    def contexts(self, name: str, progress: Progress, task: TaskID) -> list[Context]:
        """What a method puts beside each user's task prompts."""
        return self.job.contexts(name, progress, task)

    @property
    def answering(self) -> list[str]:
        """The methods whose responses can be judged: the adapters of the others are not kept."""
        return [name for name in self.methods if not METHODS[name].per_user]


def cells_of(benchmark: Benchmark, grid: GridConfig) -> list[Cell]:
    """The cells of a benchmark, the run's own generator first."""
    generators = [*([None] if grid.own_generator else []), *grid.generators]
    return [_cell(benchmark, generator, grid) for generator in generators]


def _cell(benchmark: Benchmark, generator: GridGenerator | None, grid: GridConfig) -> Cell:
    other = None if generator is None else as_other(generator)
    models = Models(benchmark.config, benchmark.trained, other)
    chosen, left_out = choose_methods(models, benchmark.people, transfer=other is not None)
    wanted = set(METHODS if grid.methods is None else [REFERENCE, *grid.methods])
    left_out = {reason: [name for name in names if name in wanted] for reason, names in left_out.items()}
    name = OWN if generator is None else generator.name
    place = grid.directory / "cells" / benchmark.name
    job = Job(
        benchmark.config,
        benchmark.people,
        models,
        place / name,
        summaries=place / SUMMARIES,
        benchmark=benchmark.facts | {"generator": name},
        refuse_changes=True,
    )
    methods = [method for method in chosen if method in wanted]
    return Cell(benchmark, generator, models, methods, left_out, place / name, job)


def as_other(generator: GridGenerator) -> Other:
    """A grid's generator as evaluation takes it."""
    if generator.url is None:
        return Other(generator.model, generator.chat_template, templates=generator.template)
    api: dict[str, Any] = {"url": generator.url, "name": generator.model}
    return Other(
        generator.model,
        api=ApiGeneratorConfig(**api, key_env=generator.key_env, concurrency=generator.concurrency),
        templates=generator.template,
        protocol=generator.protocol,
        extra=generator.fields,
        prices=prices_of(generator.price_in, generator.price_out),
        scores=generator.scored,
    )


def prices_of(price_in: float | None, price_out: float | None) -> Prices | None:
    """Prices, where both are given."""
    return None if price_in is None or price_out is None else Prices(price_in, price_out)
