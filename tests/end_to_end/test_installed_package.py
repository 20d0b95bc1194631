"""The wheel in an empty environment, outside the checkout: demo, gateway, first answer.

The Python that runs the tests runs everything. Other installed versions run the gateway only, which needs no torch;
with POPI_TEST_TORCH=1 they also run everything (with the package index's build of torch, which takes gigabytes).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo_process import demo
from fake_upstream import serving
from package_build import ROOT, built

pytestmark = pytest.mark.slow
VERSIONS = ("3.11", "3.12", "3.13")
TORCH = os.environ.get("TORCH", "torch==2.13.0").split()  # as in the Makefile
OF_THE_TESTS = f"{sys.version_info.major}.{sys.version_info.minor}"


def interpreter(version: str) -> str | None:
    """A working Python of this version, if one is installed."""
    named = [f"python{version}", *sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))]
    for one in ([sys.executable] if version == OF_THE_TESTS else []) + named:
        try:
            done = subprocess.run([one, "-c", "import ensurepip"], capture_output=True, timeout=60)
        except OSError:
            continue
        if done.returncode == 0:
            return one
    return None


@dataclass
class Installed:
    """An environment with popi, and a folder to work in."""

    bin: Path
    folder: Path
    whole: bool
    began: float

    @property
    def env(self) -> dict[str, str]:
        """The environment variables, without the checkout's, and offline."""
        left_out = ("PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")
        return {k: v for k, v in os.environ.items() if k not in left_out} | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "*"}

    def run(self, *command: str | Path) -> str:
        """Run a program of the environment and return its stdout."""
        line = [str(self.bin / command[0]), *map(str, command[1:])]
        done = subprocess.run(line, cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module", params=VERSIONS)
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    python = interpreter(request.param)
    if python is None:
        pytest.skip(f"no Python {request.param} with ensurepip here")
    whole = request.param == OF_THE_TESTS or os.environ.get("POPI_TEST_TORCH") == "1"
    folder, began = tmp_path_factory.mktemp(f"python{request.param}"), time.monotonic()
    subprocess.run([python, "-m", "venv", folder / "env"], check=True)
    environment = Installed(folder / "env" / "bin", folder, whole, began)
    install = ("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
    if whole:
        environment.run(*install, *TORCH)
    extras = "train,serve" if whole else "serve"
    environment.run(*install, "-c", ROOT / "constraints.txt", f"{built()[1]}[{extras}]")
    yield environment


def test_it_is_the_installed_one(installed: Installed) -> None:
    where = installed.run("python", "-c", "import popi; print(popi.__file__)")
    assert Path(where.strip()).is_relative_to(installed.folder / "env")
    assert installed.run("popi", "--version").strip() in built()[1].name
    assert "Everyday" in installed.run("popi", "--help")


def test_the_gateway_personalises_without_torch(installed: Installed) -> None:
    """A store, a key, a summary and a chat, which need no model in the process."""
    script = """
import json, os, re, subprocess, sys, threading
import httpx2, popi
env = os.environ | {"POPI_ADMIN_KEY": "an-admin-key-of-the-tests"}
with open("gateway.toml", "w") as file:  # by default a summary that takes longer than 50 ms is left out
    file.write("[proxy]\\nsummary_timeout_ms = 60_000\\n")
command = [sys.executable, "-m", "popi.cli", "serve", "--upstream", sys.argv[1], "--port", "0", "--no-worker"]
command += ["--config", "gateway.toml"]
process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
lines = []
for line in process.stderr:
    lines.append(line)
    if line.startswith("popi listens on "):
        break
else:
    sys.exit("".join(lines))
url = line.split()[-1]
threading.Thread(target=process.stderr.read, daemon=True).start()
popi.Client(url, env["POPI_ADMIN_KEY"]).put_summary("ada", "Likes metric units.")
body = {"model": "m", "user": "ada", "messages": [{"role": "user", "content": "how far?"}]}
headers = {"authorization": "Bearer " + env["POPI_ADMIN_KEY"]}
answer = httpx2.post(url + "/v1/chat/completions", json=body, headers=headers, timeout=60)
process.terminate(); process.wait()
summary = answer.headers["x-popi-personalized"]
print(json.dumps({"status": answer.status_code, "summary": summary, "torch": "torch" in sys.modules}))
"""
    with serving() as upstream:
        output = installed.run("python", "-c", script, f"{upstream.url}/v1").splitlines()[-1]
    assert json.loads(output) == {"status": 200, "summary": "applied", "torch": False}
    assert "Likes metric units." in json.dumps(upstream.received[-1].body)


def test_the_demo_trains_evaluates_and_reports(installed: Installed) -> None:
    if not installed.whole:
        pytest.skip("this environment has no torch; POPI_TEST_TORCH=1 installs it")
    installed.run("popi", "demo")
    run = installed.folder / "runs" / "demo"
    methods = json.loads((run / "metrics.json").read_text())["methods"]
    assert methods["popi_plug_and_play"]["reward_accuracy"]["value"] > 0.5
    assert "<html" in (run / "report.html").read_text()


def test_the_first_personalised_answer(installed: Installed) -> None:
    if not installed.whole:
        pytest.skip("this environment has no torch; POPI_TEST_TORCH=1 installs it")
    python = str(installed.bin / "python")
    with demo(python=python, cwd=installed.folder, env=installed.env) as (_, client):
        body = {"model": "nano", "messages": [{"role": "user", "content": "tell me about tea."}]}
        answer = client.post("/v1/chat/completions", json=body, headers={"x-popi-user": "ada"})
        assert answer.status_code == 200 and answer.headers["x-popi-personalized"] == "applied"
        assert answer.json()["choices"][0]["message"]["content"].strip()
    print(f"from an empty environment to the first answer, demo included: {time.monotonic() - installed.began:.0f} s")
