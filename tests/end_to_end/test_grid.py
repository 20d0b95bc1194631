"""`popi evaluate GRID.toml`: train, kill and resume, with generators and judges behind APIs that fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from exact import nearly
from fake_upstream import KEY, FakeUpstream, status
from rich.console import Console
from typer.testing import CliRunner

from popi.cli import app
from popi.errors import ConfigError, RunError, UpstreamError
from popi.evaluation.grid.run import run_grid
from popi.evaluation.grid.settings import GridConfig, load_grid
from popi.evaluation.job import read_rows
from popi.generator import Generator
from popi.models.local.model import LocalModel
from popi.runs.rows import ResumableRows

QUIET = Console(quiet=True)
USERS, TARGETS = 12, 2
METHODS = ["raw_signals", "untrained_summary", "population_dpo", "per_user_lora", "oracle", "popi_plug_and_play"]


@pytest.fixture(scope="module")
def run_config(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A run's TOML; the first test to use it trains it."""
    folder = tmp_path_factory.mktemp("grids")
    file = folder / "run.toml"
    file.write_text(
        f"""name = "tiny"
root = "{folder}"
[model]
base = "{tiny_base}"
device = "cpu"
[data]
train_users = 8
test_users = {USERS}
targets_per_user = {TARGETS}
[signals]
template = "nano"
[summary]
max_tokens = 6
[training]
orders = ["population_dpo", "plug_and_play"]
[training.inference]
steps = 1
users_per_step = 2
group_size = 2
[training.generator]
steps = 1
batch_size = 2
[evaluation]
prompt_users = 4
batch_size = 2
answer_tokens = 6
[evaluation.per_user_lora]
steps = 1
rank = 2
users = 3
"""
    )
    return file


def grid_file(root: Path, run_config: Path, more: str = "", methods: list[str] | None = None) -> Path:
    root.mkdir(exist_ok=True)
    file = root / "grid.toml"
    file.write_text(
        f'name = "g"\nroot = "{root}"\nmethods = {json.dumps(methods or METHODS)}\n'
        f'[[benchmarks]]\nname = "nano"\nconfig = "{run_config}"\n{more}'
    )
    return file


TRUTH = '[[judges]]\nname = "truth"\nkind = "truth"\nprompts = 1\n'


def load(*args: Any, **more: Any) -> GridConfig:
    return load_grid(grid_file(*args, **more))


