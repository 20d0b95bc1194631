import json
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from popi.data.check import load_users
from popi.serving.store import jobs, keys, signals, summaries
from popi.serving.store.database import Database
from popi.serving.store.jobs import Debounce
from popi.signals.types import PairSignal, Signal, StatementSignal


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/popi.db"


def fill(store: str) -> None:
    database = Database.open(store)
    database.write(keys.ensure_tenant, "acme", 0.0)
    pairs = [PairSignal(prompt=f"what is {w}?", chosen=f"a {w}", rejected=f"the {w} is") for w in ("amber", "birch")]
    listed: list[tuple[str, list[Signal]]] = [("ada", [*pairs]), ("ben", [StatementSignal(text="hi")])]
    for user, sent in listed:
        database.write(signals.add, "acme", user, sent, 1.0, Debounce())
        database.write(summaries.put, "acme", user, "One.", [], "user", 1.0, expected=0)
    database.close()


def test_keys_are_made_listed_and_revoked(run: Any, store: str) -> None:
    code, out, err = run("keys", "create", "--scope", "app", "--tenant", "acme", "--store", store)
    assert code == 0 and "new tenant acme" in err
    key = out.strip()
    assert key.startswith("popi_") and len(key.split("_", 2)[2]) == 43
    code, out, _ = run("keys", "create", "--scope", "user", "--tenant", "acme", "--user", "[bold]ada", "--store", store)
    assert code == 0
    code, out, _ = run("keys", "list", "--store", store)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["scope"], row["tenant"], row["user_id"]) for row in rows] == [
        ("app", "acme", None),
        ("user", "acme", "[bold]ada"),
    ]
    assert key.split("_", 2)[2] not in out and rows[0]["key_id"] in key
    assert run("keys", "list", "--tenant", "nobody", "--store", store)[1] == ""
    assert run("keys", "revoke", rows[0]["key_id"], "--store", store)[0] == 0
    assert json.loads(run("keys", "list", "--store", store)[1].splitlines()[0])["revoked_at"] is not None


def test_switches_are_set_before_anything_is_known(run: Any, store: str) -> None:
    fill(store)
    at = ("--tenant", "acme", "--store", store)
    assert json.loads(run("users", "controls", "eve", *at)[1]) == {"use": True, "learn": True}
    assert json.loads(run("users", "controls", "eve", "--no-learn", *at)[1]) == {"use": True, "learn": False}
    assert json.loads(run("users", "controls", "eve", *at)[1]) == {"use": True, "learn": False}
    run("users", "controls", "ada", "--no-learn", *at)
    code, out, err = run("users", "export", *at)
    assert code == 0 and "2 users skipped: they switched learning off" in err and '"ada"' not in out
    code, _, err = run("users", "rebuild", "eve", *at)
    assert code != 0 and "turned learning off" in err
    code, _, err = run("users", "controls", "eve", "--no-use", "--tenant", "nobody", "--store", store)
    assert code != 0 and "no tenant" in err


def test_a_part_of_a_user_is_deleted(run: Any, store: str, tmp_path: Path) -> None:
    fill(store)
    at = ("--tenant", "acme", "--store", store)
    shown = json.loads(run("users", "show", "ada", *at)[1])
    name = shown["signals"][0]["id"]
    done = json.loads(run("users", "delete", "ada", "--signal", name, *at)[1])
    assert (done["signals"], done["data_on_disk"]) == (1, "overwritten")
    assert b"a amber" not in b"".join(file.read_bytes() for file in tmp_path.glob("popi.db*"))
    code, _, err = run("users", "delete", "ada", "--signal", name, *at)
    assert code != 0 and "nothing with that id" in err
    assert json.loads(run("users", "delete", "ada", "--version", "1", *at)[1])["version"] == 2
    assert run("users", "delete", "ada", *at)[0] != 0 and run("users", "delete", "eve", "--version", "1", *at)[0] != 0


