"""Runs of several processes, and of one, on the same configs, to be compared."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import in_precision
from safetensors.torch import load_file

from popi.config import resolve
from popi.training.train import train

CLOSE = 1e-9
"""How far weights and metrics may lie from those of one process, in float64: sums are added in another order, and Adam
magnifies that where a gradient is nearly 0. An error in the averaging shows as 1e-3 and more."""
ROOT = Path(__file__).parents[1]


def config(base: Path, root: Path, name: str, adapter: str, orders: list[str], **training: Any) -> dict[str, Any]:
    inference = {"steps": 2, "warmup_steps": 0, "users_per_step": 4, "group_size": 3, "targets_per_summary": 2}
    generator = {"steps": 2, "warmup_steps": 0, "batch_size": 8, "targets_per_summary": 2, "learning_rate": 1e-2}
    own = {"inference": inference | {"learning_rate": 1e-2, "kl": 0.05}, "generator": generator}
    return {
        "name": name,
        "root": str(root),
        "model": {"base": str(base), "adapter": adapter, "device": "cpu", "lora_rank": 4},
        "data": {"train_users": 16},
        "summary": {"max_tokens": 8},
        "training": {"orders": orders, "rounds": 1, "joint_steps": 2, "save_steps": 2, **own, **training},
    }


def launch(processes: int, folder: Path, configs: list[dict[str, Any]], *options: str) -> subprocess.CompletedProcess:
    """Train configs by torchrun, in float64."""
    file = folder / "configs.json"
    file.write_text(json.dumps(configs))
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(ROOT / "tests" / "launched.py"), str(file), "float64", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)


def trained(processes: int, folder: Path, configs: list[dict[str, Any]], *options: str) -> None:
    done = launch(processes, folder, configs, *options)
    assert done.returncode == 0, done.stderr[-5000:]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def assert_same(one: Path, other: Path) -> None:
    """Two run directories hold the same summaries, metrics and weights."""
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.suffix in (".safetensors", ".jsonl"))
    assert files and files == sorted(
        file.relative_to(other) for file in other.rglob("*") if file.suffix in (".safetensors", ".jsonl")
    )
    for file in files:
        if file.suffix == ".safetensors":
            expected, found = load_file(one / file), load_file(other / file)
            assert expected.keys() == found.keys()
            for name, tensor in expected.items():
                assert torch.allclose(found[name], tensor, atol=CLOSE, rtol=CLOSE), (file, name)
            continue
        both = rows(one / file), rows(other / file)
        if file.name == "references.jsonl":  # in the order in which they were scored
            both = tuple(sorted(each, key=lambda row: str(row["targets"])) for each in both)  # type: ignore[assignment]
        assert len(both[0]) == len(both[1]), file
        for expected_row, found_row in zip(*both, strict=True):
            assert expected_row.keys() == found_row.keys()
            for key, value in expected_row.items():
                if key == "reward_accuracy" and abs(expected_row.get("margin", 1.0)) < CLOSE:
                    continue  # untrained weights: margins are 0 but for rounding, and their signs are noise
                if key != "seconds":
                    close = pytest.approx(value, rel=1e-6, abs=CLOSE) if isinstance(value, float) else value
                    assert found_row[key] == close, (file, expected_row, found_row)


def train_alone(configs: list[dict[str, Any]]) -> None:
    with in_precision("float64"):
        for one in configs:
            train(resolve(one))
