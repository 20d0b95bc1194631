"""Evaluation on held-out users while a phase trains: the best weights are saved, and the phase may end early."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from popi.config import RunConfig, resolve
from popi.data.users import users_of
from popi.errors import ConfigError, DataError
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.runs.files import read_jsonl
from popi.runs.phase_directory import PhaseDirectory
from popi.runs.run_directory import RunDirectory
from popi.training.components import load_components
from popi.training.objective import margin, summary_reward
from popi.training.planning.plan import refuse_settings
from popi.training.references import References
from popi.training.reward import SummaryReward
from popi.training.rows import hold_out, inference_rows
from popi.training.train import train

ALL = ["fspo", "user_embedding", "user_embedding_from_signals", "alternating", "simultaneous"]


def config(base: Path, root: Path, name: str = "run", orders: Any = ("population_dpo",), **training: Any) -> RunConfig:
    phase = {"steps": 6, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    inference = phase | {"users_per_step": 3, "group_size": 3, "targets_per_summary": 2, "learning_rate": 3e-3}
    generator = phase | {
        "batch_size": 4,
        "learning_rate": 6e-2,
        "max_chosen_loss": 0.0,
    }  # so high that it soon gets worse
    both = {"inference": inference, "generator": generator, "joint_steps": 4, "orders": list(orders)}
    return resolve(
        {
            "name": name,
            "root": str(root),
            "model": {"base": str(base), "device": "cpu"},
            "data": {"train_users": 14},
            "summary": {"max_tokens": 6},
            "training": both | {"save_steps": 2, "eval_steps": 1, "eval_users": 4} | training,
        }
    )


def evaluations(run: Path, phase: str) -> dict[int, float]:
    return {row["step"]: row["eval_reward"] for row in read_jsonl(run / "log.jsonl") if "eval_reward" in row}


def done(run: Path, phase: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "phases" / phase / "done.json").read_text())
    return facts


def test_the_generator_that_is_saved_is_the_best(tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tiny_base, tmp_path)
    run = train(settings)
    seen, facts = evaluations(run, "population-dpo"), done(run, "population-dpo")
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    assert facts["best_step"] == max(seen, key=lambda step: seen[step]) < 6, "the last step must not be the best"
    users, held = hold_out(users_of(settings, "train").users, 4, 0)
    assert len(held) == 4 and not {u.user_id for u in users} & {u.user_id for u in held}
    folders = (tiny_base, run / "phases/population-dpo/generator")
    base, saved = (Generator.from_pretrained(folder, device="cpu") for folder in folders)
    targets = [target for user in held for target in user.targets]
    logps = [torch.tensor(one) for g in (saved, base) for one in g.pair_logps(targets, [None] * len(targets))]
    reward = float(summary_reward(margin(*logps), settings.training.inference.beta).mean())
    assert reward == pytest.approx(facts["best_metric"], abs=1e-4)
    assert abs(reward - seen[6]) > 1e-2
    drifts = {row["step"]: row["eval_chosen_drift"] for row in read_jsonl(run / "log.jsonl") if "eval_reward" in row}
    assert drifts[facts["best_step"]] == pytest.approx(float((logps[0] - logps[2]).mean()), abs=1e-4)


def test_the_inference_model_that_is_saved_is_the_best(tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tiny_base, tmp_path, orders=["plug_and_play"])
    run = train(settings)
    seen, facts = evaluations(run, "inference-1"), done(run, "inference-1")
    assert facts["best_metric"] == max(seen.values()) and len(set(seen.values())) > 1
    parts = load_components(settings, set(), run / "phases/inference-1/inference_model", None)
    held = hold_out(users_of(settings, "train").users, 4, 0)[1]
    references = References(run / "references.jsonl")
    seed = done(run, "inference-1")["seed"]
    rows = inference_rows(held, range(4), parts.inference_model, references, 2, seed)
    local = parts.inference_model.local
    ids = [one[0] for one in local.generate([row.prompt_ids for row in rows], max_new_tokens=6)]
    reward = SummaryReward(parts.generator, None, settings.training.inference.beta)
    scores = reward.score([local.decode(one) for one in ids], rows, [local.length(one) for one in ids])
    assert float(scores.rewards.mean()) == pytest.approx(facts["best_metric"], abs=1e-4)


def test_the_best_may_be_before_anything_changed(tiny_base: Path, tmp_path: Path) -> None:
    generator = {"steps": 3, "warmup_steps": 1, "batch_size": 4, "learning_rate": 1.0}  # none in step 1, then too much
    run = train(config(tiny_base, tmp_path, generator=generator))
    assert done(run, "population-dpo")["best_step"] == 1
    base, saved = (
        load_file(folder / "model.safetensors") for folder in (tiny_base, run / "phases/population-dpo/generator")
    )
    assert all(torch.equal(base[name], saved[name]) for name in saved)


def test_nobody_set_aside_is_trained_on(tiny_base: Path, tmp_path: Path) -> None:
    settings = config(tiny_base, tmp_path, orders=["plug_and_play"])
    run = train(settings)
    held = {user.user_id for user in hold_out(users_of(settings, "train").users, 4, 0)[1]}
    trained = {row["user_id"] for row in read_jsonl(run / "phases/inference-1/samples.jsonl")}
    assert trained and not trained & held


def test_evaluating_changes_nothing_of_the_training(tiny_base: Path, tmp_path: Path) -> None:
    often, seldom = ((name, ["plug_and_play"]) for name in ("often", "seldom"))
    runs = [train(config(tiny_base, tmp_path, *often, eval_steps=1))]
    runs.append(train(config(tiny_base, tmp_path, *seldom, eval_steps=6)))
    logs = [[row for row in read_jsonl(run / "log.jsonl") if "loss" in row] for run in runs]
    for row in (*logs[0], *logs[1]):
        del row["seconds"]
    assert logs[0] == logs[1]


class Killed(BaseException):
    pass


def result(run: Path) -> dict[str, Any]:
    log = [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(run / "log.jsonl")]
    weights = {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.glob("phases/*/*/model.safetensors"))}
    facts = {str(p.relative_to(run)): p.read_text() for p in sorted(run.glob("phases/*/done.json"))}
    return {"log": log, "weights": weights, "done": facts}


@pytest.fixture(scope="module")
def early(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends early."""
    return train(config(tiny_base, tmp_path_factory.mktemp("early"), early_stopping_patience=2))


