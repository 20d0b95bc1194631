"""A frozen generator behind an API gives the same training and the same figures as the same model locally."""

import json
from pathlib import Path
from typing import Any

import pytest
from exact import nearly
from fake_upstream import FakeUpstream, status
from rich.console import Console
from safetensors.torch import load_file
from torch.testing import assert_close

from popi.config import ApiGeneratorConfig, RunConfig, resolve
from popi.errors import ConfigError, PopiError, RunError
from popi.evaluation.runner import evaluate
from popi.models.local.model import LocalModel
from popi.models.spec import ModelSpec
from popi.runs.files import read_jsonl
from popi.runs.run_directory import RunDirectory
from popi.training.train import train

QUIET = Console(quiet=True)
NATS = 100.0
"""About as large are the log-probs of responses, of which rewards and margins are differences."""
TRAINED = "phases/inference-1/inference_model/model.safetensors"


@pytest.fixture
def server(upstream: FakeUpstream, tiny_base: Path) -> FakeUpstream:
    upstream.local = LocalModel.load(tiny_base, device="cpu")
    return upstream


def make_config(root: Path, base: Path, name: str, **model: Any) -> RunConfig:
    inference = {"steps": 2, "users_per_step": 3, "group_size": 3, "targets_per_summary": 2, "warmup_steps": 0}
    return resolve(
        {
            "name": name,
            "root": str(root),
            "model": {"base": str(base), "device": "cpu", **model},
            "data": {"train_users": 6, "test_users": 3, "targets_per_user": 2},
            "signals": {"template": "nano"},
            "summary": {"max_tokens": 6},
            "training": {"inference": inference, "save_steps": 1},
            "evaluation": {"examples": 1, "answer_tokens": 4, "prompt_users": 4},
        }
    )


def generator_at(server: FakeUpstream) -> dict[str, Any]:
    return {"api_generator": {"url": f"{server.url}/v1", "name": "org/tiny", "concurrency": 2}}


@pytest.mark.parametrize("precision", ["float64"], indirect=True)  # in float32 a sample may fall otherwise
def test_training_and_evaluation_are_those_of_the_same_model_at_hand(
    precision: Any, server: FakeUpstream, tiny_base: Path, tmp_path: Path
) -> None:
    local_run = RunDirectory.open(train(make_config(tmp_path, tiny_base, "here"), console=QUIET))
    remote_run = RunDirectory.open(
        train(make_config(tmp_path, tiny_base, "there", **generator_at(server)), console=QUIET)
    )
    local, remote = (read_jsonl(run.path / "phases/inference-1/samples.jsonl") for run in (local_run, remote_run))
    assert [row["summary"] for row in remote] == [row["summary"] for row in local] and len(remote) == 18
    assert [row["reward"] for row in remote] == [nearly(row["reward"], of=NATS) for row in local]
    weights, others = load_file(local_run.path / TRAINED), load_file(remote_run.path / TRAINED)
    assert weights.keys() == others.keys()
    for name in weights:  # Adam makes up to 1e-6 of a step of what is nothing but rounding
        assert_close(others[name], weights[name], atol=1e-9, rtol=0)

    own, measured = evaluate(local_run), evaluate(remote_run)
    for method in ("no_personalization", "raw_signals", "untrained_summary", "oracle", "popi_plug_and_play"):
        figures, expected = measured["methods"][method], own["methods"][method]
        assert figures["context_overhead_tokens"] == expected["context_overhead_tokens"], method
        for key in ("reward_accuracy", "margin"):
            assert figures[key]["value"] == nearly(expected[key]["value"], of=NATS), method
    examples = json.loads((remote_run.path / "evaluation" / "examples.json").read_text())
    answers = examples["users"][0]["prompts"][0]["answers"]
    assert set(answers.values()) == {"likes short answers."}, "answers come from the server"