def tables(grid: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row that a grid stored, by file."""
    return {str(path.relative_to(grid)): read_rows(path) for path in sorted(grid.rglob("*.jsonl"))}


def test_a_killed_grid_goes_on_without_repeating_an_item(
    run_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_grid(load(tmp_path / "whole", run_config, TRUTH), QUIET)  # this also trains the run
    assert [row["method"] for row in whole["rows"]] == ["no_personalization", *METHODS]
    broken = grid_file(tmp_path / "broken", run_config, TRUTH)
    process = subprocess.Popen(
        [sys.executable, "-m", "popi.cli", "evaluate", str(broken)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    part = tmp_path / "broken/g/cells/nano/own/raw_signals.part.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and not part.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    own = tmp_path / "broken/g/cells/nano/own"
    assert not (tmp_path / "broken/g/grid.json").exists(), errors.decode()[-2000:]
    before = {path: path.read_text() for path in own.glob("*.jsonl")}
    # An incomplete last line was being written; it does not count, and neither does a header alone.
    stored = sum(max(0, text.count("\n") - path.name.endswith(".part.jsonl")) for path, text in before.items())
    assert (own / "no_personalization.jsonl") in before and USERS * TARGETS <= stored < 3 * USERS * TARGETS

    written: list[str] = []
    extend = ResumableRows.extend

    def counted(self: ResumableRows, rows: Any) -> None:
        loaded = list(rows)
        assert not [row for row in loaded if self._key(row) in self.rows], "a row is made twice"
        written.extend(self.path.name for _ in loaded)
        extend(self, loaded)

    monkeypatch.setattr(ResumableRows, "extend", counted)
    resumed = run_grid(load_grid(broken), QUIET)
    scored = sum(name.endswith(".part.jsonl") for name in written)
    assert scored == 6 * USERS * TARGETS + 3 * TARGETS - stored
    unbroken, again = tables(tmp_path / "whole/g"), tables(tmp_path / "broken/g")
    assert unbroken.keys() == again.keys() and unbroken == again
    assert not list((tmp_path / "broken").rglob("*.part*"))
    for result in (whole, resumed):
        assert result.pop("config")
    assert whole == resumed

    written.clear()
    monkeypatch.setattr(Generator, "score", lambda *a: pytest.fail("nothing is left to score"))
    assert run_grid(load_grid(broken), QUIET)["rows"] == resumed["rows"] and written == []


def test_rows_hold_what_is_needed_to_recompute_them(run_config: Path, tmp_path: Path, tiny_base: Path) -> None:
    grid = load(tmp_path, run_config, TRUTH)
    result = run_grid(grid, QUIET)
    rows = read_rows(grid.directory / "cells/nano/own/popi_plug_and_play.jsonl")
    assert len(rows) == USERS * TARGETS
    row, model = rows[3], LocalModel.load(tiny_base, device="cpu")
    generator = Generator(model, row["template"])
    assert generator.templates.stamp == row["template_stamp"]
    from popi.data.users import users_of
    from popi.signals.types import TargetPair

    [entry] = grid.benchmarks
    target: TargetPair = users_of(entry.run_config(), "test").users[row["window"]].targets[row["target"]]
    chosen, rejected = generator.score([(row["messages"], target)])
    assert (row["chosen_logp"], row["rejected_logp"]) == (
        nearly(chosen[0]),
        nearly(rejected[0]),
    )
    assert row["messages"][0]["role"] == "system" and row["summary"] in row["messages"][0]["content"]
    assert {"benchmark", "benchmark_version", "commit", "seed", "models", "revision", "users"} <= row.keys()
    assert "inference_model" in row["models"]["inference_model"] and row["missing"] is None
    [table] = [one for one in result["rows"] if one["method"] == "per_user_lora"]
    assert (table["n_users"], table["n_pairs"], table["judged"]) == (3, 3 * TARGETS, [])
    by_method = {one["method"]: one["judged"] for one in result["rows"]}
    assert by_method["oracle"][0]["against"] == "no_personalization" and by_method["oracle"][0]["comparisons"] == USERS
    page = (grid.directory / "grid.md").read_text()
    figures, judged = page.split("## Responses by the nano world's truth")
    assert figures.count("| nano | own |") == len(METHODS) + 1
    assert judged.count("| nano | own |") == len(METHODS) - 1, "the adapters of per-user LoRA write nothing"
    [one] = by_method["oracle"]
    assert one["seen_topics"]["comparisons"] == USERS and {"value", "low", "high"} == one["valid"].keys()


def generator_at(upstream: FakeUpstream, name: str, more: str = "") -> str:
    url = upstream.url if "anthropic" in more else f"{upstream.url}/v1"
    return f'[[generators]]\nname = "{name}"\nmodel = "org/{name}"\nurl = "{url}"\nconcurrency = 1\n{more}\n'


def asked(upstream: FakeUpstream, path: str) -> int:
    return sum(request.path == path for request in upstream.received)


def test_what_a_server_did_not_score_is_missing_and_asked_again_alone(
    run_config: Path, tmp_path: Path, upstream: FakeUpstream, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.local, upstream.wants_key = LocalModel.load(tiny_base, device="cpu"), True
    methods = ["untrained_summary", "popi_plug_and_play"]
    more = generator_at(upstream, "vllm", 'scores = true\ntemplate = "nano"')
    grid = load(
        tmp_path,
        run_config,
        "[[generators]]\nname = 'same'\nmodel = '" + str(tiny_base) + "'\n" + more,
        methods=methods,
    )
    reply, calls = upstream.reply, []

    def faulty(path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        calls.extend([path] * (path == "/v1/completions"))
        if path == "/v1/completions" and len(calls) == 5:
            upstream.faults.append(status(400, "not today"))
        return reply(path, body)

    monkeypatch.setattr(upstream, "reply", faulty)
    result = run_grid(grid, QUIET)
    rows = {(row["generator"], row["method"]): row for row in result["rows"]}
    lost = rows["vllm", "no_personalization"]
    assert (lost["missing"], lost["n_pairs"]) == (1, USERS * TARGETS - 1)
    # That pair has no reference, so no method has a margin for it.
    assert rows["vllm", "popi_plug_and_play"]["missing"] == 1 and result["missing"] == 3
    stored = read_rows(grid.directory / "cells/nano/vllm/no_personalization.jsonl")
    [gap] = [row for row in stored if row["missing"] is not None]
    assert "not today" in gap["missing"] and gap["margin"] is None and gap["chosen_logp"] is None

    del upstream.received[:]
    result = run_grid(grid, QUIET)
    assert result["missing"] == 0
    assert asked(upstream, "/v1/completions") == 3 * 2  # chosen and rejected, under three methods
    rows = {(row["generator"], row["method"]): row for row in result["rows"]}
    for method in methods:  # the same weights, locally and behind the server
        remote, local = rows["vllm", method], rows["same", method]
        assert remote["margin"]["value"] == nearly(local["margin"]["value"], of=100)
        assert remote["context_overhead_tokens"] == local["context_overhead_tokens"]
    files = {path.name for path in (grid.directory / "cells/nano/summaries").glob("*.jsonl")}
    assert len(files) == 2, "summaries are written once for all readers"
    del upstream.received[:]
    run_grid(grid, QUIET)
    assert upstream.received == []


def test_a_server_that_gives_nothing_leaves_gaps_and_no_zeros(
    run_config: Path, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.faults = [status(404, "no such model")] * 100  # every request fails
    file = grid_file(tmp_path, run_config, generator_at(upstream, "vllm", "scores = true"), methods=["oracle"])
    done = CliRunner().invoke(app, ["evaluate", str(file)])
    assert done.exit_code == 1 and "missing: 24 items of nano, vllm, oracle" in done.output
    sent = len(upstream.received)
    assert sent < 10, "what would meet the same is not sent"
    rows = json.loads((tmp_path / "g/grid.json").read_text())["rows"]
    assert [row["missing"] for row in rows] == [0, 0, 24, 24]
    assert rows[-1]["reward_accuracy"] == {"value": None, "low": None, "high": None} and rows[-1]["gain_kept"] is None
    run = run_config.parent / "tiny"
    assert CliRunner().invoke(app, ["evaluate", "--run", str(run)]).exit_code == 0
    options = ["--api", f"{upstream.url}/v1", "--api-model", "org/vllm"]
    done = CliRunner().invoke(app, ["evaluate", "--run", str(run), *options])
    assert isinstance(done.exception, UpstreamError) and "no such model" in str(done.exception)
    assert not (run / "evaluation/with-vllm/metrics.json").exists()


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_generators_without_log_probs_are_judged(
    run_config: Path, tmp_path: Path, upstream: FakeUpstream, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.wants_key = True
    upstream.answer = lambda messages: f"hi {len(str(messages))}."
    upstream.faults = [None, status(400, "not today")]
    more = generator_at(upstream, "chat", f'protocol = "{protocol}"\ninput_price = 1\noutput_price = 10')
    methods = ["raw_signals", "popi_plug_and_play"]
    file = grid_file(tmp_path, run_config, more + TRUTH, methods=methods)
    done = CliRunner().invoke(app, ["evaluate", str(file)])
    assert done.exit_code == 1 and "nano, chat" in done.output
    result = json.loads((tmp_path / "g/grid.json").read_text())
    rows = {row["method"]: row for row in result["rows"] if row["generator"] == "chat"}
    assert rows["popi_plug_and_play"]["reward_accuracy"] is None and not rows["raw_signals"]["scored"]
    lost = {name: row["judged"][0]["missing_verdicts"] for name, row in rows.items() if row["judged"]}
    assert lost == {"raw_signals": {"no response": 2}, "popi_plug_and_play": {}} and result["missing"] == 2
    assert rows["raw_signals"]["judged"][0]["judged"] == USERS - 1
    sent = len(upstream.received)
    assert sent == 3 * 2 * USERS  # three methods, one prompt of the user's own topics and one of seen ones
    assert list((tmp_path / "g").glob("transfer.*")) != []

    done = CliRunner().invoke(app, ["evaluate", str(file)])
    assert done.exit_code == 0, done.output
    assert len(upstream.received) == sent + 1 and json.loads((tmp_path / "g/grid.json").read_text())["missing"] == 0
    stored = list((tmp_path / "g/cells/nano/chat/responses").glob("raw_signals-*.jsonl"))
    assert len(stored) == 2  # on the user's own topics, and on seen ones
    for file in stored:
        row = read_rows(file)[1]
        assert row["response"] == f"hi {len(str(row['messages']))}." or protocol == "anthropic"
        assert KEY not in done.output + file.read_text()


def test_popi_judge_takes_a_generator_behind_an_api(
    run_config: Path, tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_grid(load(tmp_path, run_config, methods=["popi_plug_and_play"]), QUIET)
    run = run_config.parent / "tiny"
    options = ["judge", "--run", str(run), "--method", "popi_plug_and_play", "--against", "no_personalization"]
    options += ["--judge", "truth", "--prompts", "1", "--api", f"{upstream.url}/v1", "--api-model", "org/chat"]
    if not (run / "evaluation").exists():
        refused = CliRunner().invoke(app, options)
        assert refused.exit_code != 0 and "popi evaluate" in str(refused.exception)
    assert CliRunner().invoke(app, ["evaluate", "--run", str(run)]).exit_code == 0
    upstream.wants_key = True
    upstream.answer = lambda messages: f"hi {len(str(messages))}."
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    folder = run / "evaluation/with-chat/judge/popi_plug_and_play-vs-no_personalization-by-truth"
    result = json.loads((folder / "judge.json").read_text())
    assert result["comparisons"] == USERS == result["judged"]
    assert len(upstream.received) == 2 * 2 * USERS  # two methods, prompts on the user's own topics and on seen ones
    monkeypatch.delenv("OPENAI_API_KEY")
    refused = CliRunner().invoke(app, [*options, "--api-key-env", "NO_SUCH_KEY"])
    assert isinstance(refused.exception, ConfigError) and "NO_SUCH_KEY" in str(refused.exception)


def test_other_settings_are_refused_and_additions_are_not(run_config: Path, tmp_path: Path, tiny_base: Path) -> None:
    second = f'[[generators]]\nname = "second"\nmodel = "{tiny_base}"\n'
    methods = ["raw_signals"]
    run_grid(load(tmp_path, run_config, methods=methods), QUIET)
    rows = read_rows(tmp_path / "g/cells/nano/own/raw_signals.jsonl")
    with pytest.raises(RunError, match="max_users: None -> 2"):
        run_grid(load_grid(tmp_path / "grid.toml", ["max_users=2"]), QUIET)
    result = run_grid(load(tmp_path, run_config, second, methods=["raw_signals", "oracle"]), QUIET)
    assert len(result["rows"]) == 6 and read_rows(tmp_path / "g/cells/nano/own/raw_signals.jsonl") == rows
    with pytest.raises(RunError, match=r"generators\.second\.template: 'auto' -> 'default'"):
        run_grid(load(tmp_path, run_config, second + 'template = "default"\n', methods=methods), QUIET)
    with pytest.raises(RunError, match=r"methods: .*'oracle'"):
        run_grid(load(tmp_path, run_config, second, methods=["raw_signals"]), QUIET)
    # Rows from other weights are not mixed with existing ones.
    finished = tmp_path / "g/cells/nano/own/finished.json"
    marks = json.loads(finished.read_text())
    marks["oracle"]["stamp"], marks["oracle"]["settings"]["models"]["generator"] = "other", "elsewhere 0123"
    finished.write_text(json.dumps(marks))
    with pytest.raises(RunError, match=r"models\.generator: 'elsewhere 0123' -> "):
        run_grid(load(tmp_path, run_config, second, methods=["raw_signals", "oracle"]), QUIET)


def test_a_generator_that_can_not_be_loaded_is_told_and_the_others_are_done(run_config: Path, tmp_path: Path) -> None:
    more = f'[[generators]]\nname = "gone"\nmodel = "{tmp_path}/nowhere"\n'
    file = grid_file(tmp_path, run_config, more, methods=["oracle"])
    done = CliRunner().invoke(app, ["evaluate", str(file)])
    assert done.exit_code == 1 and "not done: nano, generator gone" in done.output
    result = json.loads((tmp_path / "g/grid.json").read_text())
    assert [one["generator"] for one in result["failed"]] == ["gone"]
    assert result["rows"][1]["reward_accuracy"]["value"] is not None
    assert "gone" in (tmp_path / "g/grid.md").read_text()


def test_keys_are_asked_for_before_anything_is_trained(
    tmp_path: Path, run_config: Path, upstream: FakeUpstream
) -> None:
    other = run_config.read_text().replace('name = "tiny"', 'name = "never"')
    config = tmp_path / "run.toml"
    config.write_text(other)
    more = generator_at(upstream, "chat", 'key_env = "NO_SUCH_KEY"')
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        run_grid(load(tmp_path / "a", config, more + TRUTH), QUIET)
    with pytest.raises(ConfigError, match=r"generators\.chat: returns no log-probs and no judge"):
        run_grid(load(tmp_path / "b", config, generator_at(upstream, "chat")), QUIET)
    assert not (run_config.parent / "never").exists()
