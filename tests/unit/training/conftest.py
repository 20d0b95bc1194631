"""A small training situation around the tiny base."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from popi.config import RunConfig, resolve
from popi.data.users import users_of
from popi.runs.run_directory import RunDirectory
from popi.training.components import Components, load_components
from popi.training.references import References
from popi.training.rows import InferenceRow, draw, inference_rows


def small(base: Path, root: Path, adapter: str = "none", **training: Any) -> RunConfig:
    inference = {"steps": 2, "users_per_step": 3, "group_size": 4, "targets_per_summary": 2, "warmup_steps": 0}
    generator = {"steps": 2, "batch_size": 4, "warmup_steps": 0}
    return resolve(
        {
            "name": "run",
            "root": str(root),
            "model": {"base": str(base), "adapter": adapter, "device": "cpu"},
            "data": {"train_users": 6},
            "summary": {"max_tokens": 6},
            "training": {
                "inference": inference | training.pop("inference", {}),
                "generator": generator | training.pop("generator", {}),
                **training,
            },
        }
    )


@dataclass
class Bench:
    config: RunConfig
    run: RunDirectory
    parts: Components
    rows: list[InferenceRow]

    def common(self, name: str) -> dict[str, Any]:
        return {
            "config": self.config,
            "run": self.run,
            "phase": self.run.phase(name),
            "seed": 0,
            "steps": 2,
            "report": lambda step, metrics: None,
        }


@pytest.fixture
def bench(tiny_base: Path, tmp_path: Path) -> Callable[..., Bench]:
    """bench(trained, adapter, inference_from, generator_from, **training) -> Bench"""

    def make(
        trained: set[str],
        adapter: str = "none",
        inference_from: Path | None = None,
        generator_from: Path | None = None,
        **training: Any,
    ) -> Bench:
        config = small(tiny_base, tmp_path, adapter, **training)
        run = RunDirectory.create(config) if not config.directory.exists() else RunDirectory.open(config.directory)
        users = users_of(config, "train").users
        plain = config.model_copy(update={"model": config.model.model_copy(update={"adapter": "none"})})
        base = load_components(plain, set(), None, None).base
        references = References(run.path / "references.jsonl")
        references.compute(users, base)
        parts = load_components(config, trained, inference_from, generator_from)
        order = draw(len(users), config.training.inference.users_per_step, 2, 0)
        rows = inference_rows(users, order, parts.inference_model, references, 2, 0)
        return Bench(config, run, parts, rows)

    return make
