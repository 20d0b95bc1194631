"""`popi judge` on a trained and evaluated run: every judge, failures, resuming, refusals, alpaca_eval's files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import KEY, FakeUpstream, hang, status
from rich.console import Console

from popi import cli
from popi.config import resolve
from popi.evaluation.runner import evaluate
from popi.nano.grammar import TOPICS
from popi.nano.truth import topics_in
from popi.runs.run_directory import RunDirectory
from popi.training.train import train

METHODS = ("--method", "oracle", "--against", "no_personalization")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A run of two steps on the tiny base, evaluated on three users with two targets each."""
    inference = {"steps": 2, "users_per_step": 3, "group_size": 3, "targets_per_summary": 2, "warmup_steps": 0}
    config = resolve(
        {
            "name": "run",
            "root": str(tmp_path_factory.mktemp("judged")),
            "model": {"base": str(tiny_base), "device": "cpu"},
            "data": {"train_users": 6, "test_users": 3, "targets_per_user": 2},
            "signals": {"template": "nano"},
            "summary": {"max_tokens": 6},
            "training": {"inference": inference},
            "evaluation": {"examples": 1, "answer_tokens": 8, "prompt_users": 4},
        }
    )
    path = train(config, console=Console(quiet=True))
    evaluate(RunDirectory.open(path))
    return path


