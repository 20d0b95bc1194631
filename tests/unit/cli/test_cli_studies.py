"""`popi study` on the command line: senseless calls are refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from popi.config import resolve


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run directory whose method was trained, without weights."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(resolve({"name": "run", "root": str(tmp_path)}).model_dump_json())
    models = {"inference_model": "phases/inference-1/inference_model", "generator": "nano"}
    (path / "methods.json").write_text(json.dumps({"plug_and_play": models}))
    return path


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["evidence", "--signals", "1,x"], "--signals 1,x: must be integers of at least 0"),
        (["evidence", "--method", "oracle"], "--method oracle: can't be studied here"),
        (["evidence", "--method", "fspo"], "choose from raw_signals, untrained_summary, popi_plug_and_play"),
        (["streaming", "--batches", "0,1"], "--batches 0,1: must be integers of at least 1"),
        (["streaming", "--method", "raw_signals"], "choose from untrained_summary, popi_plug_and_play"),
        (["abstention", "--method", "raw_signals"], "choose from untrained_summary, popi_plug_and_play"),
        (["side-effects", "--facts", "nowhere.jsonl"], "nowhere.jsonl: can't be read"),
    ],
)
def test_refused(run: Any, trained: Path, args: list[str], words: str) -> None:
    code, out, err = run("study", *args, "--run", trained)
    assert (code, out) == (2, "")
    assert words in err and "Traceback" not in err


def test_a_run_that_is_none(run: Any, tmp_path: Path) -> None:
    for command in ("evidence", "streaming", "abstention", "side-effects"):
        code, _, err = run("study", command, "--run", tmp_path / "none")
        assert code == 2 and str(tmp_path / "none") in err


def test_check_goes_with_a_run(run: Any, tmp_path: Path) -> None:
    code, _, err = run("infer", tmp_path / "users.jsonl", "--model", "nano", "--check")
    assert code == 2 and "--run" in err
