"""Train and evaluate on every benchmark: two steps of a tiny model."""

import json
import shutil
from pathlib import Path

import benchmark_sets as sets
import pytest
from rich.console import Console

from popi.config import BENCHMARKS, RunConfig, resolve
from popi.errors import RunError
from popi.evaluation.runner import evaluate
from popi.runs.files import read_jsonl
from popi.runs.run_directory import RunDirectory
from popi.training.train import train

QUIET = Console(quiet=True)


def make_config(source: str, root: Path, base: Path, steps: int = 2) -> RunConfig:
    benchmark = {"path": sets.make(source, root / "set", ".parquet")}
    phase = {"steps": steps, "users_per_step": 3, "group_size": 2, "targets_per_summary": 1, "warmup_steps": 0}
    return resolve(
        {
            "name": source,
            "root": str(root / "runs"),
            "model": {"base": str(base), "device": "cpu"},
            "data": {"source": source, "train_users": 6, "test_users": 3, "benchmark": benchmark},
            "summary": {"max_tokens": 4},
            "training": {"orders": ["plug_and_play"], "inference": phase},
            "evaluation": {"examples": 1, "answer_tokens": 2, "prompt_users": 4},
        }
    )


LIKE_ANOTHER = ("prism", "personamem", "psoups", "lamp", "mind", "amazon", "hicupid")
"""These benchmarks' users have the same kinds of signals as others': pairs, posts and interactions."""
SOURCES = [pytest.param(name, marks=pytest.mark.slow if name in LIKE_ANOTHER else ()) for name in BENCHMARKS]


@pytest.mark.parametrize("source", SOURCES)
def test_two_steps_and_an_evaluation(source: str, tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(source, tmp_path, tiny_base)
    run = RunDirectory.open(train(config, console=QUIET))
    assert len(read_jsonl(run.log_file)) == 2
    assert json.loads((run.path / "data.json").read_text())["loader"] == f"{source}/1"
    result = evaluate(run)
    assert result["data"]["loader"] == f"{source}/1" and result["data"]["split"] == "test"
    assert result["n_pairs"] == 3 * config.data.targets_per_user
    assert ("oracle" in result["methods"]) == (source in ("elix", "review", "roleplay", "persona", "psoups"))


def test_the_benchmarks_templates_are_those_of_the_run_and_of_its_models(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / "popi.json").unlink()  # a model that names no template set
    config = make_config("polis", tmp_path, tmp_path / "base", steps=1)
    run = RunDirectory.open(train(config, console=QUIET))
    assert run.config.signals.template == "polis"
    settings = json.loads((Path(run.models()[0]) / "popi.json").read_text())
    assert settings["template"] == "polis"
    train(config, resume=True, console=QUIET)  # `auto` resolves to the same again
    assert evaluate(run)["n_pairs"] == 12


def test_a_run_is_not_resumed_on_other_data(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config("polis", tmp_path, tiny_base)
    train(config, console=QUIET)
    before = (config.directory / "data.json").read_text()
    sets.write(tmp_path / "set" / "pairs.parquet", sets.preferences(n=11))
    with pytest.raises(RunError, match="the data changed since this run began"):
        train(config, resume=True, console=QUIET)
    assert (config.directory / "data.json").read_text() == before
    assert (config.directory / "methods.json").exists()
