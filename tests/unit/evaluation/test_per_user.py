"""Rows of the per-user LoRA baseline: resumable user by user, and those of a plain evaluation with each adapter."""

import json
import re
from pathlib import Path

import pytest
import torch
from exact import nearly
from typer.testing import CliRunner

from popi.cli import app
from popi.config import PerUserLoraConfig, resolve, with_method
from popi.engine.scoring import pair_logps_plain
from popi.evaluation import per_user
from popi.evaluation.job import read_rows
from popi.evaluation.runner import evaluate
from popi.evaluation.users import held_out
from popi.training.per_user import own_pairs, user_adapter
from popi.training.planning.plan import phase_seed

LORA = {"enabled": True, "rank": 2, "steps": 2, "batch_size": 2, "learning_rate": 1e-2}


@pytest.fixture
def enabled(run):
    tree = run.config.model_dump(mode="json")
    tree["evaluation"]["per_user_lora"] = LORA
    run.config = resolve(tree)
    return run


def write_users(path: Path) -> Path:
    pair = {"prompt": "what about puzzles?", "chosen": "hi there.", "rejected": "hey."}
    other = {"prompt": "what about rice?", "chosen": "hi friend.", "rejected": "hey pal."}
    users = [
        {"user_id": "pairs", "signals": [{"type": "pair", **other}, {"type": "post", "text": "hi"}], "targets": [pair]},
        {"user_id": "posts", "signals": [{"type": "post", "text": "i like jokes."}], "targets": [pair, other]},
        {
            "user_id": "edits",
            "signals": [{"type": "interaction", "prompt": "tea?", "response": "hey pal.", "edit": "hi friend."}],
            "targets": [pair],
        },
    ]
    path.write_text("".join(json.dumps(user) + "\n" for user in users))
    return path


def test_off_unless_asked_for(run, tiny) -> None:
    result = evaluate(run, models=tiny(run))
    assert result["not_enabled"] == ["copy", "per_user_lora"] and "per_user_lora" not in result["methods"]


def test_the_command_line_turns_it_on_for_a_run_that_has_it_off(run) -> None:
    config = with_method(run.config, "per_user_lora")
    assert config.evaluation.per_user_lora == PerUserLoraConfig(enabled=True)
    assert config.evaluation.examples == run.config.evaluation.examples
    help_text = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert "--per-user-lora" in re.sub(r"\x1b\[[0-9;]*m", "", help_text)


def test_rows_of_users_with_and_without_pairs(enabled, tiny, tmp_path: Path) -> None:
    models = tiny(enabled)
    result = evaluate(enabled, users=write_users(tmp_path / "mine.jsonl"), models=models)
    entry = result["methods"]["per_user_lora"]
    assert (
        result["not_enabled"] == ["copy"]
        and entry["context_overhead_tokens"] == 0
        and entry["attribute_recall"] is None
    )
    folder = enabled.path / "evaluation" / "on-mine"
    rows = read_rows(folder / "per_user_lora.jsonl")
    assert [(r["user_id"], r["window"], r["target"], r["own_pairs"]) for r in rows] == [
        ("pairs", 0, 0, 1),
        ("posts", 1, 0, 0),
        ("posts", 1, 1, 0),
        ("edits", 2, 0, 1),
    ]
    assert [r["margin"] == 0 for r in rows] == [False, True, True, False]
    assert not list(folder.glob("*.part*"))


def test_rows_are_scored_under_the_users_own_adapter(precision, enabled, tiny) -> None:
    models = tiny(enabled)
    evaluate(enabled, models=models)
    people, base = held_out(enabled.config)[0], models.generator("nano")
    rows = read_rows(enabled.path / "evaluation" / "per_user_lora.jsonl")
    plain = read_rows(enabled.path / "evaluation" / "no_personalization.jsonl")
    for row, without in zip(rows, plain, strict=True):
        person = people[row["window"]]
        target, pairs = person.user.targets[row["target"]], own_pairs(person.user.signals)
        seed = phase_seed(0, f"per-user-lora/{row['window']}/{row['user_id']}")
        with user_adapter(base, pairs, enabled.config.evaluation.per_user_lora, seed):
            with torch.no_grad():
                chosen, rejected = pair_logps_plain(base.local.model, base.reference_items([target]))
        assert row["chosen_logp"] == nearly(chosen)
        assert row["reference_chosen_logp"] == without["chosen_logp"]
        h = (float(chosen) - without["chosen_logp"]) - (float(rejected) - without["rejected_logp"])
        assert row["margin"] == nearly(h, of=float(chosen.abs()))


def test_an_interrupted_evaluation_goes_on_with_the_users_that_are_missing(enabled, tiny, monkeypatch) -> None:
    evaluate(enabled, models=tiny(enabled))
    file = enabled.path / "evaluation" / "per_user_lora.jsonl"
    whole = file.read_bytes()
    file.unlink()
    trained: list[int] = []

    def counting(generator, pairs, settings, seed):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(seed)
        return user_adapter(generator, pairs, settings, seed)

    monkeypatch.setattr(per_user, "user_adapter", counting)
    with pytest.raises(KeyboardInterrupt):
        evaluate(enabled, models=tiny(enabled))
    [kept] = file.parent.glob("per_user_lora.part.jsonl")
    with kept.open("a") as rows:
        rows.write(json.dumps(json.loads(whole.splitlines()[4])) + '\n{"window": 2, "tar')  # one of the two, and a bit
    trained.clear()
    evaluate(enabled, models=tiny(enabled))
    assert (
        len(trained) == 1 and not list(file.parent.glob("*.part*")) and file.read_bytes() == whole and not kept.exists()
    )


def test_other_settings_train_again(enabled, tiny) -> None:
    evaluate(enabled, models=tiny(enabled))
    file = enabled.path / "evaluation" / "per_user_lora.jsonl"
    before = file.read_bytes()
    tree = enabled.config.model_dump(mode="json")
    tree["evaluation"]["per_user_lora"]["steps"] = 1
    enabled.config = resolve(tree)
    evaluate(enabled, models=tiny(enabled))
    assert file.read_bytes() != before
