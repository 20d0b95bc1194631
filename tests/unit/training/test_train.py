from pathlib import Path

import pytest

from popi.config import resolve
from popi.errors import ConfigError, DataError
from popi.training.train import models_of, phase_seed, plan, refuse, train


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


def test_models_of_each_order() -> None:
    settings = config(["population_dpo", "plug_and_play", "alternating", "simultaneous"], rounds=2)
    found = {order: models_of(phases, settings) for order, phases in plan(settings).items()}
    assert found == {
        "population_dpo": ("nano", "phases/population-dpo/generator"),
        "plug_and_play": ("phases/inference-1/inference_model", "nano"),
        "alternating": ("phases/inference-2/inference_model", "phases/generator-2/generator"),
        "simultaneous": ("phases/joint/inference_model", "phases/joint/generator"),
    }


def test_phases_have_seeds_of_their_own() -> None:
    seeds = {phase_seed(seed, phase) for seed in (0, 1) for phase in ("inference-1", "generator-1", "joint")}
    assert len(seeds) == 6 and all(0 <= seed < 2**31 for seed in seeds)
    assert phase_seed(0, "joint") == phase_seed(0, "joint")


@pytest.mark.parametrize(
    ("variable", "value"), [("ACCELERATE_USE_DEEPSPEED", "true"), ("ACCELERATE_USE_FSDP", "true"), ("WORLD_SIZE", "2")]
)
def test_launchers_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    refuse(config(["simultaneous"]))
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError):
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