def test_users_are_listed_shown_exported_and_erased(run: Any, store: str, tmp_path: Path) -> None:
    fill(store)
    at = ("--tenant", "acme", "--store", store)
    assert run("users", "list", *at)[1].splitlines() == ['"ada"', '"ben"']
    assert run("users", "list", "--store", store)[1] == ""
    shown = json.loads(run("users", "show", "ada", *at)[1])
    assert len(shown["signals"]) == 2 and shown["versions"][0]["text"] == "One."
    code, _, err = run("users", "export", "--out", tmp_path / "users.jsonl", *at)
    assert code == 0 and "1 users skipped" in err
    assert [user.user_id for user in load_users(tmp_path / "users.jsonl")] == ["ada"]
    every = run("users", "export", "--targets", "0", *at)[1]
    assert [json.loads(line)["user_id"] for line in every.splitlines()] == ["ada", "ben"]
    code, _, err = run("users", "rebuild", "ada", *at)
    assert code == 0 and "'ada' will be rewritten" in err
    code, _, err = run("users", "rebuild", "zoe", *at)
    assert code == 2 and "no user 'zoe'" in err
    receipt = json.loads(run("users", "erase", "ada", *at)[1])
    assert receipt["removed"]["signals"] == 2 and receipt["data_on_disk"] == "overwritten"
    assert run("users", "list", *at)[1].splitlines() == ['"ben"']
    code, _, err = run("users", "show", "ada", *at)
    assert code == 2 and "no user 'ada'" in err
    code, _, err = run("users", "export", "ada", *at)
    assert code == 2 and "no user 'ada'" in err


def test_users_are_merged(run: Any, store: str) -> None:
    fill(store)
    at = ("--tenant", "acme", "--store", store)
    code, out, _ = run("users", "merge", " ada", "--into", "Ada@Shop.example", *at)
    assert code == 0 and json.loads(out) == {
        "signals": 2,
        "duplicates": 0,
        "summary_versions": 1,
        "answers": 0,
        "keys": 0,
    }
    assert run("users", "list", *at)[1].splitlines() == ['"ada@shop.example"', '"ben"']
    shown = json.loads(run("users", "show", "ADA@shop.example", *at)[1])
    assert len(shown["signals"]) == 2 and shown["versions"][0]["text"] == "One."
    code, _, err = run("users", "merge", "ada", "--into", "ben", *at)
    assert code == 2 and "no user 'ada'" in err
    code, _, err = run("users", "merge", "ben", "--into", "ben ", *at)
    assert code == 2 and "both ids are the same user" in err
    code, _, err = run("users", "show", "a\tb", *at)
    assert code == 2 and "U+0009" in err


def test_what_was_given_up_is_renewed_in_bulk(run: Any, store: str) -> None:
    database = Database.open(store)
    for tenant in ("acme", "other"):
        database.write(keys.ensure_tenant, tenant, 0.0)
        database.write(signals.add, tenant, "ada", [StatementSignal(text="a")], 0.0, Debounce(0, 0))
        job = database.write(jobs.claim, 1.0, 60.0)
        assert job is not None
        database.write(
            lambda connection, job=job: jobs.postpone(connection, job, 9.0, now=2.0, error="no", give_up_at=2.0)
        )
    code, _, err = run("users", "renew", "--failed", "--tenant", "acme", "--store", store)
    assert code == 0 and "1 renewals will be retried" in err
    assert "1 renewals will be retried" in run("users", "renew", "--failed", "--store", store)[2]
    assert run("users", "renew", "--store", store)[0] == 2
    assert database.read(lambda connection: jobs.counts(connection, database.now(connection)))["due"] == 2
    database.close()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["serve"], "--upstream"),
        (["serve", "--upstream", "nonsense"], "http"),
        (["serve", "--demo", "--upstream", "http://a"], "remove --upstream"),
        (["serve", "--upstream", "http://a", "--upstream-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["serve", "--upstream", "http://a", "--store", "mysql://a"], "sqlite:///"),
        (["serve", "--upstream", "http://a", "--inference-url", "http://b"], "--inference-model"),
        (["serve", "--upstream", "http://a", "--config", "nothing.toml"], "nothing.toml"),
        (["worker"], "exactly one model"),
        (["worker", "--run", "a", "--model", "b"], "exactly one model"),
        (["worker", "--model", "nano", "--threads", "3"], "--inference-url"),
        (["keys", "create", "--scope", "god"], "admin, app or user"),
        (["keys", "create", "--scope", "user"], "--user"),
        (["keys", "create", "--scope", "app", "--tenant", "a b"], "tenant"),
        (["keys", "revoke", "none"], "no key 'none'"),
    ],
)
def test_what_makes_no_sense_is_told(run: Any, store: str, args: list[str], words: str) -> None:
    if "--store" not in args:
        args = [*args, "--store", store]
    code, _, err = run(*args)
    assert code == 2 and "Traceback" not in err
    assert words in " ".join(err.replace("│", " ").split())


