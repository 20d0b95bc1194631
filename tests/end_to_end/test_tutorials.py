"""Every command of the tutorials works as it is written: in a shell, at the settings given (slow), and in small."""

import re
from pathlib import Path

import pytest
from fake_upstream import serving
from tutorials import FOLDER, Reader, blocks, commands

from popi.serving.keys import create
from popi.serving.server import free_port
from popi.serving.store.database import Database

CASUAL, FORMAL = r"^(hey|hi|yo|okay) \w+,", r"^(dear|good|kind|honored) \w+,"
SMALL_RUN = {"steps": 1, "users_per_step": 2, "group_size": 2}
sizes = pytest.mark.parametrize(
    "small", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["small", "as written"]
)


def test_each_tutorial_is_followed_by_a_test() -> None:
    followed = set(re.findall(r'\.follow\("(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert {page.stem for page in FOLDER.glob("*.md")} == followed
    for name in followed:
        assert len(blocks(name)) >= 4
        assert sum("popi " in command for block in blocks(name) for command in commands(block.text)) >= 4


def test_commands_of_a_block() -> None:
    assert commands("# why\na \\\n    --b c\n\nd 'e'  # f\n") == ["a --b c", "d 'e'  # f"]


def chat_or_summary(messages: list[dict[str, str]]) -> str:
    """An answer in the tone that the system message asks for; of signals, a summary that asks for a formal one."""
    if len(messages[-1]["content"]) > 40:
        return "Wants a formal tone."
    tone = "honored sir" if any("formal" in message["content"] for message in messages) else "hey pal"
    return f"{tone}, there is a lot to say."


@sizes
def test_personalise_an_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    """In small a server of the tests answers in the place of the demo's nano model."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-own")
    ask = 'python app.py "tell me about tea."'
    with serving() as upstream:
        upstream.answer = chat_or_summary
        port = free_port()
        changes = {"popi serve --upstream": f"popi serve --port {port} --upstream"}
        changes["https://api.openai.com/v1"] = f"{upstream.url}/v1"
        serve = f"popi serve --port {port} "
        if small:
            store = f"sqlite:///{tmp_path}/popi.db"
            database = Database.open(store)
            monkeypatch.setenv("POPI_KEY", create(database, "app", "shop")[0])
            database.close()
            monkeypatch.setenv("POPI_URL", f"http://127.0.0.1:{port}")
            (tmp_path / "quick.toml").write_text("[renewal]\nquiet_s = 0.1\nmax_wait_s = 0.1\n")
            serve += f"--config quick.toml --upstream-key-env OPENAI_API_KEY --upstream {upstream.url}/v1 "
            serve += f"--inference-url {upstream.url}/v1 --inference-model m"
        changes["popi serve --demo"] = serve if small else f"{serve} --demo"
        reader = Reader(tmp_path, monkeypatch, changes, until={ask: [CASUAL, FORMAL]})
        reader.follow("personalise_an_app")
    learned = reader.outputs["python feedback.py"]
    assert re.search(r"\+ dear madam,.*summary, version \d+: .*(formal|polite|courteous|proper)", learned, re.DOTALL)
    [link] = [output for command, output in reader.outputs.items() if command.startswith("curl")]
    assert '"url":"http://127.0.0.1:' in link
    assert reader.outputs["popi keys create --scope app --tenant my-app"].startswith("popi_")


@sizes
def test_train_on_your_feedback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    """In small nobody opens the terminal of the worker, so that no summary is ever written."""
    port = free_port()
    changes = {"popi serve ": f"popi serve --port {port} ", "8600": str(port)}
    if small:
        changes |= {
            "--users 250": "--users 16",
            "head -n 200": "head -n 12",
            "tail -n +201": "tail -n +13",
            "train_users = 200": "train_users = 12",
            "test_users = 50": "test_users = 2",
            "steps = 25": "steps = 1",
            "users_per_step = 8": "users_per_step = 2\ngroup_size = 2",
            "warmup_steps = 3": "warmup_steps = 0",
            "kl = 0.02": "kl = 0.02\n\n[evaluation]\nprompt_users = 1\nexamples = 1",
        }
    until = {} if small else {"curl -s $POPI_URL/users/zoe/summary": ['"version"']}
    closed = ["third terminal"] if small else []
    reader = Reader(tmp_path, monkeypatch, changes, closed=closed, in_process=small, until=until)
    reader.follow("train_on_your_feedback")
    assert len((tmp_path / "summaries.jsonl").read_text().splitlines()) == (4 if small else 50)
    assert "POPI plug-and-play" in reader.outputs["popi evaluate --run runs/mine"]
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


@sizes
def test_repeat_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    changes = {}
    if small:
        less = [
            "data.train_users=20",
            "data.test_users=4",
            "evaluation.prompt_users=1",
            "evaluation.examples=1",
            "training.inference.warmup_steps=0",
        ]
        less += [f"training.inference.{name}={value}" for name, value in SMALL_RUN.items()]
        changes = {
            '"data.train_users=500"': ", ".join(f'"{setting}"' for setting in less),
            "max_users = 100": "max_users = 2",
        }
    reader = Reader(tmp_path, monkeypatch, changes, in_process=small)
    reader.follow("repeat_a_benchmark")
    table = reader.outputs["cat runs/ten_minutes/grid.md"]
    assert all(method in table for method in ("POPI plug-and-play", "Marker vote", "Oracle"))
    plan = reader.outputs["popi train configs/elix_1b.toml --dry-run --gpu-memory 22"]
    assert "memory and time are estimates" in plan
