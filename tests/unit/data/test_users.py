"""The users of a config, and what a run keeps of them."""

import json
from pathlib import Path
from typing import Any

import benchmark_sets as sets
import pytest

from popi.config import BENCHMARKS, RunConfig, load_config, resolve
from popi.data.benchmarks import elix
from popi.data.users import users_of
from popi.errors import ConfigError, DataError, RunError


def make(source: str, tmp_path: Path, **benchmark: Any) -> RunConfig:
    place = sets.make(source, tmp_path / "set")
    data = {"source": source, "train_users": 6, "test_users": 3, "benchmark": {"path": place, **benchmark}}
    return resolve({"name": "run", "root": str(tmp_path), "data": data})


@pytest.mark.parametrize("source", BENCHMARKS)
def test_every_benchmark_gives_training_and_held_out_users(source: str, tmp_path: Path) -> None:
    config = make(source, tmp_path)
    train, test = users_of(config, "train"), users_of(config, "test")
    assert (len(train.users), len(test.users)) == (6, 3)
    assert all(user.signals and user.targets for user in train.users + test.users)
    assert train.facts is not None and test.facts is not None
    assert train.facts["loader"] == f"{source}/1" and train.facts["windows"] == 6
    assert train.facts["stamp"] != test.facts["stamp"]
    assert all(person.oracle for person in test.people) == (
        source in ("elix", "review", "roleplay", "persona", "psoups")
    )
    assert config.data.targets_per_user == len(test.users[0].targets)


def test_interpolated_users_are_evaluated_on_and_never_trained_on(tmp_path: Path) -> None:
    config = make("review", tmp_path, interpolated=True)
    test = users_of(config, "test")
    assert all("+" in user.user_id for user in test.users) and test.facts and test.facts["split"] == "interpolated"
    assert not any("+" in user.user_id for user in users_of(config, "train").users)


def test_problems_of_either_split_are_told_before_training(tmp_path: Path) -> None:
    config = make("elix", tmp_path)
    sets.write(tmp_path / "set" / "test.jsonl", [*sets.elix("test"), {"prompt": 5}])
    with pytest.raises(DataError) as error:
        users_of(config, "train")
    assert "test.jsonl, line 61, prompt: must be text; got 5" in str(error.value)
    assert 'on_bad_rows = "drop"' in str(error.value)
    (tmp_path / "set" / "test.jsonl").unlink()
    with pytest.raises(DataError, match="no parquet or JSONL file of split 'test'"):
        users_of(config, "train")


def test_a_run_keeps_its_loader_and_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from popi.runs.run_directory import RunDirectory, refuse_other_loader

    config = make("elix", tmp_path)
    run = RunDirectory.create(config)
    facts = users_of(config, "train").facts
    run.keep_data(facts)
    assert json.loads((run.path / "data.json").read_text()) == facts
    run.keep_data(users_of(config, "train").facts)  # resumed
    sets.write(tmp_path / "set" / "train.jsonl", sets.elix("train")[:-5])
    with pytest.raises(RunError, match="the data changed since this run began"):
        run.keep_data(users_of(config, "train").facts)
    monkeypatch.setattr(elix, "VERSION", "elix/2")
    with pytest.raises(RunError, match="loader elix/1, but this popi has elix/2"):
        refuse_other_loader(run.path, users_of(config, "test").facts)
    (run.path / "data.json").write_text("{")
    with pytest.raises(RunError, match=r"data\.json: damaged"):
        run.keep_data(facts)


def test_a_file_of_users_trained_on_is_not_evaluated_on(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from popi.data.jsonl import write_users
    from popi.evaluation.users import held_out

    config = make("polis", tmp_path)
    write_users(tmp_path / "again.jsonl", users_of(config, "train").users)
    with pytest.raises(DataError, match="the run was trained on 6 of these users"):
        held_out(config, tmp_path / "again.jsonl")
    write_users(tmp_path / "new.jsonl", users_of(config, "test").users)
    assert len(held_out(config, tmp_path / "new.jsonl")[0]) == 3


def test_own_window_sizes_are_saved_with_the_config(tmp_path: Path) -> None:
    config = resolve({"data": {"source": "roleplay"}})
    assert config.data.windows() == {"signals_per_user": 8, "targets_per_user": 1}
    saved = tmp_path / "config.json"
    saved.write_text(config.model_dump_json())
    assert load_config(saved) == config
    assert resolve({"data": {"source": "roleplay", "signals_per_user": 3}}).data.signals_per_user == 3
    assert resolve({}).data.windows() == {"signals_per_user": 4, "targets_per_user": 4}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"source": "review", "benchmark": {"scorer_match": False}},
            "scorer_match = False only applies to source elix, not",
        ),
        ({"source": "elix", "benchmark": {"interpolated": True}}, "interpolated = True only applies to source review"),
        ({"source": "elix", "benchmark": {"user_column": "x"}}, "user_column = 'x' only applies to source preferences"),
        ({"benchmark": {"path": "x"}}, "benchmark.path = 'x' only applies to source elix, review"),
        ({"source": "users.jsonl", "benchmark": {"split_seed": 1}}, "split_seed = 1 only applies to"),
        ({"source": "elix", "test": "x.jsonl"}, "set benchmark.test_path if they"),
        ({"source": "polis"}, "benchmark.path is not set"),
        ({"source": "preferences"}, "benchmark.path is not set"),
        ({"source": "alignx", "targets_per_user": 2}, "each row of alignx is a user with 1 target"),
        ({"source": "elix", "benchmark": {"choice_column": "x"}}, "'label' or 'det_choice'; got 'x'"),
        ({"source": "polis", "benchmark": {"path": "x", "test_share": 1.0}}, "test_share"),
        ({"source": "elix", "benchmark": {"paths": "x"}}, "allowed here: path, test_path"),
    ],
)
def test_settings_that_do_not_go_with_the_source(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve({"data": data})
    assert words in str(error.value)
    assert len(str(error.value)) < 600
