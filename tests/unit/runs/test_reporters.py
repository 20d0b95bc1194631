"""Metrics go where `training.report_to` says: the real services, offline."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from popi.config import resolve
from popi.errors import ConfigError
from popi.runs.run_directory import RunDirectory
from popi.training.train import refuse

ROW = {"phase": "inference-1", "step": 1, "reward": -3.5, "loss": None}
SAMPLES = [{"step": 1, "user_id": "ana", "summary": "likes it short", "reward": -3.25}]

SCRIPT = """
import json, sys
from popi.config import resolve
from popi.runs.run_directory import RunDirectory
root, name, row, samples = json.loads(sys.argv[1])
config = resolve({"name": "r", "root": root, "training": {"report_to": [name], "report_project": "mine"}})
run = RunDirectory.create(config)
run.show("inference-1", 1, samples)
run.log(row)
run.log(row | {"phase": "generator-1"})
run.close()
run = RunDirectory.open(run.path)  # a resumed run
run.log(row | {"step": 2, "reward": -3.125})
run.close()
if name == "trackio":
    from trackio.sqlite_storage import SQLiteStorage
    runs = SQLiteStorage.get_runs("mine")
    print(json.dumps({one: SQLiteStorage.get_logs("mine", one) for one in runs}, default=str))
"""


def reported(root: Path, name: str) -> str:
    """What a run prints that reports to a service, in a process of its own: services read the environment once."""
    pytest.importorskip(name)
    asked = json.dumps([str(root), name, ROW, SAMPLES])
    offline = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(root / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, asked], env=os.environ | offline, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_wandb_offline(tmp_path: Path) -> None:
    assert reported(tmp_path, "wandb") == ""
    folders = sorted((tmp_path / "r" / "wandb").glob("offline-run-*"))
    identity = (tmp_path / "r" / "report_id").read_text()
    assert {folder.name.rpartition(f"-{identity}-")[2] for folder in folders} == {"inference-1", "generator-1"}
    files = [file.read_bytes() for folder in folders for file in folder.glob("*.wandb")]
    assert any(b"-3.5" in file and b"reward" in file for file in files) and any(b"-3.125" in file for file in files)
    [table] = (tmp_path / "r" / "wandb").glob("offline-run-*/files/media/table/*.table.json")
    shown = json.loads(table.read_text())
    assert (shown["columns"], shown["data"]) == (list(SAMPLES[0]), [list(SAMPLES[0].values())])


def test_trackio(tmp_path: Path) -> None:
    runs = json.loads(reported(tmp_path, "trackio"))
    identity = (tmp_path / "r" / "report_id").read_text()
    assert runs.keys() == {f"r-{identity}-inference-1", f"r-{identity}-generator-1"}
    rows = runs[f"r-{identity}-inference-1"]
    assert [(row["step"], row["reward"]) for row in rows if "reward" in row] == [(1, -3.5), (2, -3.125)]
    assert "likes it short" in json.dumps([row["summaries"] for row in rows if "summaries" in row])


@pytest.mark.parametrize(("asked", "written"), [(None, True), (["tensorboard"], True), ([], False)])
def test_tensorboard(tmp_path: Path, asked: Any, written: bool) -> None:
    run = RunDirectory.create(resolve({"name": "r", "root": str(tmp_path), "training": {"report_to": asked}}))
    run.log(ROW)
    run.show("inference-1", 1, SAMPLES)
    run.close()
    folder = run.path / "tensorboard" / "inference-1"
    assert folder.exists() == written
    if written:
        events = EventAccumulator(str(folder)).Reload()
        assert [event.value for event in events.Scalars("reward")] == [-3.5]


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_an_absent_package_is_refused_by_name_at_the_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *rest: None if asked == name else real(asked, *rest))
    with pytest.raises(ConfigError, match=f"the package {name} is not installed; pip install {name}"):
        refuse(resolve({"training": {"report_to": [name]}}))
    refuse(resolve({}))
