"""The examples do what their texts say."""

import difflib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from end_to_end.gateway_process import running
from fake_upstream import FakeUpstream, Received, serving

from popi import Client, cli
from popi.serving.keys import create
from popi.serving.store.database import Database

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENTS = Path(os.environ["POPI_TEST_CLIENTS"]) if "POPI_TEST_CLIENTS" in os.environ else None
"""Other people's clients (`.ci/client-stacks`)."""


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def patient(folder: Path) -> tuple[str, str]:
    """Options of a gateway that waits for its store on a busy machine: what is tested is what goes upstream."""
    config = folder / "gateway.toml"
    config.write_text("[proxy]\nsummary_timeout_ms = 10_000\n")
    return "--config", str(config)


@dataclass
class Stand:
    """A gateway in front of a model API, for all examples of a file; `ada` and `0b-17` have a summary."""

    upstream: FakeUpstream
    url: str
    key: str

    def sent(self) -> list[Received]:
        """What has come upstream since the last call."""
        received = list(self.upstream.received)
        self.upstream.received.clear()
        return received

    @property
    def env(self) -> dict[str, str]:
        """What an example is told by."""
        return {"POPI_URL": self.url, "POPI_KEY": self.key, "MODEL": "m", "NO_PROXY": "*"}


@pytest.fixture(scope="module")
def shared_stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("gateway")
    store = f"sqlite:///{folder}/popi.db"
    with serving() as upstream, running(store, *patient(folder), upstream=f"{upstream.url}/v1") as gateway:
        database = Database.open(store)
        key = create(database, "app", "acme")[0]
        database.close()
        with Client(gateway.url, key) as client:
            for user in ("ada", "0b-17"):
                client.put_summary(user, "Likes metric units.")
        yield Stand(upstream, gateway.url, key)


