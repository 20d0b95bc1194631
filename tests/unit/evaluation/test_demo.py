import io
import json
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from popi.config import load_config
from popi.data.jsonl import read_users
from popi.errors import RunError
from popi.evaluation import demo
from popi.runs.run_directory import RunDirectory

REPOSITORY = Path(__file__).parents[3]
EXAMPLE = {
    "user_id": "test-1",
    "preferences": {"tone": "formal"},
    "signals": [
        {"type": "pair", "prompt": "tea?", "chosen": "good day, [bold]tea[/bold].", "rejected": "hey."},
        {"type": "interaction", "prompt": "tea?", "response": "hey.", "rating": 2.0},
        {"type": "interaction", "prompt": "tea?", "response": "hey.", "edit": "good day."},
        {"type": "post", "text": "so happy."},
    ],
    "summaries": {
        "untrained_summary": "likes jokes.",
        "popi_plug_and_play": "it's a formal tone.",
        "oracle": "formal.",
    },
    "named": {},
    "prompts": [
        {"prompt": "what about tea?", "chosen": "x", "rejected": "y", "answers": {"no_personalization": "hey [/]"}}
    ],
}


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=110)


def test_config_is_shipped_and_the_same_in_a_checkout() -> None:
    config = demo.demo_config("somewhere")
    assert config.directory == Path("somewhere/demo")
    assert config.training.orders == ["plug_and_play", "alternating"] and config.training.rounds == 1
    shown = load_config(REPOSITORY / "configs" / "demo.toml")
    assert shown == config.model_copy(update={"root": shown.root})


def test_a_fresh_place_is_left_as_it_is(tmp_path: Path, console: Console) -> None:
    demo.prepare(demo.demo_config(tmp_path), console)
    assert not (tmp_path / "demo").exists()


def test_an_unfinished_demo_goes_on(tmp_path: Path, console: Console) -> None:
    config = demo.demo_config(tmp_path)
    RunDirectory.create(config)
    demo.prepare(config, console)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert "resuming the unfinished demo" in console.file.getvalue()


def test_a_finished_demo_is_kept_aside(tmp_path: Path, console: Console) -> None:
    config = demo.demo_config(tmp_path)
    for _ in range(2):
        run = RunDirectory.create(config)
        for name in demo.FINISHED:
            (run.path / name).write_text("kept")
        demo.prepare(config, console)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-1", "demo-2"]
    assert (tmp_path / "demo-1" / "report.html").read_text() == "kept"


def test_a_demo_of_other_settings_is_kept_aside(tmp_path: Path, console: Console) -> None:
    RunDirectory.create(demo.demo_config(tmp_path, ["seed=7"]))
    demo.prepare(demo.demo_config(tmp_path), console)
    assert [path.name for path in tmp_path.iterdir()] == ["demo-1"]


def test_what_is_no_run_is_left_alone(tmp_path: Path, console: Console) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="--root"):
        demo.prepare(demo.demo_config(tmp_path), console)
    assert (tmp_path / "demo" / "thesis.tex").read_text() == "mine"


def test_users_are_shown_word_for_word(console: Console) -> None:
    console.print(demo.user_panel(EXAMPLE, ["no_personalization", "untrained_summary", "popi_plug_and_play", "oracle"]))
    shown = console.file.getvalue()
    for text in (
        "[bold]tea[/bold]",
        "hey [/]",
        "it's a formal tone.",
        "likes jokes.",
        "rated 2",
        "edited to: good day.",
    ):
        assert text in shown


def test_the_three_next_commands_can_be_typed(tmp_path: Path) -> None:
    file = demo.write_example_users(tmp_path / "users.jsonl", [EXAMPLE])
    assert read_users(file)[0].user_id == "test-1"
    commands = [shlex.split(command) for command in demo.next_commands(tmp_path, file, [EXAMPLE])]
    assert [command[1] for command in commands][:2] == ["infer", "generate"] and len(commands) == 3
    assert commands[1][-3:] == ["--summary", "it's a formal tone.", "what about tea?"]
    assert Path(commands[0][-1]).is_file()


@pytest.mark.slow
def test_the_whole_demo_in_small(tmp_path: Path, console: Console) -> None:
    small = ["training.inference.steps=2", "training.inference.users_per_step=2", "training.generator.steps=2"]
    small += ["data.train_users=40", "data.test_users=6", "training.generator.batch_size=4", "evaluation.examples=2"]
    path = demo.run_demo(tmp_path, console=console, progress=Console(quiet=True), overrides=small)
    assert (path / "report.html").is_file()
    metrics = json.loads((path / "metrics.json").read_text())
    untrained = ["population_dpo", "fspo", "copy_dpo", "untrained_summary_copy_dpo"]
    untrained += ["user_embedding", "user_embedding_from_signals", "popi_simultaneous"]
    assert metrics["not_trained"] == untrained and metrics["not_enabled"] == ["copy", "per_user_lora"]
    assert "Try next" in console.file.getvalue()
