"""`[data]`: users to train and to test on."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from popi.config.benchmark import APPLIES, BENCHMARKS, LOCAL, BenchmarkConfig, WindowSizes
from popi.config.section import Filled, Section


class DataConfig(Section):
    source: Filled = "nano"
    """`nano` (synthetic users with known preferences), a benchmark (listed in docs/data.md; `preferences` is any TRL
    preference dataset with a user column), or a JSONL or parquet file of training users: a path, or the train split of
    a hub dataset (`owner/name`)."""
    test: str | None = None
    """File of test users (or `owner/name:test` on the hub), if `source` is a file or hub dataset. The two must not
    share users."""
    train_users: PositiveInt = 2000
    """Number of users to train on (`nano` generates that many; of a file, the first ones are used)."""
    test_users: PositiveInt = 400
    """Number of held-out users to evaluate on (`nano` generates that many; of a file, the first ones are used)."""
    signals_per_user: PositiveInt = 4
    """Signals per window (TRL preference rows, benchmarks); AlignX: maximum signals of each kind. Default: 4, or the
    benchmark's own (docs/data.md)."""
    targets_per_user: PositiveInt = 4
    """`nano`: target pairs per user. TRL rows and benchmarks: targets per window. Default: 4, or the benchmark's
    own."""
    world: Literal["easy", "hard"] = "easy"
    """`nano`: how hard it is to infer what its users prefer. `easy`: their evidence is mostly right. `hard`: there is
    more evidence, much of it wrong, some preferences depend on the topic, and one attribute and one value are held out
    from training (docs/nano.md)."""
    no_evidence_share: float = Field(default=0.0, ge=0, le=1)
    """`nano`: share of the training users whose signals reveal nothing about their preferences, so that the inference
    model learns to say so (docs/evidence.md)."""
    change_share: float = Field(default=0.0, ge=0, le=1)
    """`nano`: share of the training users whose preferences change halfway through their signals; their targets reflect
    the new preferences (docs/streaming.md)."""
    benchmark: BenchmarkConfig = BenchmarkConfig()
    """Where a benchmark is stored and how it is read. Requires a `source` that is a benchmark."""

    @model_validator(mode="before")
    @classmethod
    def _own_sizes(cls, tree: Any) -> Any:
        """Fill in the benchmark's own window sizes if none are given, so that the saved config records them."""
        source = tree.get("source") if isinstance(tree, dict) else None
        return {**BENCHMARKS[source], **tree} if isinstance(source, str) and source in BENCHMARKS else tree

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        settings = self.benchmark
        if self.source != "nano" and self.world != "easy":
            raise ValueError(f"world = {self.world!r} only applies to source nano, not to {self.source!r}; remove it")
        for name in ("no_evidence_share", "change_share"):
            if self.world == "hard" and getattr(self, name):
                raise ValueError(f'{name} = {getattr(self, name)} can\'t be combined with world = "hard"; remove one')
            if self.source != "nano" and getattr(self, name):
                raise ValueError(
                    f"{name} = {getattr(self, name)} only applies to source nano, not to {self.source!r}; remove it"
                )
        for name, field in BenchmarkConfig.model_fields.items():
            sources = APPLIES.get(name, tuple(BENCHMARKS))
            if self.source not in sources and getattr(settings, name) != field.default:
                raise ValueError(
                    f"benchmark.{name} = {getattr(settings, name)!r} only applies to source {', '.join(sources)}, not "
                    f"to {self.source!r}; remove it"
                )
        if self.source not in BENCHMARKS:
            return self
        if self.test is not None:
            raise ValueError(
                f"test = {self.test!r} only applies to a source that is a file; {self.source!r} has its own test users "
                "(set benchmark.test_path if they are stored separately)"
            )
        if settings.path is None and self.source in LOCAL:
            raise ValueError(
                f"benchmark.path is not set, and {self.source!r} has no hub dataset; set it to a file or folder"
            )
        if self.source in ("alignx", "lamp") and self.targets_per_user != 1:
            raise ValueError(
                f"targets_per_user = {self.targets_per_user}: each row of {self.source} is a user with 1 target; set 1"
            )
        return self

    def windows(self) -> WindowSizes:
        """Window sizes of TRL preference rows, as keyword arguments of the file readers."""
        return {"signals_per_user": self.signals_per_user, "targets_per_user": self.targets_per_user}
