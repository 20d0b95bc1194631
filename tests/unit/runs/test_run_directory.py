import json
import subprocess
import sys
from pathlib import Path

import pytest

from popi.config import RunConfig, resolve
from popi.errors import RunError
from popi.runs.files import locked, read_jsonl, write_jsonl
from popi.runs.run_directory import RunDirectory, config_differences


def config(root: Path, **settings: object) -> RunConfig:
    return resolve({"name": "r", "root": str(root), **settings})


def test_create_writes_the_config_and_overwrites_nothing(tmp_path: Path) -> None:
    run = RunDirectory.create(config(tmp_path, seed=3))
    assert RunDirectory.open(run.path).config.seed == 3
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(RunError, match="already exists"):
        RunDirectory.create(config(tmp_path, seed=4))
    assert (run.path / "config.json").read_bytes() == before
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="already exists"):
        RunDirectory.create(config(tmp_path).model_copy(update={"name": "taken"}))


def test_resume_says_what_differs(tmp_path: Path) -> None:
    RunDirectory.create(config(tmp_path))
    assert RunDirectory.resume(config(tmp_path)).path == tmp_path / "r"
    with pytest.raises(RunError, match=r"training\.inference\.steps: 60 -> 7") as error:
        RunDirectory.resume(config(tmp_path, training={"inference": {"steps": 7}}, seed=1))
    assert "seed: 0 -> 1" in str(error.value)
    patient = config(tmp_path, model={"api_generator": {"retries": 25}})
    assert RunDirectory.resume(patient).config.model.api_generator.retries == 25, "it affects no result"
    moved = config(tmp_path).model_copy(update={"root": "elsewhere"})
    assert not config_differences(config(tmp_path), moved)


def test_resume_of_a_run_killed_before_it_began(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json.tmp").write_text('{"na')
    assert (RunDirectory.resume(config(tmp_path)).path / "config.json").is_file()


def test_resume_leaves_a_foreign_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not a run directory"):
        RunDirectory.resume(config(tmp_path))
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def test_open_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        RunDirectory.open(tmp_path / "none")


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, [{"a": 1}, {"a": 2}])
    with file.open("a") as stream:
        stream.write('{"a": ')
    assert read_jsonl(file) == [{"a": 1}, {"a": 2}]
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_log_and_rewind(tmp_path: Path) -> None:
    run = RunDirectory.create(config(tmp_path))
    for phase in ("one", "two"):
        for step in (1, 2, 3):
            run.log({"phase": phase, "step": step, "loss": float("nan") if step == 1 else 0.5})
    write_jsonl(run.phase("two").samples, [{"step": step} for step in (1, 2, 3)])
    run.rewind("two", 2)
    run.close()
    rows = read_jsonl(run.log_file)
    assert [(row["phase"], row["step"]) for row in rows] == [("one", 1), ("one", 2), ("one", 3), ("two", 1), ("two", 2)]
    assert rows[0]["loss"] is None and "NaN" not in run.log_file.read_text()
    assert read_jsonl(run.phase("two").samples) == [{"step": 1}, {"step": 2}]
    run.rewind("two", 0)
    assert len(read_jsonl(run.log_file)) == 3


def test_models_of_a_method(tmp_path: Path) -> None:
    run = RunDirectory.create(config(tmp_path))
    with pytest.raises(RunError, match="no method has finished training yet; .*--resume"):
        run.models()
    run.set_method("plug_and_play", "phases/inference-1/inference_model", "nano")
    assert run.models() == (str(run.path / "phases/inference-1/inference_model"), "nano")
    run.set_method("alternating", "phases/inference-1/inference_model", "phases/generator-1/generator")
    assert run.models()[1] == str(run.path / "phases/generator-1/generator")  # the fullest one
    assert run.models("plug_and_play")[1] == "nano"
    with pytest.raises(RunError, match="'simultaneous' was not trained here; trained: plug_and_play, alternating"):
        run.models("simultaneous")
    assert list(json.loads((run.path / "methods.json").read_text())) == ["plug_and_play", "alternating"]


@pytest.mark.parametrize("text", ["{", "[]", '{"plug_and_play": {}}', '{"plug_and_play": 3}'])
def test_a_damaged_methods_file_is_named(tmp_path: Path, text: str) -> None:
    run = RunDirectory.create(config(tmp_path))
    (run.path / "methods.json").write_text(text)
    with pytest.raises(RunError, match="methods.json: damaged"):
        run.models()


def test_a_config_that_is_no_table_and_a_file_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        RunDirectory.resume(config(tmp_path))
    assert (tmp_path / "r").read_text() == "x"
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(RunError, match="contains list, not settings"):
        RunDirectory.open(tmp_path)


def test_two_processes_in_one_directory(tiny_base: Path, tmp_path: Path) -> None:
    """Both would append to one log and delete each other's checkpoints."""
    from popi.evaluation.runner import evaluate
    from popi.training.train import train

    held = "import sys, time; from pathlib import Path; from popi.runs.files import locked\n"
    held += "with locked(Path(sys.argv[1])), locked(Path(sys.argv[2])): print('held', flush=True); time.sleep(60)"
    config = resolve({"name": "r", "root": str(tmp_path), "model": {"base": str(tiny_base), "device": "cpu"}})
    folders = [tmp_path / "r", tmp_path / "s" / "evaluation"]
    other = subprocess.Popen([sys.executable, "-c", held, *map(str, folders)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in use by another process"):
            train(config, resume=True)
        with pytest.raises(RunError, match="in use by another process"):
            evaluate(RunDirectory(tmp_path / "s", config))
    finally:
        other.kill()
        other.wait()
    for folder in folders:
        with locked(folder):  # a kill frees it
            pass
    assert not (tmp_path / "r").exists()