def test_a_port_that_is_taken(run: Any, store: str) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("serve", "--upstream", "http://a", "--port", port, "--store", store)
    assert code == 2 and f"127.0.0.1:{port}" in err


def made_run(folder: Path) -> Path:
    """A run whose inference model is the untrained base."""
    from popi.config import resolve
    from popi.runs.run_directory import RunDirectory

    made = RunDirectory.create(resolve({"name": "r", "root": str(folder)}))
    (made.path / "methods.json").write_text('{"plug_and_play": {"inference_model": "nano", "generator": "nano"}}')
    return made.path


@pytest.mark.parametrize("kind", ["fake", pytest.param("real", marks=pytest.mark.slow)])
def test_a_worker_writes_with_a_run(
    run: Any, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from popi.inference_model import InferenceModel
    from popi.serving.server import free_port
    from popi.serving.store import signals, summaries
    from popi.serving.store.jobs import Debounce
    from popi.serving.worker.renewal import Worker
    from popi.signals.types import PairSignal
    from popi.summary import Summary

    loaded: list[Any] = []

    class Fake:
        renews = False

        def renewable(self, summary: str) -> bool:
            return False

        def summarize(self, signals: Any, temperature: float = 0.0, previous: Summary | None = None) -> Summary:
            return Summary(f"Heard {len(signals)}.", 3, model="fake")

    def load(spec: Any) -> Fake:
        loaded.append((spec.name, spec.templates))
        return Fake()

    if kind == "fake":
        monkeypatch.setattr(InferenceModel, "from_spec", load)
    database = Database.open(store)
    database.write(keys.ensure_tenant, "acme", 0.0)
    words = ("tea", "soup", "bees")
    sent = [PairSignal(prompt=f"what about {word}?", chosen="so done.", rejected="well " * 20) for word in words]
    database.write(signals.add, "acme", "ada", sent, 1.0, Debounce(0, 0))

    def wait(worker: Worker) -> None:  # in place of waiting for a signal
        give_up = time.monotonic() + 60
        while database.read(summaries.current, "acme", "ada") is None:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        while not metrics or "popi_renewals_total{" not in metrics[0]:  # counted just after
            metrics[:] = [httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text]

    metrics: list[str] = []
    monkeypatch.setattr(Worker, "wait", wait)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    port = free_port()
    code, _, err = run("worker", "--run", made_run(tmp_path), "--store", store, "--metrics-port", port)
    assert code == 0 and "renewing summaries" in err and 'popi_renewals_total{outcome="renewed"} 1.0' in metrics[0]
    written = database.read(summaries.current, "acme", "ada")
    assert written is not None and written.author == "model"
    if kind == "fake":
        assert written.text == "Heard 3." and loaded == [("nano", "auto")]
    else:
        assert written.text.startswith("wants ")
    database.close()


def test_a_worker_without_a_run_there(run: Any, store: str, tmp_path: Path) -> None:
    code, _, err = run("worker", "--run", tmp_path / "nothing", "--store", store)
    assert code == 2 and "is not a run directory" in err and "Traceback" not in err
