"""What training costs chosen responses: the figures by hand, and the phase that ends where they lost too much."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from popi.config import RunConfig, resolve
from popi.engine.scoring import ScoringItem, pair_logps_plain
from popi.engine.tree import pack
from popi.runs.files import read_jsonl
from popi.runs.phase_directory import PhaseDirectory
from popi.runs.run_directory import RunDirectory
from popi.training.phases.drift import chosen_loss, chosen_tokens, drift, recent_loss
from popi.training.phases.joint import JointTrainer
from popi.training.train import train


def test_figures_worked_by_hand() -> None:
    trees = pack([ScoringItem((1, 2), (3, 4, 5), (6,)).tree, ScoringItem((1,), (7,), (8, 9)).tree], 0)
    tokens = chosen_tokens(trees)
    assert tokens.tolist() == [3, 1]
    chosen, reference, base = torch.tensor([-5.0, -2.0]), torch.tensor([-6.0, -4.0]), torch.tensor([-4.0, -2.5])
    # 1 and 2 nats more than on the plain prompt; 1 less and a half more than the base that reads the same
    assert drift(chosen, reference, tokens) == {"chosen_drift": 1.5, "chosen_drift_per_token": 0.75}
    assert chosen_loss(chosen, base, tokens) == pytest.approx((1 - 0.5) / 4)
    assert recent_loss([{"loss": 1.0}]) is None
    history = [{"chosen_loss": value, "step": i} for i, value in enumerate((9.0, 0.1, 0.2, 0.3, 0.4))]
    assert recent_loss([*history, {"loss": 1.0}]) == pytest.approx(0.25)  # of the newest four


def config(base: Path, root: Path, name: str, adapter: str = "none", order: str = "fspo", **training: Any) -> RunConfig:
    """A generator so badly trained that everything it writes becomes unlikely."""
    flat = {"steps": 16, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    generator = flat | {"batch_size": 4, "learning_rate": 0.1} | training.pop("generator", {})
    inference = flat | {"users_per_step": 3, "group_size": 3, "targets_per_summary": 2, "learning_rate": 1e-4}
    both = {"inference": inference, "generator": generator, "joint_steps": 16, "orders": [order], "save_steps": 4}
    return resolve(
        {
            "name": name,
            "root": str(root),
            "model": {"base": str(base), "device": "cpu", "adapter": adapter},
            "data": {"train_users": 14},
            "signals": {"token_budget": 200},
            "summary": {"max_tokens": 6},
            "training": both | training,
        }
    )


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run / "log.jsonl") if "loss" in row]


def done(run: Path, phase: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "phases" / phase / "done.json").read_text())
    return facts


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a limit: all its checkpoints, and what it lost."""
    settings = config(tiny_base, tmp_path_factory.mktemp("whole"), "run", generator={"max_chosen_loss": 0.0})
    measured = settings.model_copy(
        update={
            "training": settings.training.model_copy(
                update={
                    "save_total_limit": 9,
                    "generator": settings.training.generator.model_copy(update={"max_chosen_loss": 1e6}),
                }
            )
        }
    )
    return train(measured)


def test_loss_is_measured_every_few_steps_and_drift_in_each(whole: Path) -> None:
    rows = steps_of(whole)
    assert len(rows) == 16 and [row["step"] for row in rows if "chosen_loss" in row] == [5, 10, 15]
    assert all({"chosen_drift", "chosen_drift_per_token"} <= row.keys() for row in rows)
    losses = [row["chosen_loss"] for row in rows if "chosen_loss" in row]
    assert losses[0] > 0 and losses[-1] > 0, "trained so, the chosen responses lose"
    assert "saved_step" not in done(whole, "fspo") and not list(whole.rglob("start.safetensors"))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("killed", [None, 7, "end"])
def test_a_phase_ends_at_the_last_good_weights_also_when_it_was_killed(
    whole: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int | str | None
) -> None:
    """Good at step 4, where nothing is measured yet; at step 8 what was measured in step 5 is too much."""
    limit = next(row["chosen_loss"] for row in steps_of(whole) if row["step"] == 5) / 2
    settings = config(tiny_base, tmp_path, "run", generator={"max_chosen_loss": limit})
    if killed is not None:

        def log(self: Any, row: dict[str, Any], real: Any = RunDirectory.log) -> None:
            if row["step"] == killed:
                raise Killed
            real(self, row)

        def save(self: Any, component: str, write: Any) -> Path:
            raise Killed  # training has ended, nothing of the phase is saved

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(*((PhaseDirectory, "save", save) if killed == "end" else (RunDirectory, "log", log)))
            train(settings)
    run = train(settings, resume=killed is not None)
    facts = done(run, "fspo")
    assert (facts["steps"], facts["saved_step"]) == (8, 4) and facts["chosen_loss"] == pytest.approx(2 * limit)
    assert [row["step"] for row in steps_of(run)] == list(range(1, 9))
    good = load_file(whole / "phases/fspo/checkpoints/checkpoint-4/model.safetensors")
    saved = load_file(run / "phases/fspo/generator/model.safetensors")
    assert all(torch.equal(saved[name], weights) for name, weights in good.items())
    assert not (run / "phases/fspo/checkpoints").exists()


