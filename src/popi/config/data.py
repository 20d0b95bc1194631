"""`[data]`: users to train and to test on."""

from typing import Any, Self

from pydantic import Field, PositiveInt, model_validator

from popi.config.benchmark import APPLIES, BENCHMARKS, LOCAL, BenchmarkConfig, WindowSizes
from popi.config.section import Filled, Section


class DataConfig(Section):
    source: Filled = "nano"
    """`nano` (synthetic users with known preferences), a benchmark (docs/data.md lists them; `preferences` is any TRL
    preference set with a user column), or a JSONL or parquet file of training users: a path, or the train split of a
    data set on the hub (`owner/name`)."""
    test: str | None = None
    """File of test users, where `source` is a file or on the hub (`owner/name:test`); none of them may stand in it."""
    train_users: PositiveInt = 2000
    """How many users to train on (`nano` makes that many; a file is cut to the first ones)."""
    test_users: PositiveInt = 400
    """How many held-out users to evaluate on (`nano` makes that many; a file is cut to the first ones)."""
    signals_per_user: PositiveInt = 4
    """How many of a user's rows become signals of one window (TRL preference rows, benchmarks); AlignX: most signals of
    a kind. Not given: 4, or the benchmark's own (docs/data.md)."""
    targets_per_user: PositiveInt = 4
    """`nano`: target pairs per user. TRL rows and benchmarks: targets per window. Default: 4, or the benchmark's."""
    no_evidence_share: float = Field(default=0.0, ge=0, le=1)
    """`nano`: share of the training users whose signals say nothing of what they prefer, so that the inference model
    learns to say so (docs/evidence.md)."""
    change_share: float = Field(default=0.0, ge=0, le=1)
    """`nano`: share of the training users whose preferences change half-way through their signals; their targets are of
    the new preferences (docs/streaming.md)."""
    benchmark: BenchmarkConfig = BenchmarkConfig()
    """Where a benchmark lies and how it is read; only with a `source` that is one."""

    @model_validator(mode="before")
    @classmethod
    def _own_sizes(cls, tree: Any) -> Any:
        """A benchmark's own window sizes, where none are given: the saved config then says which they were."""
        source = tree.get("source") if isinstance(tree, dict) else None
        return {**BENCHMARKS[source], **tree} if isinstance(source, str) and source in BENCHMARKS else tree

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        settings = self.benchmark
        for name in ("no_evidence_share", "change_share"):
            if self.source != "nano" and getattr(self, name):
                raise ValueError(
                    f"{name} = {getattr(self, name)} belongs to source nano, not to {self.source!r}: leave it out"
                )
        for name, field in BenchmarkConfig.model_fields.items():
            sources = APPLIES.get(name, tuple(BENCHMARKS))
            if self.source not in sources and getattr(settings, name) != field.default:
                raise ValueError(
                    f"benchmark.{name} = {getattr(settings, name)!r} belongs to source {', '.join(sources)}, not to "
                    f"{self.source!r}: leave it out"
                )
        if self.source not in BENCHMARKS:
            return self
        if self.test is not None:
            raise ValueError(
                f"test = {self.test!r} belongs to a source that is a file; {self.source!r} has its own test users "
                "(benchmark.test_path says where they lie)"
            )
        if settings.path is None and self.source in LOCAL:
            raise ValueError(
                f"benchmark.path is not set, and {self.source!r} has no set of its own: name file or folder"
            )
        if self.source in ("alignx", "lamp") and self.targets_per_user != 1:
            raise ValueError(
                f"targets_per_user = {self.targets_per_user}: a row of {self.source} is a user of 1 target"
            )
        return self

    def windows(self) -> WindowSizes:
        """How TRL preference rows are cut, as the readers of files take it."""
        return {"signals_per_user": self.signals_per_user, "targets_per_user": self.targets_per_user}
