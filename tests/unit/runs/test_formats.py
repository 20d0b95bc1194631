"""Versions of file formats: stated in docs/compatibility.md, written, and newer ones refused."""

import json
import re
from pathlib import Path

import pytest

from popi.config import load_config
from popi.data import store
from popi.errors import RunError
from popi.profiles.answers import EXPORT_FORMAT
from popi.runs import formats
from popi.runs.rows import ResumableRows
from popi.runs.run_directory import RunDirectory
from popi.serving.store.migrate import known

PAGE = (Path(__file__).parents[3] / "docs" / "compatibility.md").read_text(encoding="utf-8")


def test_the_page_states_the_versions_of_the_code() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| (\d+) \|", PAGE, flags=re.MULTILINE)
    assert {name.partition(" (")[0]: int(version) for name, version in rows} == {
        "Run directory": formats.RUN_DIRECTORY,
        "Training checkpoint": formats.CHECKPOINT,
        "Resumable rows of evaluations, grids, studies and judgements": formats.ROWS,
        "Index of users": store.VERSION,
        "Exported profile": EXPORT_FORMAT,
        "Schema of the gateway's store": known()[-1].number,
    }


def test_a_run_directory(tmp_path: Path) -> None:
    run = RunDirectory.create(load_config(None, [f"root={tmp_path}", "name=run"]))
    file = run.path / formats.FILE
    assert json.loads(file.read_text()) == {"format": formats.RUN_DIRECTORY}
    RunDirectory.open(run.path)
    file.write_text('{"format": 99}')
    with pytest.raises(
        RunError, match="run: has format 99, but this popi only reads up to 1; it was made by a newer popi"
    ):
        RunDirectory.open(run.path)
    file.write_text("{}")
    with pytest.raises(RunError, match="format.json: damaged"):
        RunDirectory.open(run.path)
    file.unlink()  # as popi left it before there were versions
    assert RunDirectory.open(run.path).config == run.config


def test_a_run_that_was_killed_before_its_config_stood(tmp_path: Path) -> None:
    config = load_config(None, [f"root={tmp_path}", "name=run"])
    RunDirectory.create(config)
    (tmp_path / "run" / "config.json").unlink()
    assert (RunDirectory.resume(config).path / "config.json").is_file()


def test_a_checkpoint(tmp_path: Path) -> None:
    phase = RunDirectory.create(load_config(None, [f"root={tmp_path}", "name=run"])).phase("joint")
    phase.at(3).mkdir(parents=True)
    (phase.at(3) / "weights").write_text("w")
    phase.seal(3)
    sealed = json.loads((phase.at(3) / "complete").read_text())
    assert sealed["format"] == formats.CHECKPOINT and phase.checkpoint() == (phase.at(3), 3)
    (phase.at(3) / "complete").write_text(json.dumps(sealed | {"format": 3}))
    with pytest.raises(RunError, match="checkpoint-3: has format 3"):
        RunDirectory.open(tmp_path / "run").phase("joint").checkpoint()
    for earlier in ({"step": 3, "sha256": sealed["sha256"]}, 3):  # without a version; without checksums
        (phase.at(3) / "complete").write_text(json.dumps(earlier))
        assert RunDirectory.open(tmp_path / "run").phase("joint").checkpoint() == (phase.at(3), 3)


def test_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = ResumableRows(file, {"a": 1}, ["n"], resume=True)
    rows.add({"n": 1})
    rows.close()
    first, *others = file.read_text().splitlines()
    assert json.loads(first) == {"settings": {"a": 1}, "format": formats.ROWS}
    file.write_text("\n".join([json.dumps({"settings": {"a": 1}}), *others, ""]))  # without a version
    assert list(ResumableRows(file, {"a": 1}, ["n"], resume=True).rows) == [(1,)]
    file.write_text("\n".join([json.dumps({"settings": {"a": 1}, "format": 2}), *others, ""]))
    with pytest.raises(RunError, match="rows.jsonl: has format 2, but this popi only reads up to 1"):
        ResumableRows(file, {"a": 1}, ["n"], resume=True)