def test_without_a_good_checkpoint_the_weights_stay_as_they_were(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(config(tiny_base, tmp_path, "run", generator={"max_chosen_loss": 1e-3}, save_steps=6))
    facts = done(run, "fspo")
    assert (facts["steps"], facts["saved_step"]) == (6, 0)
    base, saved = (load_file(p / "model.safetensors") for p in (tiny_base, run / "phases/fspo/generator"))
    assert all(torch.equal(base[name], saved[name]) for name in saved)
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "fspo: stopped at step 6 of 16 and saved the weights of step 0" in told and "max_chosen_loss is 0.001" in told
    )


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_loss_is_against_the_base_that_reads_the_same(tiny_base: Path, tmp_path: Path, adapter: str) -> None:
    """An untrained generator has lost nothing, though a context moves what it says."""
    generator = {"learning_rate": 1e-6, "max_chosen_loss": 1.0}
    settings = config(tiny_base, tmp_path, "run", adapter, "simultaneous", generator=generator, joint_steps=5)
    run = train(settings)
    rows = steps_of(run)
    assert [row["step"] for row in rows if "chosen_loss" in row] == [5]
    assert rows[4]["chosen_loss"] == pytest.approx(0.0, abs=1e-3)
    assert all(abs(row["chosen_drift"]) > 1e-2 for row in rows)


def test_steps_of_the_generator_are_spread_evenly(tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tiny_base, tmp_path, "run", order="simultaneous", joint_generator_steps=6)
    assert settings.training.generator_steps_of_joint == 6
    rows = steps_of(train(settings))
    trained = [row["step"] for row in rows if "generator_loss" in row]
    assert trained == [3, 6, 8, 11, 14, 16]  # where ⌊6·step/16⌋ grows
    assert [row["step"] for row in rows if "generator_grad_norm" in row] == trained
    assert all(row["grad_norm"] > 0 for row in rows)
    measured = [row["step"] for row in rows if "chosen_loss" in row]
    assert measured == [14]  # the fifth of its own steps


def test_as_many_steps_as_alternating() -> None:
    def steps(**training: Any) -> int:
        return resolve({"training": training}).training.generator_steps_of_joint

    assert steps(joint_steps=320, generator={"steps": 80}) == 80
    assert steps(joint_steps=320, generator={"steps": 80}, rounds=2) == 160
    assert steps(joint_steps=60, generator={"steps": 80}) == 60
    assert steps(joint_steps=320, generator={"steps": 80}, joint_generator_steps=320) == 320


def test_a_resting_generator_moves_not_at_all(bench: Callable[..., Any]) -> None:
    from popi.training.reward import SummaryReward

    b = bench({"inference_model", "generator"}, joint_generator_steps=1)
    trainer = JointTrainer(
        generator=b.parts.generator.local,
        local=b.parts.inference_model.local,
        rows=b.rows,
        reward=SummaryReward(b.parts.generator, None, 0.1),
        anchor=b.parts.base.local.model,
        **b.common("joint"),
    )
    before = {name: p.detach().clone() for name, p in trainer.scorer.components()["generator"].items()}
    trainer.create_optimizer()
    trainer.training_step(trainer.scorer, list(trainer.rows[:3]))  # the first of two, of which the last trains it
    trainer.optimizer.step()
    parts = trainer.scorer.components()
    assert all(torch.equal(p, before[name]) for name, p in parts["generator"].items())
    assert trainer.scores is None and any(p.grad is not None for p in parts["inference_model"].values())
    assert trainer.generator_update(1) is None and trainer.generator_update(2) == 1


def test_plain_sums_agree(tiny_base: Path) -> None:
    from popi.generator import Generator
    from popi.training.phases.drift import base_logps

    generator = Generator.from_pretrained(tiny_base, device="cpu")
    items = [ScoringItem((1, 2, 3), (4, 5), (6,)), ScoringItem((2, 3), (7,), (8, 9))]
    found = base_logps(generator.local.model, pack([item.tree for item in items], generator.local.pad_id))
    with torch.no_grad():
        expected = pair_logps_plain(generator.local.model, items)[0]
    assert torch.allclose(found, expected, atol=1e-4)
