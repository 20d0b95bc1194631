import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmark_sets as sets
import pytest

from popi.data.jsonl import read_users
from popi.errors import RunError

GOOD = {"user_id": "a", "signals": [{"type": "statement", "text": "keep it short"}]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_help_names_every_command(run: Any) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("demo", "train", "infer", "generate", "evaluate", "report", "data", "nano"):
        assert command in out


def test_version(run: Any) -> None:
    import popi

    assert run("--version") == (0, popi.__version__ + "\n", "")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "nowhere.toml"], "nowhere.toml"),
        (["infer", "users.jsonl", "--run", "nowhere"], "nowhere"),
        (["infer", "users.jsonl", "--model", "nano"], "users.jsonl"),
        (["infer", "users.jsonl"], "--run"),
        (["infer", "users.jsonl", "--run", "a", "--model", "b"], "one of the three"),
        (["infer", "users.jsonl", "--api", "https://a", "--model", "b"], "one of the three"),
        (["infer", "users.jsonl", "--api", "https://a"], "--api-model"),
        (["infer", "users.jsonl", "--api", "no url", "--api-model", "m"], "https://"),
        (["infer", "users.jsonl", "--api", "https://a", "--api-model", "m", "--protocol", "x"], "anthropic"),
        (["infer", "users.jsonl", "--api", "https://a", "--api-model", "m", "--input-price", "1"], "--output-price"),
        (["infer", "users.jsonl", "--api", "https://a", "--api-model", "m", "--api-extra", "{"], "not valid JSON"),
        (["infer", "users.jsonl", "--api", "https://a", "--api-model", "m", "--api-extra", "[]"], "JSON object"),
        (["infer", "users.jsonl", "--api", "https://a", "--api-model", "m", "--key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["infer", "users.jsonl", "--api", "https://a", "--api-model", "m", "--resume"], "--out"),
        (["infer", "users.jsonl", "--model", "nano", "--resume"], "--resume"),
        (["infer", "users.jsonl", "--run", "a", "--check", "--resume", "--out", "x"], "--resume"),
        (["infer", "users.jsonl", "--api", "https://a", "--api-model", "m"], "users.jsonl"),
        (["infer", "users.jsonl", "--run", "a", "--max-tokens", "5"], "a run has its own"),
        (["infer", "users.jsonl", "--run", "a", "--chat-template", "x"], "go with --model"),
        (["infer", "users.jsonl", "--model", "nano", "--input-price", "5"], "--output-price need --api"),
        (["evaluate", "--run", "a", "--chat-template", "x"], "--generator"),
        (["evaluate", "--run", "a", "--api", "https://a"], "--api-model must be set together"),
        (
            ["evaluate", "--run", "a", "--generator", "nano", "--api", "https://a", "--api-model", "m"],
            "either with --gen",
        ),
        (["evaluate", "--run", "a", "--key-env", "KEY"], "--key-env requires --api"),
        (["push", "--run", "nowhere", "--to", "a/b"], "is not a run directory"),
        (["generate", "hello", "--run", "a", "--api-model", "m"], "--output-price need --api"),
        (["generate", "hello", "--run", "a", "--api", "https://a"], "one of the three"),
        (["generate", "hello", "--run", "a", "--model", "nano"], "one of the three"),
        (["generate", "hello", "--model", "nano", "--method", "x"], "--method"),
        (["generate", "hello", "--run", "a", "--dtype", "float32"], "go with --model"),
        (["generate", "hello", "--api", "https://a", "--method", "x", "--api-model", "m"], "--method"),
        (["generate", "hello"], "--run"),
        (["evaluate", "--run", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["data", "check", "nowhere.jsonl"], "nowhere.jsonl"),
        (["data", "check", "."], "can't be read"),
        (["nonsense"], "nonsense"),
        (["generate", " ", "--run", "nowhere"], "prompt is empty"),
        (["generate", "hello", "--run", "nowhere", "--temperature", "inf"], "finite"),
        (["infer", "users.jsonl", "--model", "nano", "--method", "x"], "--method"),
        (["infer", "users.jsonl", "--model", "nano", "--out", "no/such/file.jsonl"], "no folder no/such"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    run: Any, args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*args)
    assert code == 2
    assert words in err
    assert "Traceback" not in err + out
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_refused_before_anything_is_made(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write(tmp_path / "c.toml", 'name = "x"')
    code, _, err = run("train", config, "training.inference.steps=none")
    assert code == 2
    assert "training.inference.steps" in err
    assert not (tmp_path / "runs").exists()


def test_generate_with_a_model(run: Any, tiny_base: Path) -> None:
    from popi.generator import Generator

    expected = Generator.from_pretrained(tiny_base, device="cpu").generate(
        "which pan ?", "likes iron", max_new_tokens=4
    )
    options = ["--summary", "likes iron", "--max-tokens", "4", "--device", "cpu"]
    code, out, err = run("generate", "which pan ?", "--model", tiny_base, *options)
    assert (code, out.rstrip("\n")) == (0, expected), err


def test_infer_leaves_an_existing_file_alone(run: Any, tmp_path: Path) -> None:
    users = write(tmp_path / "users.jsonl", GOOD)
    kept = write(tmp_path / "out.jsonl", "precious")
    code, _, err = run("infer", users, "--run", tmp_path / "nowhere", "--out", kept)
    assert code == 2
    assert "--force" in err
    assert kept.read_text() == "precious\n"


def test_infer_with_bad_users_overwrites_nothing_even_with_force(run: Any, tmp_path: Path) -> None:
    users = write(tmp_path / "users.jsonl", GOOD, "{")
    kept = write(tmp_path / "out.jsonl", "precious")
    code, _, err = run("infer", users, "--model", "nano", "--out", kept, "--force")
    assert code == 2
    assert "line 2" in err
    assert kept.read_text() == "precious\n"


class FakeInferenceModel:
    loaded: dict[str, Any]
    name = "fake"

    @classmethod
    def from_spec(cls, spec: Any, **reads: Any) -> "FakeInferenceModel":
        described = ("name", "templates", "dtype", "device", "chat_template")
        cls.loaded = {field: getattr(spec, field) for field in described} | reads
        return cls()

    def summarize_each(self, users: list[Any], on_result: Any) -> list[Any]:
        from popi.summary import Summary

        made = [Summary(f"likes {len(signals)}", 2, len(signals), ("#1",)) for signals in users]
        for index in reversed(range(len(made))):  # rows are shown in the users' order all the same
            on_result(index, made[index])
        return made


def test_infer_writes_one_line_a_user(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("popi.inference_model")
    monkeypatch.setattr(module, "InferenceModel", FakeInferenceModel)
    users = write(tmp_path / "users.jsonl", GOOD, {"user_id": "b", "signals": []})
    code, out, _ = run("infer", users, "--model", "fake")
    auto = {"templates": "auto", "dtype": "auto", "device": "auto"}
    given = {"max_tokens": None, "token_budget": None, "chat_template": None}
    assert FakeInferenceModel.loaded == {"name": "fake"} | auto | given
    options = ["--chat-template", "t.jinja", "--template", "nano", "--dtype", "bfloat16", "--max-tokens", "5"]
    assert run("infer", users, "--model", "fake", *options)[0] == 0
    changed = {"chat_template": "t.jinja", "templates": "nano", "dtype": "bfloat16", "max_tokens": 5}
    assert FakeInferenceModel.loaded == {"name": "fake"} | auto | given | changed
    wanted = [
        {
            "user_id": "a",
            "summary": "likes 1",
            "tokens": 2,
            "signals_used": 1,
            "signals_dropped": ["#1"],
            "abstained": False,
            "model": "fake",
        },
        {
            "user_id": "b",
            "summary": "likes 0",
            "tokens": 2,
            "signals_used": 0,
            "signals_dropped": ["#1"],
            "abstained": False,
            "model": "fake",
        },
    ]
    assert (code, [json.loads(line) for line in out.splitlines()]) == (0, wanted)
    code, out, _ = run("infer", users, "--model", "fake", "--out", tmp_path / "out.jsonl")
    assert (code, out) == (0, "")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == wanted


def test_data_check_reports_every_line_and_exits_with_2(run: Any, tmp_path: Path) -> None:
    users = write(tmp_path / "users.jsonl", "{", GOOD, {"user_id": "b"}, GOOD)
    code, out, _ = run("data", "check", users)
    assert code == 2
    for words in ("line 1", "line 3, signals: required", "line 4, user_id: user 'a' already appears on line 2"):
        assert words in out


def test_data_check_of_a_good_file(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("data", "check", write(tmp_path / "users.jsonl", GOOD))
    assert (code, "no problems" in out) == (0, True)


def test_data_check_against_another_split(run: Any, tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.jsonl", GOOD), write(tmp_path / "test.jsonl", GOOD)
    code, out, _ = run("data", "check", train, "--against", test)
    assert code == 2
    assert str(test) in out


def test_data_check_of_a_benchmark(run: Any, tmp_path: Path) -> None:
    place = Path(sets.make("elix", tmp_path / "elix"))
    code, out, _ = run("data", "check", place, "--source", "elix")
    assert code == 0
    for words in ("elix/1", "train: 60 rows, 5 users", "rows dropped: 6 (scorer_level is neither", "no problems"):
        assert words in out
    code, out, _ = run("data", "check", place, "--source", "elix", "--set", "scorer_match=false")
    assert (code, "dropped" in out) == (0, False)
    code, out, _ = run("data", "check", place / "test.jsonl", "--source", "elix", "--signals-per-user", 2)
    assert (code, "test: no rows" in out, "signals: 36 pair" in out) == (0, True, True)
    write(place / "train.jsonl", {"prompt": 5})
    code, out, _ = run("data", "check", place, "--source", "elix")
    assert code == 2
    assert f"{place / 'train.jsonl'}, line 1, prompt: must be text; got 5" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["check", "x", "--source", "nano"], "must be one of elix"),
        (["check", "x", "--source", "elix", "--against", "y"], "--against"),
        (["check", "x", "--set", "scorer_match=false"], "--set requires --source"),
        (["check"], "name a JSONL file"),
        (["check", "--source", "polis"], "path is not set"),
        (["check", "x", "--source", "elix", "--set", "user_column=who"], "only applies to source preferences"),
        (["check", "nowhere", "--source", "elix"], "no such file or folder"),
        (["convert", "x", "--source", "elix"], "--out"),
        (["convert", "x", "--source", "elix", "--out", "no/where.jsonl"], "no folder no"),
    ],
)
def test_bad_calls_on_benchmarks(
    run: Any, args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("data", *args)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err + out
    assert list(tmp_path.iterdir()) == []


def test_data_convert_writes_users_that_the_check_passes_and_overwrites_nothing(run: Any, tmp_path: Path) -> None:
    place, written = sets.make("review", tmp_path / "review"), tmp_path / "users.jsonl"
    call = ["data", "convert", place, "--source", "review", "--out", written]
    assert run(*call)[0] == 0
    users = read_users(written)
    assert len(users) == 8 and {user.user_id for user in users} >= {"positive#1", "positive#2"}
    assert run("data", "check", written)[0] == 0
    before = written.read_text()
    code, _, err = run(*call, "--split", "interpolated")
    assert (code, "--force" in err, written.read_text() == before) == (2, True, True)
    assert run(*call, "--split", "interpolated", "--force")[0] == 0
    assert {user.user_id.split("#")[0] for user in read_users(written)} == {"positive+concise", "negative+verbose"}
    code, _, err = run(*call, "--split", "dev", "--force")
    assert (code, "splits with users: train, test, interpolated" in err) == (2, True)


def test_nano_build_refuses_an_existing_folder(run: Any, tmp_path: Path) -> None:
    code, _, err = run("nano", "build", "--out", tmp_path)
    assert (code, str(tmp_path) in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_deep_inside_is_a_message(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = pytest.importorskip("popi.training.train")

    def refuse(*_: Any, **__: Any) -> None:
        raise RunError("this run exists")

    monkeypatch.setattr(module, "train", refuse)
    assert run("train", write(tmp_path / "c.toml", "")) == (2, "", "popi: this run exists\n")


def test_without_the_training_packages_the_message_says_what_to_install(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = run("train", write(tmp_path / "c.toml", ""))
    assert (code, "popi[train]" in err) == (2, True)


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    """`popi data check` on a pipe that never ends, interrupted."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # An interrupt must reach the process even where this one's parent set it to be ignored.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import sys; sys.argv = ['popi', 'data', 'check', {str(pipe)!r}]\n"
        "from popi.cli import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    with open(pipe, "w") as writer:  # returns once the command reads
        writer.write("{\n")
        writer.flush()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (130, False)


@pytest.mark.parametrize("name", ["out.jsonl", "out.rejects.jsonl"])
def test_infer_never_writes_over_its_own_users(run: Any, tmp_path: Path, name: str) -> None:
    users = write(tmp_path / name, GOOD)
    before = users.read_text()
    code, _, err = run("infer", users, "--model", "nano", "--out", tmp_path / "out.jsonl", "--force")
    assert (code, "input file itself" in err) == (2, True)
    assert users.read_text() == before


def test_a_run_without_methods_is_not_evaluated(run: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    code, _, err = run("evaluate", "--run", tmp_path)
    assert (code, "--resume" in err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_nano_build_finds_out_first_whether_it_can_write(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = run("nano", "build", "--out", tmp_path / "file" / "base")
    assert (code, "Not a directory" in err) == (2, True)


def test_a_user_beyond_the_context_is_a_reject_and_the_others_go_on(
    run: Any, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from popi.models.local.model import LocalModel

    long = {"type": "statement", "text": "tea please . " * 700}
    people = [{"user_id": "a", "signals": [GOOD["signals"][0]]}, {"user_id": "long", "signals": [long]}]
    people.append({"user_id": "c", "signals": [GOOD["signals"][0]]})
    users, out = write(tmp_path / "users.jsonl", *people), tmp_path / "out.jsonl"
    command = ["infer", users, "--model", tiny_base, "--out", out, "--max-tokens", "4", "--token-budget", "5000"]
    code, _, err = run(*command)
    assert code == 1 and "no summary for 1 users" in err and "  long: " in err
    assert [json.loads(line)["user_id"] for line in out.read_text().splitlines()] == ["a", "c"]
    [reject] = map(json.loads, (tmp_path / "out.rejects.jsonl").read_text().splitlines())
    assert reject["user_id"] == "long" and "exceed its context of 2048" in reject["error"]
    # What was there is not written again; the user who was beyond gets a summary once the prompt fits.
    asked: list[int] = []
    inner = LocalModel.generate
    monkeypatch.setattr(LocalModel, "generate", lambda self, p, **k: asked.append(len(p)) or inner(self, p, **k))
    kept = out.read_text()
    code, _, _ = run(*command[:-1], "100", "--resume")
    assert code == 0 and not (tmp_path / "out.rejects.jsonl").exists() and asked == []
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["user_id"] for row in rows] == ["a", "long", "c"] and rows[1]["signals_dropped"] == ["#1"]
    assert set(kept.splitlines()) < set(out.read_text().splitlines())


def test_what_was_written_before_a_kill_stays(
    run: Any, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import popi.models.local.model as module
    from popi.models.local.model import LocalModel

    monkeypatch.setattr(module, "BATCH", 1)
    inner, calls = LocalModel.generate, []

    def killed(self: LocalModel, prompts: Any, **limits: Any) -> Any:
        calls.append(prompts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(self, prompts, **limits)

    people = [{"user_id": name, "signals": [GOOD["signals"][0]]} for name in "abc"]
    users, out = write(tmp_path / "users.jsonl", *people), tmp_path / "out.jsonl"
    command = ["infer", users, "--model", tiny_base, "--out", out, "--max-tokens", "4"]
    monkeypatch.setattr(LocalModel, "generate", killed)
    assert run(*command)[0] == 130
    assert [json.loads(line)["user_id"] for line in out.read_text().splitlines()] == ["a"]
    assert run(*command, "--resume")[0] == 0 and len(calls) == 4
    assert [json.loads(line)["user_id"] for line in out.read_text().splitlines()] == ["a", "b", "c"]
