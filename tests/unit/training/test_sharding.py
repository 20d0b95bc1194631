"""Processes that divide the models train what one process does, and each holds only its shards."""

import json
from pathlib import Path
from typing import Any

import pytest
from together import assert_same, config, launch, train_alone, trained

from popi.config import resolve
from popi.errors import ConfigError
from popi.training.train import refuse_launch

ORDERS = ["plug_and_play", "alternating", "simultaneous", "population_dpo", "fspo"]


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """Where one process trains, with reference log-probs of its own."""
    folder = tmp_path / "alone"
    folder.mkdir()
    return folder


def sharded(base: Path, root: Path, name: str, adapter: str, orders: list[str], **training: Any) -> dict[str, Any]:
    return config(base, root, name, adapter, orders, sharding="fsdp2", **training)


def test_two_processes_divide_the_models(tiny_base: Path, tmp_path: Path, alone: Path) -> None:
    """Full weights: one inference phase with evaluations, one generator phase."""

    def configs(root: Path) -> list[dict[str, Any]]:
        orders = ["plug_and_play", "population_dpo"]
        return [sharded(tiny_base, root, "full", "none", orders, eval_steps=2, eval_users=3)]

    train_alone(configs(alone))
    trained(2, tmp_path, configs(tmp_path), "--shards", str(tmp_path / "shards.jsonl"))
    assert_same(alone / "full", tmp_path / "full")
    for line in (tmp_path / "shards.jsonl").read_text().splitlines():  # between steps, in every process
        held = json.loads(line)
        assert held["types"] == ["DTensor"] and 0 < held["parameters"] <= 0.55 * held["all"], held
        assert 0 < held["states"] <= 0.55 * 2 * held["all"], held


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_every_order_sharded(tiny_base: Path, tmp_path: Path, alone: Path, adapter: str) -> None:
    def configs(root: Path) -> list[dict[str, Any]]:
        return [sharded(tiny_base, root, "every", adapter, ORDERS, eval_steps=2, eval_users=3)]

    train_alone(configs(alone))
    trained(2, tmp_path, configs(tmp_path))
    assert_same(alone / "every", tmp_path / "every")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_sharded_run_resumes_on_another_number_of_processes(
    tiny_base: Path,
    tmp_path: Path,
    alone: Path,
    before: int,
    after: int,
) -> None:
    def configs(root: Path, **more: Any) -> list[dict[str, Any]]:
        inference = {"steps": 2, "warmup_steps": 0, "users_per_step": 6, "group_size": 2, "learning_rate": 1e-2}
        one = sharded(tiny_base, root, "resumed", "none", ["plug_and_play"], save_steps=1, inference=inference)
        return [one | more]

    train_alone(configs(alone))
    killed = launch(before, tmp_path, configs(tmp_path, fault={"rank": before - 1, "step": 2, "what": "killed"}))
    checkpoint = tmp_path / "resumed/phases/inference-1/checkpoints/checkpoint-1/complete"
    assert killed.returncode and checkpoint.is_file(), killed.stderr[-3000:]
    trained(after, tmp_path, configs(tmp_path), "--resume")
    assert_same(alone / "resumed", tmp_path / "resumed")


@pytest.mark.parametrize(
    ("orders", "changes", "message"),
    [
        (["user_embedding"], {}, "embeddings can't be sharded yet"),
        (["fspo"], {"generator": {"batch_size": 8, "optim": "adafactor"}}, "optim = 'adafactor': only adamw_torch"),
    ],
)
def test_what_can_not_be_sharded_is_refused(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    orders: list[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refuse_launch(resolve(sharded(tiny_base, tmp_path, "r", "none", ["fspo"])))
    with pytest.raises(ConfigError, match=message):
        refuse_launch(resolve(sharded(tiny_base, tmp_path, "r", "none", orders, **changes)))


def test_sharding_in_a_single_process_warns(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.warns(UserWarning, match="sharding = 'fsdp2' has no effect in a single process"):
        refuse_launch(resolve(sharded(tiny_base, tmp_path, "r", "none", ["fspo"])))
