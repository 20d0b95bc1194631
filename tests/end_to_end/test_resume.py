"""`popi train`, killed with SIGKILL at random moments and resumed, ends in the unbroken run's weights, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from popi.runs.files import read_jsonl

ALL = [
    "population_dpo",
    "fspo",
    "user_embedding",
    "user_embedding_from_signals",
    "plug_and_play",
    "alternating",
    "simultaneous",
]
SETTINGS = {
    "data": {"train_users": 16},
    "signals": {"template": "nano"},
    "summary": {"max_tokens": 6},
    "model": {"device": "cpu"},
    "training": {
        "orders": ALL,
        "joint_steps": 6,
        "save_steps": 2,
        "inference": {"steps": 6, "users_per_step": 3, "group_size": 3, "targets_per_summary": 2, "warmup_steps": 1},
        "generator": {"steps": 6, "batch_size": 4, "warmup_steps": 1},
    },
}


PARTS = {"inference": {"micro_batch": 1}, "generator": {"micro_batch": 2}}


def config_file(
    folder: Path, name: str, base: Path, adapter: str, orders: list[str], parts: dict[str, dict[str, int]]
) -> Path:
    settings = json.loads(json.dumps(SETTINGS)) | {"name": name, "root": str(folder)}
    settings["model"] |= {"base": str(base), "adapter": adapter}
    settings["training"]["orders"] = orders
    for phase, more in parts.items():
        settings["training"][phase] |= more
    file = folder / f"{name}.json"
    file.write_text(json.dumps(settings))
    return file


def start(config: Path, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "popi.cli", "train", str(config)] + ["--resume"] * resume
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-3000:]


def kill_after(process: subprocess.Popen[bytes], run: Path, rows: int, delay: float) -> None:
    """SIGKILL once the run has logged `rows` more steps than now, and `delay` seconds; or when it has ended."""
    log = run / "log.jsonl"
    wanted = len(read_jsonl(log)) + rows
    while process.poll() is None and (rows and len(read_jsonl(log)) < wanted):
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()  # type: ignore[union-attr]


def result(run: Path) -> dict[str, object]:
    """What must not depend on kills: weights, sampled summaries, metrics except for the time they took."""
    weights = {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*.safetensors"))}
    tables = {str(p.relative_to(run)): read_jsonl(p) for p in sorted(run.rglob("*.jsonl"))}
    for row in tables["log.jsonl"]:
        row.pop("seconds")
    return {"weights": weights, "tables": tables, "methods": (run / "methods.json").read_text()}


def killed_and_resumed(
    tmp_path: Path,
    base: Path,
    adapter: str,
    orders: list[str],
    kills: int,
    seed: int,
    parts: dict[str, dict[str, int]] | None = None,
) -> None:
    whole = start(config_file(tmp_path, "whole", base, adapter, orders, parts or {}), resume=False)
    broken = config_file(tmp_path, "broken", base, adapter, orders, parts or {})
    rng = random.Random(seed)
    for _ in range(kills):
        process = start(broken, resume=True)
        kill_after(process, tmp_path / "broken", rows=rng.randint(1, 9), delay=rng.random() * 0.2)
    finish(start(broken, resume=True))
    finish(whole)
    unbroken, resumed = result(tmp_path / "whole"), result(tmp_path / "broken")
    assert unbroken["weights"] and unbroken["weights"].keys() == resumed["weights"].keys()  # type: ignore[attr-defined]
    for part in unbroken:
        assert unbroken[part] == resumed[part], part


@pytest.mark.slow
def test_killed_inside_steps_of_parts(tmp_path: Path, tiny_base: Path) -> None:
    killed_and_resumed(tmp_path, tiny_base, "none", ["alternating"], kills=3, seed=4, parts=PARTS)


def test_killed_at_random_moments(tmp_path: Path, tiny_base: Path) -> None:
    killed_and_resumed(tmp_path, tiny_base, "none", ["fspo", "alternating"], kills=2, seed=0)


@pytest.mark.slow
def test_killed_at_random_moments_in_every_mode(tmp_path: Path, tiny_base: Path) -> None:
    killed_and_resumed(tmp_path, tiny_base, "none", ALL, kills=3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("order", ALL)
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_killed_ten_times(tmp_path: Path, tiny_base: Path, order: str, adapter: str) -> None:
    killed_and_resumed(tmp_path, tiny_base, adapter, [order], kills=10, seed=ALL.index(order))