@pytest.fixture
def stand(shared_stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Stand:
    for name, value in shared_stand.env.items():
        monkeypatch.setenv(name, value)
    shared_stand.sent()
    return shared_stand


def personal(sent: Received) -> bool:
    """Whether a request has ada's summary in it; her id is in none."""
    assert '"ada"' not in json.dumps(sent.body) and "ada" not in sent.headers.values()
    return "Likes metric units." in json.dumps(sent.body)


def test_three_lines_personalise_a_chat_app(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    before, after = (EXAMPLES / "chat_app" / name for name in ("before.py", "after.py"))
    lines = list(difflib.ndiff(before.read_text().splitlines(), after.read_text().splitlines()))
    assert sum(line.startswith("+ ") for line in lines) == 3 and sum(line.startswith("- ") for line in lines) == 1

    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{stand.upstream.url}/v1")
    plain = load("chat_app/before.py").answer("how far is it?", "ada")
    module = load("chat_app/after.py")
    assert module.answer("how far is it?", "ada") == plain == "likes short answers."
    module.answer("how far is it?", "nobody")
    direct, personalised, other = (one.body for one in stand.sent())
    assert "Likes metric units." in personalised["messages"][0]["content"]
    assert personalised["messages"][0]["content"].startswith(direct["messages"][0]["content"])
    assert personalised["messages"][1:] == direct["messages"][1:] and other["messages"] == direct["messages"]
    assert not re.search(r"\bada\b", json.dumps(personalised))  # a hash may contain it by chance


def test_an_app_of_anthropics(stand: Stand) -> None:
    pytest.importorskip("anthropic")
    module = load("anthropic_app/app.py")
    assert [module.answer("how far is it?", user) for user in ("ada", "nobody")] == ["likes short answers."] * 2
    known, unknown = stand.sent()
    assert known.path == "/v1/messages" and personal(known) and not personal(unknown)
    assert known.body["messages"] == unknown.body["messages"]


def test_langchain(stand: Stand) -> None:
    """In this environment, or in that of `.ci/client-stacks`."""
    if importlib.util.find_spec("langchain_openai") is not None:
        module = load("langchain/app.py")
        answers = [module.answer("how far is it?", user) for user in ("ada", "nobody")]
    elif CLIENTS is not None and (CLIENTS / "env/bin/python").exists():
        script = "import json, app; print(json.dumps([app.answer('how far?', u) for u in ('ada', 'nobody')]))"
        answers = said([str(CLIENTS / "env/bin/python"), "-c", script], cwd=EXAMPLES / "langchain")
    else:
        pytest.skip("langchain-openai is not installed (.ci/client-stacks)")
    assert answers == ["likes short answers."] * 2
    assert [personal(one) for one in stand.sent()] == [True, False]


def test_vercels_ai_sdk(stand: Stand, tmp_path: Path) -> None:
    if CLIENTS is None or not (CLIENTS / "node_modules/ai").exists() or shutil.which("node") is None:
        pytest.skip("the AI SDK is not installed (.ci/client-stacks)")
    wanted = json.loads((EXAMPLES / "vercel_ai" / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        there = json.loads((CLIENTS / "node_modules" / name / "package.json").read_text())["version"]
        assert there.partition(".")[0] == version.lstrip("^").partition(".")[0], f"{name}: try the example with {there}"
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    shutil.copy(EXAMPLES / "vercel_ai" / "app.mjs", tmp_path)  # node looks for modules beside the file
    for user in ("ada", "nobody"):
        done = subprocess.run(
            ["node", "app.mjs", "how far is it?", user], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.stdout.strip() == "likes short answers.", done.stderr
    assert [personal(one) for one in stand.sent()] == [True, False]


def said(command: list[str], **options: Any) -> Any:
    """The JSON that a program prints last."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_open_webuis_headers_name_the_user_and_stay_here(stand: Stand) -> None:
    openai: Any = pytest.importorskip("openai")
    told = {
        "X-OpenWebUI-User-Id": "0b-17",
        "X-OpenWebUI-User-Name": "Ada%20L",
        "X-OpenWebUI-User-Email": "ada@example.com",
        "X-OpenWebUI-User-Role": "user",
        "X-OpenWebUI-Chat-Id": "chat-1",
    }
    client = openai.OpenAI(base_url=f"{stand.url}/v1", api_key=stand.key, default_headers=told)
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    [sent] = stand.sent()
    assert "Likes metric units." in sent.body["messages"][0]["content"]
    headers = {name.lower(): value for name, value in sent.headers.items()}
    assert headers["x-openwebui-chat-id"] == "chat-1"
    assert [name for name in headers if name.startswith("x-openwebui-user")] == ["x-openwebui-user-id"]
    assert "0b-17" not in str(headers) and "0b-17" not in json.dumps(sent.body)


@pytest.mark.parametrize("file", [EXAMPLES / "open_webui" / "compose.yaml", EXAMPLES.parent / "compose.yaml"])
def test_compose_files_start_what_popi_takes(file: Path, tmp_path: Path) -> None:
    """Every service is whole, every name refers to something, and popi knows each command's options and variables."""
    yaml: Any = pytest.importorskip("yaml")
    compose = yaml.safe_load(file.read_text())
    services = compose["services"]
    assert set(compose) - {"x-popi"} == {"name", "services", "volumes"}
    for name, service in services.items():
        assert set(service) <= COMPOSE_KEYS, name
        assert ("build" in service) == (service["image"] == "popi"), name
        if "build" in service:
            assert (file.parent / service["build"] / "Dockerfile").is_file()
        assert set(service.get("depends_on", [])) <= set(services)
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), f"{name} listens on all addresses: {port}"
        if service["image"] == "popi":
            assert set(service["environment"]) <= {
                "POPI_STORE",
                "POPI_ADMIN_KEY",
                *re.findall(r"--(?:upstream|inference)-key-env (\w+)", service["command"]),
            }
            words = re.sub(r"\$\{(\w+)[^}]*\}", "http://h/v1", service["command"]).split()
            command: Any = typer.main.get_command(cli.app)
            with command.make_context("popi", words[:1]) as context:
                inner = command.get_command(context, words[0])
                inner.make_context(words[0], words[1:], parent=context)  # parses, and starts nothing


def test_open_webui_talks_to_the_gateway() -> None:
    yaml: Any = pytest.importorskip("yaml")
    compose = yaml.safe_load((EXAMPLES / "open_webui" / "compose.yaml").read_text())
    settings = compose["services"]["webui"]["environment"]
    assert settings["OPENAI_API_BASE_URL"] == "http://gateway:8600/v1"
    assert settings["ENABLE_FORWARD_USER_INFO_HEADERS"] == "true"


COMPOSE_KEYS = {
    "build",
    "command",
    "depends_on",
    "environment",
    "healthcheck",
    "image",
    "ports",
    "restart",
    "stop_grace_period",
    "volumes",
}


def cells(notebook: Path) -> list[str]:
    """The code of a notebook, cell by cell."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), "saved with its outputs"
    return ["".join(cell["source"]) for cell in code]


@pytest.mark.slow
def test_the_notebook_trains_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, one after the other, at the smallest settings that it takes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    scope: dict[str, Any] = {"__name__": "__main__"}
    code = cells(EXAMPLES / "notebook" / "train_nano.ipynb")
    small = "STEPS, USERS, HELD_OUT, SHOWN = 2, 16, 8, 1\n"
    assert sum(cell.startswith("STEPS, USERS") for cell in code) == 1
    for cell in code:
        exec(compile(small if cell.startswith("STEPS, USERS") else cell, "<cell>", "exec"), scope)
    assert len(scope["figure"].axes[0].lines) >= 1
    assert 0.0 <= scope["trained"] <= 1.0 and scope["summary"].text.strip()


def test_the_notebooks_code_parses_and_is_saved_without_outputs() -> None:
    for cell in cells(EXAMPLES / "notebook" / "train_nano.ipynb"):
        compile(cell, "<cell>", "exec")


class Night:
    """`nightly.py` with commands that write what the real ones would: a run is as good as `scores` says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module = load("nightly/nightly.py")
        self.runs = folder / "nightly"
        self.scores = {"untrained": 0.8, "new": 0.9, "deployed": 0.0}
        self.commands: list[list[str]] = []
        monkeypatch.setattr(self.module, "popi", self.popi)
        self.monkeypatch = monkeypatch

    def popi(self, *arguments: Any) -> None:
        words = [str(one) for one in arguments]
        self.commands.append(words)
        if words[:2] == ["users", "export"]:
            rows = [json.dumps({"user_id": f"u{n}", "signals": []}) + "\n" for n in range(50)]
            Path(words[words.index("--out") + 1]).write_text("".join(rows))
        elif words[0] == "train":
            Path(f"{words[3].removeprefix('root=')}/{words[2].removeprefix('name=')}").mkdir()
        elif words[0] == "evaluate":
            run, users = Path(words[2]), words[4] if len(words) > 3 else None
            file = run / "metrics.json"
            if users is not None:
                file = run / "evaluation" / f"on-{Path(users).stem}" / "metrics.json"
                file.parent.mkdir(parents=True)
            new = self.scores["deployed" if users else "new"]
            values = {"popi_plug_and_play": new, "untrained_summary": self.scores["untrained"]}
            methods = {name: {"reward_accuracy": {"value": value}} for name, value in values.items()}
            file.write_text(json.dumps({"methods": methods}))

    def run(self, name: str, *more: str) -> str | None:
        """One night; the run that is deployed after it."""
        self.monkeypatch.setattr(self.module.time, "strftime", lambda _: name)
        self.monkeypatch.setattr(sys, "argv", ["nightly.py", "--tenant", "shop", "--runs", str(self.runs), *more])
        self.module.main()
        current = self.runs / "current"
        return current.resolve().name if current.exists() else None


def test_a_night_deploys_what_is_better_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night(tmp_path, monkeypatch)
    night.scores["new"] = 0.7
    assert night.run("n1") is None  # worse than the untrained base
    night.scores["new"] = 0.9
    assert night.run("n2", "--restart", f"touch {tmp_path / 'restarted'}", "training.inference.steps=3") == "n2"
    assert (tmp_path / "restarted").exists() and "training.inference.steps=3" in night.commands[-2]
    night.scores |= {"new": 0.9, "deployed": 0.9}
    assert night.run("n3") == "n2"  # as good is not better
    night.scores["new"] = 0.91
    assert night.run("n4") == "n4"
    assert list((night.runs / "data").iterdir()) == []  # no copy of the users outlives a night
    compared = [words for words in night.commands if words[0] == "evaluate" and len(words) > 3]
    assert [Path(words[2]).name for words in compared] == ["n2", "n2"]
    assert [Path(words[4]).name for words in compared] == ["test-n3.jsonl", "test-n4.jsonl"]


@pytest.mark.slow
def test_two_nights_on_the_nano_world(tmp_path: Path) -> None:
    """The real commands, end to end; so few steps that a night may end either way, as it is measured."""
    store = f"sqlite:///{tmp_path}/popi.db"
    with running(store, "--no-worker") as gateway:
        database = Database.open(store)
        key = create(database, "app", "shop")[0]
        database.close()
        fill = [sys.executable, EXAMPLES / "nightly" / "fill.py", "--url", gateway.url, "--users", "40"]
        done = subprocess.run(fill, env=os.environ | {"POPI_KEY": key}, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("40 users, ") and done.stdout.endswith(" 0 known\n")
    command = [sys.executable, EXAMPLES / "nightly" / "nightly.py", "--store", store, "--tenant", "shop"]
    command += ["--runs", tmp_path / "nights", "training.inference.steps=2", "training.inference.users_per_step=4"]
    deployed = "the untrained base"
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        found = re.search(r"reward accuracy ([\d.]+) \((.+)\) -> ([\d.]+)\n(.+)", done.stdout)
        assert found is not None and found[2] == deployed
        night = max(one.name for one in (tmp_path / "nights").iterdir() if one.name[0] == "2")
        metrics = json.loads((tmp_path / "nights" / night / "metrics.json").read_text())["methods"]
        assert found[3] == f"{metrics['popi_plug_and_play']['reward_accuracy']['value']:.3f}"
        if float(found[3]) > float(found[1]):
            deployed = night
        current = tmp_path / "nights" / "current"
        assert (current.resolve().name if current.exists() else "the untrained base") == deployed
        assert list((tmp_path / "nights" / "data").iterdir()) == []


def test_held_out_users_stay_held_out(tmp_path: Path) -> None:
    night = load("nightly/nightly.py")
    ids = [f"user {n}" for n in range(2000)]
    held = {one for one in ids if night.held_out(one, 0.2)}
    assert 340 < len(held) < 460
    exported, train, test = (tmp_path / name for name in ("users", "train", "test"))
    exported.write_text("".join(json.dumps({"user_id": one}) + "\n" for one in ids))
    assert night.split(exported, train, test, 0.2) == (2000 - len(held), len(held))
    assert {json.loads(line)["user_id"] for line in test.read_text().splitlines()} == held
    assert len(train.read_text().splitlines()) + len(held) == 2000


def test_a_night_without_enough_users_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night(tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="0 held out: too few"):
        night.run("n1", "--test-share", "0", "--keep-data")
    assert len((night.runs / "data" / "n1" / "users-n1.jsonl").read_text().splitlines()) == 50
    with pytest.raises(SystemExit, match="0 held out: too few"):
        night.run("n2", "--test-share", "0")
    assert not (night.runs / "data" / "n2").exists()


def test_the_nights_settings_are_a_config() -> None:
    from popi.config import load_config

    config = load_config(EXAMPLES / "nightly" / "nightly.toml", ["data.source=train.jsonl", "data.test=test.jsonl"])
    assert config.training.orders == ["plug_and_play"] and config.data.train_users == 100_000
