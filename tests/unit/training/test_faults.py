"""Faults while a run trains: each ends in the right weights, or in a clear stop from which it resumes to them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from popi.config import RunConfig, resolve
from popi.errors import RunError
from popi.generator import Generator
from popi.runs.run_directory import RunDirectory
from popi.training.phases import trainer as phase_trainer
from popi.training.phases.inference import InferenceTrainer
from popi.training.phases.trainer import share_random_state
from popi.training.reward import SummaryReward
from popi.training.train import train

WEIGHTS = "phases/inference-1/inference_model/model.safetensors"


def config(base: Path, root: Path, **changes: Any) -> RunConfig:
    inference = {"steps": 6, "warmup_steps": 0, "users_per_step": 2, "group_size": 3, "targets_per_summary": 2}
    return resolve(
        {
            "name": "run",
            "root": str(root),
            "model": {"base": str(base), "device": "cpu"},
            "data": {"train_users": 8},
            "summary": {"max_tokens": 6},
            "training": {
                "orders": ["plug_and_play"],
                "save_steps": 1,
                "inference": inference | {"learning_rate": 3e-3},
            },
        }
        | changes
    )


def weights(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "run" / WEIGHTS)


@pytest.fixture(scope="module")
def unbroken(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing befell."""
    root = tmp_path_factory.mktemp("unbroken")
    train(config(tiny_base, root))
    return weights(root)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The disk takes so many checkpoints and is full then, as safetensors reports it."""
    room = {"left": 10**9}
    real = phase_trainer.save_file

    def save_file(tensors: Any, path: Any) -> None:
        if not room["left"]:
            Path(path).write_bytes(b"half of it")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        room["left"] -= 1
        real(tensors, path)

    monkeypatch.setattr(phase_trainer, "save_file", save_file)
    yield room


def test_a_full_disk_stops_the_run_and_it_resumes(
    tiny_base: Path, tmp_path: Path, disk: dict[str, int], unbroken: dict[str, torch.Tensor]
) -> None:
    disk["left"] = 3
    with pytest.raises(RunError, match="the disk is full; completed work is safe") as stopped:
        train(config(tiny_base, tmp_path))
    assert str(stopped.value).endswith(f"popi train {tmp_path / 'run' / 'config.json'} --resume")
    phase = RunDirectory.open(tmp_path / "run").phase("inference-1")
    found = phase.checkpoint()
    assert found is not None and found[1] == 3
    with pytest.raises(RunError, match="the disk is full"):
        train(config(tiny_base, tmp_path), resume=True)
    disk["left"] = 10**9
    train(config(tiny_base, tmp_path), resume=True)
    assert all(torch.equal(weights(tmp_path)[name], one) for name, one in unbroken.items())


def test_another_failure_of_the_disk_is_no_full_disk(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_file(tensors: Any, path: Any) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(phase_trainer, "save_file", save_file)
    with pytest.raises(OSError, match="Input/output error"):
        train(config(tiny_base, tmp_path))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_damaged_checkpoint_is_not_trained_on(
    tiny_base: Path, tmp_path: Path, disk: dict[str, int], unbroken: dict[str, torch.Tensor], file: str
) -> None:
    disk["left"] = 4
    with pytest.raises(RunError, match="disk is full"):
        train(config(tiny_base, tmp_path))
    disk["left"] = 10**9
    phase = RunDirectory.open(tmp_path / "run").phase("inference-1")
    damaged = phase.at(4) / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    damaged.write_bytes(content)
    train(config(tiny_base, tmp_path), resume=True)
    assert all(torch.equal(weights(tmp_path)[name], one) for name, one in unbroken.items())


def test_a_reward_that_is_no_number_stops_the_run(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, torch.Tensor]
) -> None:
    real = InferenceTrainer.score

    def score(self: InferenceTrainer, *arguments: Any) -> Any:
        scores = real(self, *arguments)
        if self.state.global_step == 3:
            scores.rewards[0] = math.nan
        return scores

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"inference-1, step 4: .*nan"):
        patch.setattr(InferenceTrainer, "score", score)
        train(config(tiny_base, tmp_path))
    found = RunDirectory.open(tmp_path / "run").phase("inference-1").checkpoint()
    assert found is not None and found[1] == 3, "no checkpoint holds what came of it"
    train(config(tiny_base, tmp_path), resume=True)
    assert all(torch.equal(weights(tmp_path)[name], one) for name, one in unbroken.items())


def test_a_margin_that_is_no_number_names_its_user_and_prompt(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, torch.Tensor]
) -> None:
    real, users = SummaryReward.score, list[str]()

    def score(self: SummaryReward, summaries: Any, rows: Any, tokens: Any) -> Any:
        scores = real(self, summaries, rows, tokens)
        users.append(rows[-1].user_id)
        if len(users) == 6:
            scores.margins[-1] = -math.inf
            scores.rewards[-1] = -math.inf
        return scores

    with monkeypatch.context() as patch, pytest.raises(RunError) as stopped:
        patch.setattr(SummaryReward, "score", score)
        train(config(tiny_base, tmp_path))
    message = str(stopped.value)
    assert f"user {users[-1]!r} has the margin -inf on the prompt '" in message and "inference-1, step " in message
    assert message.endswith(f"popi train {tmp_path / 'run' / 'config.json'} --resume")
    train(config(tiny_base, tmp_path), resume=True)
    assert all(torch.equal(weights(tmp_path)[name], one) for name, one in unbroken.items())


def test_reference_log_probs_that_are_no_numbers_are_not_stored(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair_logps(self: Generator, targets: Any, *arguments: Any) -> Any:
        return [math.nan] * len(targets), [0.0] * len(targets)

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"reference log-probs of user '.*' are nan and"):
        patch.setattr(Generator, "pair_logps", pair_logps)
        train(config(tiny_base, tmp_path))
    train(config(tiny_base, tmp_path), resume=True)
    assert "NaN" not in (tmp_path / "run" / "references.jsonl").read_text()


def test_a_later_phase_does_not_start_from_a_damaged_model(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(job: Any) -> Any:
        raise Stop

    inference = {"steps": 1, "warmup_steps": 0, "users_per_step": 2, "group_size": 2}
    settings = config(tiny_base, tmp_path, training={"orders": ["alternating"], "inference": inference})
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("popi.training.trainers.generator_trainer", stop)
        train(settings)
    file = tmp_path / "run" / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match="model.safetensors: has changed since it was written"):
        train(settings, resume=True)


def test_random_states_for_another_number_of_processes_are_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are added to a checkpoint that is complete already, so nothing else would detect half of one."""
    torch.save({"cpu": torch.random.get_rng_state()}, tmp_path / "rng_state.pth")
    whole = torch.save

    def save(state: Any, file: Path) -> None:
        whole(state, file)
        Path(file).write_bytes(Path(file).read_bytes()[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", save)
        share_random_state(tmp_path, 2)
    share_random_state(tmp_path, 2)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"rng_state_{rank}.pth")["cpu"], torch.random.get_rng_state())
