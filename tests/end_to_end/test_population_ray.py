"""`popi infer --engine ray` on a Ray cluster of this machine. What it does without Ray: tests/unit/population."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_upstream import FakeUpstream
from typer.testing import CliRunner

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: pip install 'popi[ray]'", allow_module_level=True)

from popi.cli import app
from popi.inference_model import InferenceModel
from popi.population.ray_engine import RayEngine
from popi.population.run import Order, summarize_population

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayEngine]:
    os.environ["RAY_worker_niceness"] = "0"  # inherited; by default workers are nicer than all else on the machine
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which workers can't import
    with RayEngine(workers=(3, 3)) as engine:
        yield engine


def write_users(path: Path, number: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for n in range(number):
            signals = [{"type": "statement", "text": f"i want {n % 7} jokes and {n} examples."}]
            file.write(json.dumps({"user_id": f"u{n}", "signals": signals}) + "\n")
    return path


def user_ids(out: Path) -> list[str]:
    return [json.loads(line)["user_id"] for file in sorted(out.glob("part-*")) for line in file.open()]


def wait_for(condition: Callable[[], Any], seconds: float = 500) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


def test_the_same_rows_as_in_one_process(cluster: RayEngine, tmp_path: Path, tiny_base: Path) -> None:
    users = write_users(tmp_path / "users" / "a.jsonl", 40)
    model = ["--model", str(tiny_base), "--max-tokens", "6", "--dtype", "float32"]
    one = CliRunner().invoke(app, ["infer", str(users), *model, "--out", str(tmp_path / "one.jsonl")])
    assert one.exit_code == 0, one.output
    with users.open("a") as file:
        file.write("nonsense\n")
    command = [
        "infer",
        str(users.parent),
        *model,
        "--engine",
        "ray",
        "--shard-users",
        "9",
        "--out",
        str(tmp_path / "all"),
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and "41 users read, 40 summaries, 1 rejected" in " ".join(done.output.split())
    rows = "".join(file.read_text() for file in sorted((tmp_path / "all").glob("part-*")))
    assert rows == (tmp_path / "one.jsonl").read_text()
    [reject] = [json.loads(line) for line in (tmp_path / "all.rejects.jsonl").open()]
    assert (reject["line"], reject["file"]) == (41, str(users))


def remember(folder: Path, make: Callable[[], InferenceModel]) -> InferenceModel:
    """Load a model, and leave the process's id."""
    (folder / str(os.getpid())).touch()
    return make()


def test_killed_workers_cost_no_summary(cluster: RayEngine, tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.delay = 0.3
    write_users(tmp_path / "users.jsonl", 60)
    loaded, killed, over = tmp_path / "loaded", set[int](), threading.Event()
    loaded.mkdir()
    connect = partial(InferenceModel.from_api, upstream.url, "m", concurrency=2)

    def strike() -> None:
        while not over.is_set() and len(killed) < 4:
            for pid in [int(file.name) for file in loaded.iterdir()]:
                if pid not in killed and upstream.under_way:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
                    break
            time.sleep(0.5)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        order = Order(tmp_path / "users.jsonl", tmp_path / "out", {}, partial(remember, loaded, connect), shard_users=5)
        totals = summarize_population(order, lambda: cluster)
    finally:
        over.set()
        thread.join()
    assert len(killed) >= 2 and totals.restarted >= 1
    assert user_ids(tmp_path / "out") == [f"u{n}" for n in range(60)]


def test_a_killed_command_is_resumed(tmp_path: Path, upstream: FakeUpstream) -> None:
    """With a cluster of its own, which dies with it."""
    upstream.delay = 0.5
    users, out = write_users(tmp_path / "users.jsonl", 60), tmp_path / "out"
    command = [sys.executable, "-m", "popi.cli", "infer", str(users), "--engine", "ray", "--workers", "2"]
    command += [
        "--api",
        upstream.url,
        "--api-model",
        "m",
        "--concurrency",
        "2",
        "--shard-users",
        "5",
        "--out",
        str(out),
    ]
    environment = os.environ | {"RAY_worker_niceness": "0"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list(out.glob("part-*"))) >= 3)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    before = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    assert len(before) < 12
    upstream.delay = 0
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert user_ids(out) == [f"u{n}" for n in range(60)]
    assert all(file.stat().st_mtime_ns == written for file, written in before.items())
    assert not (out / ".popi").exists()
