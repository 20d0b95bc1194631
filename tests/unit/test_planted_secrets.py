"""Secrets are planted wherever popi takes one, and looked for wherever it writes: logs at their loudest, answers and
errors, metrics, representations, tracebacks, run directories, help.

Where a real key would be, each planted one says where it was planted, so that a leak names its own way.
"""

import base64
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from all_logs import all_logs
from fake_upstream import FakeUpstream, serving
from sqlalchemy import Connection
from starlette.testclient import TestClient
from webhook_receiver import receiving

import popi
from popi import cli
from popi.config import load_config
from popi.config.http import HttpConfig
from popi.errors import PopiError
from popi.models.remote.api_url import ApiUrl
from popi.models.remote.upstream import Upstream
from popi.models.spec import ModelSpec
from popi.serving.app import Gateway
from popi.serving.settings import GatewaySettings, of_worker, read
from popi.serving.store import keys, signals
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.serving.webhooks import Deliverer
from popi.serving.worker.inference import read as read_inference
from popi.signals.types import StatementSignal

MARK = "hunter2"
WEBHOOK = "whsec_" + base64.b64encode(b"hunter2-webhook, 32 bytes or more").decode()
PLANTED = {
    "OPENAI_API_KEY": f"sk-{MARK}-openai",
    "ANTHROPIC_API_KEY": f"sk-{MARK}-anthropic",
    "HF_TOKEN": f"hf_{MARK}hub",
    "WANDB_API_KEY": f"{MARK}-wandb",
    "POPI_KEY": f"popi_0123456789ab_{MARK}",
    "POPI_ADMIN_KEY": f"admin-{MARK}-admin",
    "POPI_STORE": f"postgresql://popi:{MARK}-database@127.0.0.1:9/popi",
    "HTTPS_PROXY": f"http://proxy:{MARK}-proxy@127.0.0.1:9",
    "UPSTREAM_KEY": f"sk-{MARK}-upstream",
    "INFERENCE_KEY": f"sk-{MARK}-inference",
    "ID_SECRET": f"{MARK}-ids-thirty-two-bytes-or-more",
    "JWT_KEY": f"{MARK}-jwt-thirty-two-bytes-or-more",
    "OIDC_SECRET": f"{MARK}-oidc",
    "WEBHOOK_SECRET": WEBHOOK,
}
ADMIN = PLANTED["POPI_ADMIN_KEY"]
SETTINGS = """
[[proxy.upstreams]]
name = "main"
url = "{upstream}/v1"
key_env = "UPSTREAM_KEY"
[proxy]
summary_timeout_ms = 10000
id_secret_env = "ID_SECRET"
[proxy.jwt]
key_env = "JWT_KEY"
algorithms = ["HS256"]
[inference]
url = "{upstream}/v1"
model = "m"
key_env = "INFERENCE_KEY"
[page]
url = "https://popi.example"
oidc = {{issuer = "{upstream}", client_id = "popi", client_secret_env = "OIDC_SECRET", admins = ["x"]}}
[[webhooks]]
name = "crm"
url = "{webhook}"
secret_env = "WEBHOOK_SECRET"
"""


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def found_in(*texts: object) -> list[str]:
    """Lines that hold a planted secret, also in base64."""
    wanted = (MARK, WEBHOOK.removeprefix("whsec_")[:20])
    return [line for text in texts for line in str(text).splitlines() if any(one in line for one in wanted)]


@contextlib.contextmanager
def settings_file(folder: Path) -> Iterator[tuple[Path, FakeUpstream]]:
    with serving() as upstream, receiving() as receiver:
        file = folder / "popi.toml"
        file.write_text(SETTINGS.format(upstream=upstream.url, webhook=receiver.url))
        yield file, upstream


def quoting(handler: Any) -> None:
    """Refuses a request in the words of a careless server, which print the key."""
    key = handler.headers.get("x-api-key") or handler.headers.get("authorization", "")
    handler.send(401, {"error": {"message": f"Incorrect API key provided: {key}. Ask an administrator."}})