def test_early_stopping(early: Path) -> None:
    facts, seen = done(early, "population-dpo"), evaluations(early, "population-dpo")
    assert facts["steps"] == facts["best_step"] + 2 < 6
    assert max(seen) == facts["steps"]


@pytest.mark.parametrize("at", [2, 3, "end"])
def test_a_killed_run_ends_where_the_unbroken_one_ends(
    early: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int | str
) -> None:
    settings = config(tiny_base, tmp_path, early_stopping_patience=2)

    def log(self: Any, row: dict[str, Any], real: Any = RunDirectory.log) -> None:
        if row["step"] == at:
            raise Killed
        real(self, row)

    def save(self: Any, component: str, write: Any) -> Path:
        raise Killed  # after the last step, before anything of the phase is saved

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*((PhaseDirectory, "save", save) if at == "end" else (RunDirectory, "log", log)))
        train(settings)
    assert result(train(settings, resume=True)) == result(early)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_every_order_with_evaluation(tiny_base: Path, tmp_path: Path, adapter: str) -> None:
    tree = config(tiny_base, tmp_path, orders=ALL, eval_steps=2).model_dump()
    tree["model"]["adapter"] = adapter
    run = train(resolve(tree))
    for phase in ("fspo", "user-embedding", "user-embedding-from-signals", "inference-1", "generator-1", "joint"):
        assert done(run, phase)["best_step"] in (2, 4, 6), phase
    InferenceModel.from_pretrained(run / "phases/joint/inference_model", device="cpu")


@pytest.mark.parametrize("limit", [None, 2])
def test_checkpoints_that_stay(tiny_base: Path, tmp_path: Path, limit: int | None) -> None:
    run = train(config(tiny_base, tmp_path, save_total_limit=limit))
    best = done(run, "population-dpo")["best_step"]
    folders = run.glob("phases/population-dpo/checkpoints/checkpoint-*")
    steps = {int(folder.name.rpartition("-")[2]) for folder in folders}
    assert steps == ({best, 5, 6} if limit else set())
    if limit:
        weights = load_file(run / f"phases/population-dpo/checkpoints/checkpoint-{best}/model.safetensors")
        saved = load_file(run / "phases/population-dpo/generator/model.safetensors")
        assert all(torch.equal(weights[name], saved[name]) for name in saved)


def test_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="early_stopping_patience=2 counts evaluations"):
        refuse_settings(resolve({"training": {"early_stopping_patience": 2}}))
    with pytest.raises(DataError, match="eval_users=14 leaves none of 14 users to train on"):
        train(config(tiny_base, tmp_path, eval_users=14))
    assert not (tmp_path / "run").exists()
