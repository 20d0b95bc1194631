"""Checkpoints and saved models: what an interruption or a failing disk leaves, and what is used of it."""

import json
from pathlib import Path

import pytest

from popi.errors import RunError
from popi.runs.phase_directory import COMPLETE, PhaseDirectory


def checkpoint(phase: PhaseDirectory, step: int, complete: bool = True) -> Path:
    folder = phase.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    if complete:
        (folder / COMPLETE).write_text(str(step))
    return folder


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    phase = PhaseDirectory(tmp_path / "p")
    assert phase.checkpoint() is None
    checkpoint(phase, 2)
    ten = checkpoint(phase, 10)
    checkpoint(phase, 12, complete=False)
    assert phase.checkpoint() == (ten, 10)  # by number: "10" sorts before "2"
    assert sorted(folder.name for folder in phase.checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-2"]


def test_seal_keeps_the_newest(tmp_path: Path) -> None:
    phase = PhaseDirectory(tmp_path / "p")
    checkpoint(phase, 2)
    four = checkpoint(phase, 4, complete=False)
    phase.seal(4)
    assert phase.checkpoint() == (four, 4)
    checkpoint(phase, 6, complete=False)
    phase.seal(6)
    assert sorted(folder.name for folder in phase.checkpoints.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    phase.seal(6, limit=1)
    assert [folder.name for folder in phase.checkpoints.iterdir()] == ["checkpoint-6"]


@pytest.mark.parametrize("how", ["changed", "cut", "missing", "seal"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path: Path, how: str) -> None:
    phase, said = PhaseDirectory(tmp_path / "p"), []
    for step in (2, 4):
        folder = checkpoint(phase, step, complete=False)
        (folder / "model.safetensors").write_bytes(b"weights %d" % step)
        phase.seal(step)
    weights = phase.at(4) / "model.safetensors"
    if how == "changed":
        weights.write_bytes(b"weights 5")
    elif how == "cut":
        weights.write_bytes(b"wei")
    elif how == "missing":
        weights.unlink()
    else:
        (phase.at(4) / COMPLETE).write_text('{"step": 4, "sha')
    assert phase.checkpoint(said.append) == (phase.at(2), 2)
    assert len(said) == 1 and "damaged-4" in said[0] and str(phase.at(4)) in said[0]
    assert (phase.checkpoints / "damaged-4").is_dir()
    assert phase.checkpoint(said.append) == (phase.at(2), 2) and len(said) == 1


def test_a_checkpoint_of_an_earlier_version_has_no_checksums(tmp_path: Path) -> None:
    phase = PhaseDirectory(tmp_path / "p")
    folder = checkpoint(phase, 4)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert phase.checkpoint() == (folder, 4)


def test_save_is_whole_or_absent(tmp_path: Path) -> None:
    phase = PhaseDirectory(tmp_path / "p")

    def cut_short(path: Path) -> None:
        (path / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phase.save("generator", cut_short)
    assert not (phase.path / "generator").exists()
    phase.save("generator", lambda path: (path / "whole").write_text("") and None)
    assert [file.name for file in (phase.path / "generator").iterdir()] == ["whole"]
    assert not phase.done
    phase.finish({"steps": 1})
    assert phase.done


def test_without_an_intact_checkpoint_the_phase_stops_once_and_then_starts_again(tmp_path: Path) -> None:
    phase, said = PhaseDirectory(tmp_path / "p"), []
    for step in (2, 4):
        checkpoint(phase, step, complete=False)
        phase.seal(step)
        (phase.at(step) / "weights").write_text("other")
    with pytest.raises(RunError, match="No checkpoint of phase p is intact: .* damaged-4, damaged-2") as stopped:
        phase.checkpoint(said.append)
    assert "running the same command once more" in str(stopped.value) and len(said) == 1
    assert phase.checkpoint(said.append) is None
    assert sorted(folder.name for folder in phase.checkpoints.iterdir()) == ["damaged-2", "damaged-4"]


@pytest.mark.parametrize("how", ["changed", "cut", "missing"])
def test_a_model_that_has_changed_since_its_phase_ended_is_not_started_from(tmp_path: Path, how: str) -> None:
    phase = PhaseDirectory(tmp_path / "p")
    for component in ("generator", "inference_model"):
        phase.save(component, lambda folder: (folder / "model.safetensors").write_bytes(b"weights") and None)
    phase.finish({"steps": 1})
    phase.verify("generator")
    file = phase.path / "generator" / "model.safetensors"
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(b"weighty" if how == "changed" else b"")
    with pytest.raises(RunError, match=rf"{file}: (has changed|is missing).*delete the folder {phase.path}"):
        phase.verify("generator")
    phase.verify("inference_model")


def test_a_phase_of_an_earlier_version_has_no_checksums_and_a_damaged_record_is_named(tmp_path: Path) -> None:
    phase = PhaseDirectory(tmp_path / "p")
    phase.path.mkdir()
    done = phase.path / "done.json"
    done.write_text(json.dumps({"steps": 1}))
    phase.verify("generator")
    done.write_text("")
    with pytest.raises(RunError, match="done.json: damaged"):
        phase.verify("generator")