@pytest.fixture
def judge(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `popi judge` with these options: (exit code, stdout, stderr)."""

    def call(*options: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["popi", "judge", "--run", str(trained), *map(str, options)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        captured = capsys.readouterr()
        return int(done.value.code or 0), captured.out, captured.err

    return call


def api(upstream: FakeUpstream, *more: object) -> list[object]:
    return [*METHODS, "--judge", "api", "--judge-url", f"{upstream.url}/v1", "--judge-model", "m", *more]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


def first_if_longer(messages: list[dict[str, str]]) -> str:
    """A judge that only compares lengths, and says so."""
    text = messages[-1]["content"]
    first, second = (
        text.split(f"<{name}_response>\n")[1].split(f"\n</{name}_response>")[0] for name in ("first", "second")
    )
    return "I count.\nVERDICT: " + ("FIRST" if len(first) > len(second) else "SECOND" if second > first else "TIE")


def test_an_llm_judges_both_orders_and_failures_are_counted_and_asked_again(
    judge: Any, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.wants_key = True
    upstream.answer = lambda messages: "VERDICT: FIRST"
    upstream.faults = [None, status(400, "not today"), None]
    options = api(upstream, "--out", tmp_path / "j", "--concurrency", 1, "--input-price", 1, "--output-price", 1)
    code, out, err = judge(*options)
    assert code == 1
    result = json.loads((tmp_path / "j" / "judge.json").read_text())
    rows = lines(tmp_path / "j" / "comparisons.jsonl")
    asked = [row for row in rows if row["reason"] != "identical responses"]
    assert result["comparisons"] == 6 and len(rows) == 12 and len(upstream.received) == len(asked) > 2
    assert result["missing_verdicts"] == {"failed": 1} and result["judged"] == 5
    assert "not today" in next(iter(result["reasons"])) and "not today" in err and "--resume" in err
    # A judge that always picks the first response scores each pair one half; its bias is reported.
    assert result["win_rate"]["value"] == 0.5 and result["first_position"]["value"] == 1.0
    assert result["agreement"]["value"] == 0.0
    assert "50.0 %" in out and "1 failed" in out and "cost" in err and KEY not in out + err
    shown = upstream.received[0].body["messages"][0]["content"]
    assert rows[0]["first"] in shown and "prefers " in shown  # the oracle persona

    del upstream.received[:]
    code, _, err = judge(*options, "--resume")
    assert (code, len(upstream.received)) == (0, 1)
    result = json.loads((tmp_path / "j" / "judge.json").read_text())
    assert (result["judged"], result["missing_verdicts"]) == (6, {})
    assert judge(*options, "--resume")[0] == 0 and len(upstream.received) == 1
    before = (tmp_path / "j" / "comparisons.jsonl").read_bytes()
    code, _, err = judge(*options)
    assert code == 2 and "--resume" in err
    code, _, err = judge(*options, "--resume", "--evidence", "signals", "--prompts", 1)
    assert code == 2 and "judge.evidence: 'auto' -> 'signals'" in err and "prompts: None -> 1" in err
    assert (tmp_path / "j" / "comparisons.jsonl").read_bytes() == before and len(upstream.received) == 1


def test_an_unreadable_verdict_is_missing_and_a_length_judge_shows_as_one(
    judge: Any, upstream: FakeUpstream, tmp_path: Path
) -> None:
    answers = iter(["no idea"])
    upstream.answer = lambda messages: next(answers, None) or first_if_longer(messages)
    code, out, err = judge(*api(upstream, "--out", tmp_path / "j", "--concurrency", 1))
    result = json.loads((tmp_path / "j" / "judge.json").read_text())
    assert code == 0  # it was answered, so resuming does not ask again
    assert result["missing_verdicts"] == {"unreadable": 1} and "no idea" in err and "1 unreadable" in out
    assert result["judged"] == 5


def test_a_killed_judging_goes_on_without_repeating_a_question(
    judge: Any, trained: Path, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.answer = lambda messages: "VERDICT: TIE"
    upstream.faults = [None, None, None, hang]
    options = api(upstream, "--out", tmp_path / "j", "--concurrency", 1)
    code = "import sys; from popi import cli; sys.argv = ['popi', *sys.argv[1:]]; cli.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "judge", "--run", str(trained), *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(upstream.received) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    rows = lines(tmp_path / "j" / "comparisons.jsonl")
    assert [row["verdict"] for row in rows if row["reason"] is None] == ["tie"] * 3
    before = [request.body for request in upstream.received[:3]]
    del upstream.received[:]
    assert judge(*options, "--resume")[0] == 0
    assert not [request for request in upstream.received if request.body in before]
    assert len(lines(tmp_path / "j" / "comparisons.jsonl")) == 12


def test_truth_and_log_probs_judge_the_same_responses_and_alpaca_eval_reads_them(
    judge: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = judge(*METHODS, "--judge", "truth", "--alpaca-eval")
    folder = trained / "evaluation" / "judge" / "oracle-vs-no_personalization-by-truth"
    assert code == 0 and "win rate" in out
    judged = json.loads((folder / "judge.json").read_text())
    seen = judged["seen_topics"]
    assert seen["comparisons"] == judged["comparisons"] == 6 and "win rate, training topics" in out
    shares = {name: part[name]["value"] for part in (judged, seen) for name in ("valid", "on_topic", "valid_against")}
    assert shares.keys() == {"valid", "on_topic", "valid_against"} and all(0 <= v <= 1 for v in shares.values())
    prompts = [row["prompt"] for row in lines(folder / "seen_topics" / "comparisons.jsonl")]
    assert len(prompts) == 12 and all(topics_in(prompt) & set(TOPICS) for prompt in prompts)
    assert not any(topics_in(row["prompt"]) & set(TOPICS) for row in lines(folder / "comparisons.jsonl"))
    assert judge(*METHODS, "--judge", "truth", "--resume")[0] == 0
    assert json.loads((folder / "judge.json").read_text()) == judged
    files = sorted((trained / "evaluation" / "responses").iterdir())
    before = [file.read_bytes() for file in files]
    code, out, _ = judge(*METHODS, "--judge", "local", "--out", tmp_path / "local")
    assert code == 0
    result = json.loads((tmp_path / "local" / "judge.json").read_text())
    assert result["judged"] == 6 and result["agreement"]["value"] in (1.0, None)
    assert [file.read_bytes() for file in files] == before  # generated once for all judges
    monkeypatch.setattr(sys, "argv", ["popi", "win-rate", str(folder / "alpaca_eval" / "annotations.json")])
    with pytest.raises(SystemExit) as done:
        cli.main()
    own = json.loads((folder / "judge.json").read_text())
    assert not done.value.code and f"{100 * own['win_rate']['value']:.1f} %" in capsys.readouterr().out

    outputs = folder / "alpaca_eval" / "reference_outputs.json"
    code, _, _ = judge("--method", "oracle", "--against", outputs, "--judge", "truth", "--out", tmp_path / "file")
    again = json.loads((tmp_path / "file" / "judge.json").read_text())
    assert code == 0 and again["win_rate"] == own["win_rate"]


def test_raw_signals_and_written_summaries_can_be_judged(judge: Any, tmp_path: Path) -> None:
    options = ["--method", "popi_plug_and_play", "--against", "raw_signals", "--judge", "truth", "--prompts", 1]
    code, out, _ = judge(*options, "--out", tmp_path / "j")
    result = json.loads((tmp_path / "j" / "judge.json").read_text())
    assert code == 0 and result["comparisons"] == 3
    assert set(result["responses"]) == {"popi_plug_and_play", "raw_signals"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--method", "popi", "--against", "oracle", "--judge", "truth"),
            "'popi' is not a method; methods of this run: no_",
        ),
        (("--method", "oracle", "--against", "oracle", "--judge", "truth"), "another one to compare with"),
        (("--method", "oracle", "--against", "population_dpo", "--judge", "truth"), "not trained in this run"),
        (("--method", "oracle", "--against", "none.json", "--judge", "truth"), "none.json: can't be read"),
        ((*METHODS, "--judge", "api", "--judge-model", "m"), "--judge-url"),
        ((*METHODS, "--judge", "truth", "--judge-model", "m"), "uses no model"),
        ((*METHODS, "--judge", "local", "--key-env", "K"), "--judge api"),
    ],
)
def test_what_can_not_be_judged_is_one_message(options: Any, message: str, judge: Any, tmp_path: Path) -> None:
    code, out, err = judge(*options, "--out", tmp_path / "j")
    assert (code, out) == (2, "") and "Traceback" not in err
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "j").exists()


def test_a_file_of_users_has_no_truth_and_wants_its_own_evaluation(judge: Any, trained: Path, tmp_path: Path) -> None:
    users = tmp_path / "mine.jsonl"
    pair = {"prompt": "what about puzzles?", "chosen": "hi.", "rejected": "hey."}
    users.write_text(json.dumps({"user_id": "z", "signals": [{"type": "post", "text": "jokes"}], "targets": [pair]}))
    options = ("--method", "untrained_summary", "--against", "no_personalization", "--users", users)
    code, _, err = judge(*options, "--judge", "truth")
    assert code == 2 and "'z': true preferences are not known" in err
    code, _, err = judge(*options, "--judge", "local")
    assert code == 2 and "has no summaries for untrained_summary" in err and "popi evaluate" in err
    evaluate(RunDirectory.open(trained), users=users)
    assert judge(*options, "--judge", "local")[0] == 0
    assert list((trained / "evaluation" / "on-mine" / "judge").glob("*/judge.json"))