def test_the_gateway(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answers: list[Any] = []
    with settings_file(tmp_path) as (file, upstream), all_logs() as lines:
        settings = read(file)
        database = Database.open(f"sqlite:///{tmp_path}/popi.db")
        renewer = cli.serve._api_worker(database, file, read_inference(file))
        deliverer = Deliverer(database, settings.webhooks, settings.http)
        database.write(keys.ensure_tenant, "default", 0.0)
        gateway = Gateway(database, settings)
        deliverer.start()
        with TestClient(gateway, headers={"authorization": f"Bearer {ADMIN}"}) as client:

            def ask(method: str, path: str, **more: Any) -> None:
                answers.append(client.request(method, path, **more))

            chat = {"model": "m", "user": "ada", "messages": [{"role": "user", "content": "hello"}]}
            ask("PUT", "/users/ada/summary", json={"text": "Likes tea."})
            ask("POST", "/v1/chat/completions", json=chat)
            upstream.faults += [quoting, quoting, lambda handler: handler.send(500, {"oops": PLANTED["UPSTREAM_KEY"]})]
            ask("POST", "/v1/chat/completions", json=chat)
            ask("POST", "/v1/messages", json=chat | {"max_tokens": 9})
            ask("GET", "/v1/models")
            ask("POST", "/v1/batches", json={})
            ask("POST", "/v1/chat/completions", content=f"{{{MARK}-not-json")
            ask("GET", "/users/ada", headers={"authorization": f"Bearer popi_0123456789ab_{MARK}"})
            ask("GET", "/users/ada", headers={"authorization": MARK})
            ask("GET", "/users/ada", headers={"x-popi-jwt": f"{MARK}.{MARK}.{MARK}"})
            ask("GET", "/admin/oidc/start", follow_redirects=False)
            for path in ("/metrics", "/readyz", "/healthz", "/openapi.json", "/admin", "/me", "/users/ada/export"):
                ask("GET", path, follow_redirects=False)

            def due(connection: Connection) -> None:
                signals.add(
                    connection,
                    "default",
                    "ben",
                    [StatementSignal(text="Hi.")],
                    database.now(connection),
                    Debounce(0, 0),
                )

            database.write(due)
            upstream.faults += [quoting] * 3
            assert renewer.run_one() == "failed"  # its provider refused, and printed the key
            ask("GET", "/users/ben")
            ask("GET", "/readyz")
            ask("GET", "/metrics")
        deliverer.stop()
    statuses = [one.status_code for one in answers]
    assert {200, 401, 500} <= set(statuses) and statuses[2] == 401
    assert answers[2].json()["error"]["message"] == (
        "Incorrect API key provided: Bearer " + "*" * len(PLANTED["UPSTREAM_KEY"]) + ". Ask an administrator."
    )
    headers = json.loads(json.dumps([dict(one.headers) for one in upstream.received]))
    sent = {value.removeprefix("Bearer ") for one in headers for value in one.values()}
    assert {PLANTED["UPSTREAM_KEY"], PLANTED["INFERENCE_KEY"]} <= sent, "what is searched for was in use"
    assert found_in(*lines) == []
    assert found_in(*(one.text + str(one.headers) for one in answers)) == []
    streams = capfd.readouterr()
    assert found_in(streams.out, streams.err) == []
    kept = b"".join(one.read_bytes() for one in tmp_path.glob("popi.db*"))
    assert MARK.encode() not in kept


def test_representations_and_dumps(tmp_path: Path) -> None:
    with settings_file(tmp_path) as (file, upstream):
        url = f"{upstream.url}/v1"
        settings, inference = read(file), read_inference(file)
        config = load_config(None, [f"model.api_generator.url={url}", "model.api_generator.key_env=UPSTREAM_KEY"])
        spec = ModelSpec("m", url=url, key_env="UPSTREAM_KEY")
        things: list[Any] = [settings, of_worker(file), inference, inference.connect(), config, spec, HttpConfig()]
        things += [*settings.proxy.all_upstreams, settings.proxy.jwt, ApiUrl.parse(url)]
        things += [popi.InferenceModel.from_spec(spec), popi.Generator.from_api(url, "m", key_env="UPSTREAM_KEY")]
        things += [popi.Client("http://localhost:8600"), popi.AsyncClient("http://localhost:8600", PLANTED["POPI_KEY"])]
        things += [Upstream(ApiUrl.parse(url), key=settings.proxy.all_upstreams[0].secret())]
        database = Database.open(f"sqlite:///{tmp_path}/popi.db")
        things += [database, database._engine, Gateway(database, settings), Database(PLANTED["POPI_STORE"])._engine]
    for thing in things:
        shown = [repr(thing), str(thing), f"{thing!r:.9999}"]
        if hasattr(thing, "model_dump_json"):
            shown += [thing.model_dump_json(), str(thing.model_dump())]
        assert found_in(*shown) == [], type(thing)
    assert isinstance(settings, GatewaySettings)


KEY = f"sk-{MARK}-pasted"
WRONG = [
    ["serve", "--upstream", f"https://u:{MARK}@host/v1"],
    ["serve", "--upstream", f"u:{MARK}@host/v1"],
    ["serve", "--upstream", f"https://host/v1?api_key={MARK}"],
    ["serve", "--upstream", "http://127.0.0.1:9", "--upstream-key-env", KEY],
    ["serve", "--upstream", "http://127.0.0.1:9"],  # POPI_STORE leads nowhere
    ["serve", "--upstream", "http://127.0.0.1:9", "--store", f"mysql://u:{MARK}@host/db"],
    ["serve", "--upstream", "http://127.0.0.1:9", "--store", f"sqlite:///popi.db?password={MARK}&x"],
    ["serve", "--upstream", "http://127.0.0.1:9", "--store", f"postgresql://u:{MARK}@[host/db"],
    ["worker", "--inference-url", f"https://host/v1?key={MARK}", "--inference-model", "m"],
    ["worker", "--inference-url", "http://127.0.0.1:9", "--inference-model", "m", "--inference-key-env", KEY],
    ["keys", "list"],
    ["users", "list"],
    ["audit"],
    ["mcp", "--url", f"u:{MARK}@host", "--user", "ada"],
    ["mcp", "--url", "http://127.0.0.1:9", "--user", "ada", "--key-env", KEY],
    ["generate", "hello", "--api", f"https://u:{MARK}@host/v1", "--api-model", "m"],
    ["generate", "hello", "--api", "https://127.0.0.1:9/v1", "--api-model", "m", "--key-env", KEY],
    ["train", "CONFIG", f"model.api_generator.key_env={KEY}", "model.api_generator.url=http://h"],
]


@pytest.mark.parametrize("command", WRONG, ids=lambda command: " ".join(command)[:40])
def test_errors_of_commands(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text('name = "x"\n')
    words = [str(tmp_path / "config.toml") if word == "CONFIG" else word for word in command]
    monkeypatch.setattr(sys, "argv", ["popi", *words])
    with pytest.raises(SystemExit) as ended, all_logs() as lines:
        cli.main()
    assert ended.value.code not in (0, None)
    streams = capfd.readouterr()
    assert streams.err.startswith("popi: ") or "Error" in streams.err, streams.err
    assert found_in(streams.out, streams.err, *lines) == []


def test_help_shows_no_value_of_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shown = 0
    for panel in cli.COMMANDS.values():
        for name, command in panel.items():
            inner = command.registered_commands if isinstance(command, typer.Typer) else [None]
            for one in inner:
                words = [name] if one is None else [name, str(one.name)]
                monkeypatch.setattr(sys, "argv", ["popi", *words, "--help"])
                with pytest.raises(SystemExit):
                    cli.main()
                said = capsys.readouterr()
                shown += "POPI_STORE" in said.out
                assert found_in(said.out, said.err) == [], words
    assert shown >= 5, "no help names the variable any more: this test looks at nothing"


def test_tracebacks_hold_no_locals_and_no_headers(tmp_path: Path) -> None:
    """As Python prints them, with every exception behind an error; and where it was raised, the source line alone."""
    with serving() as upstream:
        url, shown = f"{upstream.url}/v1", []
        upstream.faults += [quoting] * 4
        generator = popi.Generator.from_api(url, "m", key_env="UPSTREAM_KEY")
        unreachable = popi.Generator.from_api("http://127.0.0.1:9/v1", "m", key_env="UPSTREAM_KEY")
        unreachable.backend.upstream.retries = type(unreachable.backend.upstream.retries)(0)
        for call in (
            lambda: generator.generate("hello", "Likes tea."),
            lambda: unreachable.generate("hello", "Likes tea."),
            lambda: Database.open(PLANTED["POPI_STORE"]),
            lambda: popi.Client("http://127.0.0.1:9", retries=type(unreachable.backend.upstream.retries)(0)).users(),
        ):
            try:
                for _ in call() or ():
                    pass
            except PopiError as error:
                behind: BaseException | None = error
                while behind is not None:
                    shown += [*traceback.format_exception(behind), repr(behind), str(behind.args)]
                    behind = behind.__context__
            else:
                raise AssertionError("nothing was refused")
    assert len(shown) > 8
    assert found_in(*shown) == []


def test_an_error_of_ours_on_the_command_line(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """An unexpected exception prints a traceback without the values of variables, as rich's would."""

    def broken(variable: str) -> Any:
        key = os.environ[variable]
        raise RuntimeError(f"a key of {len(key)} characters")

    monkeypatch.setattr("popi.models.remote.key.key_in", broken)
    monkeypatch.setattr(sys, "argv", ["popi", "serve", "--upstream", "http://h", "--upstream-key-env", "UPSTREAM_KEY"])
    with pytest.raises(RuntimeError) as caught:
        cli.main()
    sys.excepthook(caught.type, caught.value, caught.tb)
    said = capfd.readouterr().err
    assert "a key of" in said and found_in(said) == []


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder, and its name."""
    read = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {str(path): f"{path} " + content.decode("utf-8", "replace") for path, content in read.items()}


def test_what_infer_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Its rows, the users that it gave up on, and its progress: the server quotes the key at one of two users."""
    popi.write_users(
        tmp_path / "users.jsonl", [popi.User(user_id=n, signals=[StatementSignal(text="Hi.")]) for n in "ab"]
    )
    with serving() as upstream:
        upstream.faults += [lambda handler: handler.send(400, {"error": {"message": handler.headers["authorization"]}})]
        words = ["infer", tmp_path / "users.jsonl", "--api", f"{upstream.url}/v1", "--api-model", "m"]
        words += ["--key-env", "UPSTREAM_KEY", "--concurrency", "1", "--out", tmp_path / "out.jsonl"]
        monkeypatch.setattr(sys, "argv", ["popi", *map(str, words)])
        with pytest.raises(SystemExit), all_logs() as lines:
            cli.main()
    written = files(tmp_path)
    assert len(upstream.received) >= 2 and {Path(name).name for name in written} > {"users.jsonl", "out.jsonl"}
    streams = capfd.readouterr()
    assert found_in(*written.values(), streams.out, streams.err, *lines) == []


@pytest.mark.slow
def test_a_run_directory_and_its_report(tmp_path: Path) -> None:
    """Trained, evaluated and reported with every variable set that popi or its libraries read."""
    from popi.evaluation.demo import run_demo

    sizes = ["data.train_users=16", "data.test_users=8", "evaluation.prompt_users=4", "evaluation.examples=1"]
    run_demo(tmp_path, overrides=[*sizes, "training.inference.steps=1", "training.generator.steps=1"])
    written = files(tmp_path)
    assert {"config.json", "metrics.json", "report.html", "log.jsonl"} <= {Path(name).name for name in written}
    assert found_in(*written.values()) == []