def test_another_generator_behind_an_api_reads_the_summaries(
    server: FakeUpstream, tiny_base: Path, tmp_path: Path
) -> None:
    run = RunDirectory.open(train(make_config(tmp_path, tiny_base, "here"), console=QUIET))
    own = evaluate(run)
    other = ModelSpec.of_api(ApiGeneratorConfig(**generator_at(server)["api_generator"]))
    result = evaluate(run, generator=other)
    assert result["generator"] == f"org/tiny at {server.url}/v1"
    assert (run.path / "evaluation" / "with-tiny" / "metrics.json").is_file()
    assert set(result["gain_kept"]) >= {"popi_plug_and_play", "untrained_summary"}
    # The server's model is the run's own: in the run's own template set it has the run's own figures.
    other_margin, own_margin = (m["methods"]["popi_plug_and_play"]["margin"]["value"] for m in (result, own))
    assert other_margin == pytest.approx(own_margin, abs=1e-3)


def test_a_server_whose_model_writes_nothing_is_evaluated_without_its_answers(
    server: FakeUpstream, tiny_base: Path, tmp_path: Path
) -> None:
    run = RunDirectory.open(train(make_config(tmp_path, tiny_base, "there", **generator_at(server)), console=QUIET))
    server.answer = lambda messages: ""
    figures = evaluate(run)["methods"]["oracle"]
    assert figures["missing"] == 0 and figures["reward_accuracy"]["value"] is not None
    [user] = json.loads((run.path / "evaluation" / "examples.json").read_text())["users"]
    assert all(asked["answers"] == {} for asked in user["prompts"])


def test_a_server_that_goes_away_ends_the_run_and_resuming_ends_where_an_unbroken_one_does(
    server: FakeUpstream, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make_config(tmp_path, tiny_base, "whole", **generator_at(server)), console=QUIET)
    broken = make_config(tmp_path, tiny_base, "broken", **generator_at(server))
    answered = server.reply

    def after_the_first_step(path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if list(broken.directory.rglob("checkpoint-1")):
            server.faults.extend([status(404, "gone")] * 50)
        return answered(path, body)

    monkeypatch.setattr(server, "reply", after_the_first_step)
    with pytest.raises(PopiError, match="gone"):
        train(broken, console=QUIET)
    monkeypatch.setattr(server, "reply", answered)
    server.faults.clear()
    server.local.model.lm_head.weight.data.mul_(2)
    with pytest.raises(RunError, match="another model under this name"):
        train(broken, resume=True, console=QUIET)
    server.local.model.lm_head.weight.data.div_(2)
    train(broken, resume=True, console=QUIET)
    weights, others = load_file(whole / TRAINED), load_file(broken.directory / TRAINED)
    for name in weights:
        assert_close(others[name], weights[name], atol=0, rtol=0)


def test_a_server_that_is_overloaded_for_longer_than_the_retries_ends_the_run_and_says_how_to_resume(
    server: FakeUpstream, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = generator_at(server)
    model["api_generator"]["retries"] = 1
    settings = make_config(tmp_path, tiny_base, "run", **model)
    answered = server.reply

    def after_the_first_step(path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if list(settings.directory.rglob("checkpoint-1")):
            server.faults.extend([status(503)] * 500)
        return answered(path, body)

    monkeypatch.setattr(server, "reply", after_the_first_step)
    with pytest.raises(RunError, match=r"503.*gave up after 2 attempts.*once the server answers, resume with: popi tr"):
        train(settings, console=QUIET)
    monkeypatch.setattr(server, "reply", answered)
    server.faults[:] = [status(503)]
    train(settings, resume=True, console=QUIET)
    assert RunDirectory.open(settings.directory).phase("inference-1").done


@pytest.mark.parametrize(
    ("model", "orders", "message"),
    [
        ({"url": "http://127.0.0.1:9/v1", "name": "m"}, ["alternating"], "stays frozen"),
        ({"url": "http://127.0.0.1:9/v1"}, ["plug_and_play"], "both url and name"),
        ({"name": "m"}, ["plug_and_play"], "both url and name"),
    ],
)
def test_what_does_not_go_together_is_refused(
    model: dict[str, Any], orders: list[str], message: str, tiny_base: Path, tmp_path: Path
) -> None:
    config = make_config(tmp_path, tiny_base, "run", api_generator=model)
    config = config.model_copy(update={"training": config.training.model_copy(update={"orders": orders})})
    with pytest.raises(ConfigError, match=message):
        train(config, console=QUIET)
    assert not config.directory.exists()
