"""`popi train --seeds`: a run for each seed and one table."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from popi.config import load_config
from popi.evaluation.seeds import of_seed, train_seeds
from popi.runs.run_directory import RunDirectory


def test_popi_train_with_seeds(run: Any, tiny_base: Path, tmp_path: Path) -> None:
    """One seed is there, half trained; the others are not."""
    phase = {"steps": 1, "users_per_step": 2, "group_size": 2, "warmup_steps": 0}
    settings = {
        "name": "s",
        "root": str(tmp_path / "runs"),
        "model": {"base": str(tiny_base), "device": "cpu"},
        "data": {"train_users": 4, "test_users": 3},
        "summary": {"max_tokens": 4},
        "evaluation": {"examples": 1, "answer_tokens": 2, "prompt_users": 4},
        "training": {"orders": ["plug_and_play"], "inference": phase},
    }
    file = tmp_path / "c.json"
    file.write_text(json.dumps(settings))
    config = load_config(file)
    RunDirectory.create(of_seed(config, 1))
    code, _, err = run("train", file, "--seeds", "0-1")
    assert code == 2 and "s-seed1: exists already" in err
    assert not (tmp_path / "runs" / "s-seed0").exists()
    code, out, err = run("train", file, "--seeds", "0-1", "--resume")
    assert code == 0, err
    assert "means over 2 seeds (0, 1)" in out and "s-seeds.json" in err
    metrics = [json.loads((tmp_path / "runs" / f"s-seed{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
    saved = json.loads((tmp_path / "runs" / "s-seeds.json").read_text())
    for method, figures in saved["methods"].items():
        values = [one["methods"][method]["reward_accuracy"]["value"] for one in metrics]
        assert figures["reward_accuracy"]["of_seeds"] == values
        assert figures["reward_accuracy"]["value"] == pytest.approx(sum(values) / 2)
    seeds = [json.loads((tmp_path / "runs" / f"s-seed{s}" / "config.json").read_text())["seed"] for s in (0, 1)]
    assert seeds == [0, 1]
    again = train_seeds(config, [0, 1], True, Console(quiet=True))
    assert again["methods"] == saved["methods"]
