"""`popi infer` and `popi generate` with a model behind an API."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import KEY, FakeUpstream, hang, status

from popi import cli
from popi.signals.render import Templates
from popi.signals.types import StatementSignal

NAMES = ("ann", "bob", "cid")


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.jsonl"
    signals = {name: [{"type": "statement", "text": f"i am {name}."}] for name in NAMES}
    path.write_text("".join(json.dumps({"user_id": name, "signals": signals[name]}) + "\n" for name in NAMES))
    return path


def api(upstream: FakeUpstream, *more: object) -> list[object]:
    upstream.answer = lambda messages: next(f"is {name}" for name in NAMES if f"i am {name}." in str(messages))
    return ["--api", f"{upstream.url}/v1", "--api-model", "m", "--concurrency", "1", *more]


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def asked(upstream: FakeUpstream) -> list[str]:
    return [name for request in upstream.received for name in NAMES if f"i am {name}." in str(request.body)]


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_infer_writes_one_line_a_user_and_says_what_it_took(
    run: Any, users: Path, upstream: FakeUpstream, protocol: str
) -> None:
    upstream.wants_key = True
    prices = ["--input-price", 1, "--output-price", 10]
    code, out, err = run("infer", users, *api(upstream, "--protocol", protocol, "--max-tokens", 33, *prices))
    assert code == 0
    wanted = {"tokens": 10, "signals_used": 1, "signals_dropped": [], "abstained": False, "model": "m"}
    assert rows(out) == [{"user_id": name, "summary": f"is {name}"} | wanted for name in NAMES]
    assert "3 requests (0 retries), 300 tokens in, 30 tokens out, cost 0.000600" in err
    assert upstream.received[0].body["max_tokens"] == 33
    assert KEY not in out + err


@pytest.mark.parametrize("template", ["default", "small"])
def test_a_model_that_popi_trained_reads_the_prompt_that_it_was_trained_on(
    run: Any, users: Path, upstream: FakeUpstream, template: str
) -> None:
    code, out, _ = run("infer", users, *api(upstream, "--template", template))
    assert code == 0 and [row["summary"] for row in rows(out)] == [f"is {name}" for name in NAMES]
    trained_on = Templates.load(template).inference_messages([StatementSignal(text="i am ann.")])
    assert upstream.received[0].body["messages"] == trained_on and "response_format" not in upstream.received[0].body


def test_what_failed_is_listed_and_asked_for_again(
    run: Any, users: Path, upstream: FakeUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    upstream.faults = [None, status(400, "too long"), None]
    code, out, err = run("infer", users, *api(upstream, "--out", path))
    assert (code, out) == (1, "")
    assert [row["user_id"] for row in rows(path.read_text())] == ["ann", "cid"]
    assert "bob: " in err and "too long" in err and "--resume" in err and "Traceback" not in err
    del upstream.received[:]
    code, _, err = run("infer", users, *api(upstream, "--out", path, "--resume"))
    assert code == 0
    assert [row["user_id"] for row in rows(path.read_text())] == list(NAMES)
    assert asked(upstream) == ["bob"]
    before = path.read_bytes()
    assert run("infer", users, *api(upstream, "--out", path, "--resume"))[0] == 0
    assert (asked(upstream), path.read_bytes()) == (["bob"], before)


def test_failures_go_to_stderr_where_summaries_go_to_stdout(run: Any, users: Path, upstream: FakeUpstream) -> None:
    upstream.faults = [status(400, "no"), None, None]
    code, out, err = run("infer", users, *api(upstream))
    assert (code, [row["user_id"] for row in rows(out)]) == (1, ["bob", "cid"])
    assert "ann: " in err


def test_a_refused_key_is_one_message_and_leaves_files_alone(
    run: Any, users: Path, upstream: FakeUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.wants_key = True
    monkeypatch.setenv("MY_KEY", "sk-wrong")
    kept = tmp_path / "out.jsonl"
    kept.write_text("precious\n")
    code, out, err = run("infer", users, *api(upstream, "--key-env", "MY_KEY", "--out", kept, "--force"))
    assert (code, out, kept.read_text()) == (1, "", "precious\n")
    assert "ann, bob, cid: " in err and "401" in err and "sk-wrong" not in err
    assert len(upstream.received) == 1


def test_an_existing_file_is_left_alone_before_anything_is_asked(
    run: Any, users: Path, upstream: FakeUpstream, tmp_path: Path
) -> None:
    kept = tmp_path / "out.jsonl"
    kept.write_text("precious\n")
    for option, words in (((), "--force"), (("--resume",), "line 1")):
        code, _, err = run("infer", users, *api(upstream, "--out", kept, *option))
        assert (code, words in err, kept.read_text()) == (2, True, "precious\n")
    assert upstream.received == []
    assert run("infer", users, *api(upstream, "--out", kept, "--force"))[0] == 0
    assert [row["user_id"] for row in rows(kept.read_text())] == list(NAMES)


def test_a_killed_command_loses_nothing_that_was_answered(
    run: Any, users: Path, upstream: FakeUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    upstream.faults = [None, None, hang]
    code = "import sys; from popi import cli; sys.argv = ['popi', *sys.argv[1:]]; cli.main()"
    source = str(Path(cli.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", code, "infer", str(users), *map(str, api(upstream, "--out", path))],
        env=os.environ | {"PYTHONPATH": source},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while len(upstream.received) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert [row["user_id"] for row in rows(path.read_text())] == ["ann", "bob"]
    path.write_text(path.read_text() + '{"user_id": "cid", "summ')  # and in the middle of a line
    del upstream.received[:]
    assert run("infer", users, *api(upstream, "--out", path, "--resume"))[0] == 0
    assert asked(upstream) == ["cid"]
    assert [row["user_id"] for row in rows(path.read_text())] == list(NAMES)


def test_generate_answers_with_the_summary_in_view(run: Any, upstream: FakeUpstream) -> None:
    args = api(upstream)[:4]
    upstream.answer = lambda messages: f"{len(messages)} messages [bold]"
    code, out, err = run("generate", "hello", *args, "--summary", "likes jokes", "--temperature", 0.3)
    assert (code, out) == (0, "2 messages [bold]\n")
    assert "1 requests" in err
    assert upstream.received[0].body["temperature"] == 0.3
    extra = ["--api-extra", '{"max_tokens": null, "reasoning_effort": "low"}']
    assert run("generate", "hello", *args, *extra)[1] == "1 messages [bold]\n"
    assert "max_tokens" not in upstream.received[1].body
    assert upstream.received[1].body["reasoning_effort"] == "low"


def test_generate_without_an_answer_is_one_message(run: Any, upstream: FakeUpstream) -> None:
    upstream.faults = [status(404, "no model m")]
    code, out, err = run("generate", "hello", *api(upstream)[:4])
    assert (code, out, "no model m" in err, "Traceback" in err) == (2, "", True, False)
