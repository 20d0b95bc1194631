import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from popi.config import Order, resolve
from popi.errors import ConfigError, DataError, PopiError, RunError
from popi.runs.run_directory import RunDirectory
from popi.training.phases.trainer import _Log
from popi.training.planning.plan import models_of, phase_seed, plan
from popi.training.references import FOLDER
from popi.training.train import refuse, train


def config(orders: list[str], rounds: int = 1, **settings: object) -> object:
    return resolve({"training": {"orders": orders, "rounds": rounds}, **settings})


def test_plan_of_two_rounds() -> None:
    phases = plan(config(["simultaneous", "alternating", "plug_and_play"], rounds=2))
    assert list(phases) == ["plug_and_play", "alternating", "simultaneous"]
    assert phases["plug_and_play"] == phases["alternating"][:1]
    assert [(p.name, p.kind, p.inference_from, p.generator_from) for p in phases["alternating"]] == [
        ("inference-1", "inference", None, None),
        ("generator-1", "generator", "inference-1", None),
        ("inference-2", "inference", "inference-1", "generator-1"),
        ("generator-2", "generator", "inference-2", "generator-1"),
    ]


def test_a_generator_that_is_trained_to_read_first() -> None:
    """All orders with summaries start from the phase `copy`, which is trained once."""
    orders: list[Order] = ["simultaneous", "alternating", "plug_and_play"]
    settings = resolve({"training": {"orders": orders, "generator_start": "copy"}})
    phases = plan(settings)
    names = {order: [phase.name for phase in phases[order]] for order in orders}
    assert names == {
        "plug_and_play": ["copy", "inference-1"],
        "alternating": ["copy", "inference-1", "generator-1"],
        "simultaneous": ["copy", "joint"],
    }
    starts = {phase.name: phase.generator_from for order in orders for phase in phases[order]}
    assert starts == {"copy": None, "inference-1": "copy", "generator-1": "copy", "joint": "copy"}
    assert models_of(phases["plug_and_play"], settings) == (
        "phases/inference-1/inference_model",
        "phases/copy/generator",
    )


def test_models_of_each_order() -> None:
    settings = config(list(get_args(Order)), rounds=2)
    found = {order: models_of(phases, settings) for order, phases in plan(settings).items()}
    assert found == {
        "population_dpo": ("nano", "phases/population-dpo/generator"),
        "fspo": ("nano", "phases/fspo/generator"),
        "copy": ("nano", "phases/copy/generator"),
        "user_embedding": ("nano", "phases/user-embedding/generator"),
        "user_embedding_from_signals": ("nano", "phases/user-embedding-from-signals/generator"),
        "plug_and_play": ("phases/inference-1/inference_model", "nano"),
        "alternating": ("phases/inference-2/inference_model", "phases/generator-2/generator"),
        "simultaneous": ("phases/joint/inference_model", "phases/joint/generator"),
    }


def test_phases_have_seeds_of_their_own() -> None:
    seeds = {phase_seed(seed, phase) for seed in (0, 1) for phase in ("inference-1", "generator-1", "joint")}
    assert len(seeds) == 6 and all(0 <= seed < 2**31 for seed in seeds)
    assert phase_seed(0, "joint") == phase_seed(0, "joint")


@pytest.mark.parametrize("backend", ["DEEPSPEED", "FSDP"])
def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    refuse(config(["simultaneous"]))
    monkeypatch.setenv(f"ACCELERATE_USE_{backend}", "true")
    with pytest.raises(ConfigError, match=f"ACCELERATE_USE_{backend} is set.*training.sharding=fsdp2"):
        refuse(config(["simultaneous"]))


def test_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match="orders is empty"):
        refuse(config([]))


def test_a_bad_file_leaves_no_run_behind(tmp_path: Path) -> None:
    file = tmp_path / "users.jsonl"
    file.write_text('{"user_id": "a", "signals": [{"type": "rumour"}]}\n')
    settings = config(["plug_and_play"], name="r", root=str(tmp_path), data={"source": str(file)})
    with pytest.raises(DataError, match="line 1"):
        train(settings)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": {"base": "./nowhere"}},
        {"model": {"device": "banana"}},
        {"signals": {"template": "nowhere"}},
        {"training": {"orders": ["plug_and_play"], "inference": {"users_per_step": 500}}},
        {"signals": {"token_budget": 1}},
    ],
)
def test_a_run_refused_before_its_first_step_leaves_nothing_behind(
    tmp_path: Path, tiny_base: Path, wrong: dict[str, dict[str, object]]
) -> None:
    settings = {"name": "r", "root": str(tmp_path), "data": {"train_users": 4}}
    small = {"orders": ["plug_and_play"], "inference": {"users_per_step": 2}}
    model = {"base": str(tiny_base)}
    with pytest.raises(PopiError):
        train(resolve({**settings, "training": small, **wrong, "model": model | wrong.get("model", {})}))
    # Reference log-probs are true whatever was refused: the run that follows need not compute them again.
    assert [path.name for path in tmp_path.iterdir() if path.name not in (FOLDER, ".r.lock")] == []


def test_a_refused_resume_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    settings = config(["plug_and_play"], name="r", root=str(tmp_path), model={"base": "./nowhere"})
    RunDirectory.create(settings)
    with pytest.raises(PopiError, match="no such folder"):
        train(settings, resume=True)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["config.json", "format.json"]


def test_a_bad_file_of_test_users_is_refused_before_training(tmp_path: Path) -> None:
    target = {"prompt": "which pan ?", "chosen": "the iron one", "rejected": "the other"}
    (tmp_path / "train.jsonl").write_text(json.dumps({"user_id": "a", "signals": [], "targets": [target]}) + "\n")
    (tmp_path / "test.jsonl").write_text("{\n")
    files = {"source": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    with pytest.raises(DataError, match=r"test\.jsonl: 1 problem"):
        train(config(["plug_and_play"], name="r", root=str(tmp_path), data=files))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["loss", "grad_norm", "generator_grad_norm"])
def test_training_that_diverged_stops_and_says_so(tmp_path: Path, name: str) -> None:
    run = RunDirectory.create(config(["plug_and_play"], name="r", root=str(tmp_path)))
    log = _Log(run, "inference-1", lambda step, metrics: None, True)
    with pytest.raises(RunError, match=f"inference-1, step 3: training diverged \\({name} nan"):
        log.on_log(None, SimpleNamespace(global_step=3), None, {"loss": 0.5} | {name: float("nan")})
