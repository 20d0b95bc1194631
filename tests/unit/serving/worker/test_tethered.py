"""A process that ends with its parent, however that ends."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timed

TETHERED = [sys.executable, "-m", "popi.serving.worker.tethered"]


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for modules that child processes find."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))


def test_it_is_the_module(scripts: Path) -> None:
    write(scripts, "said", "import sys\nprint(__name__, sys.argv[1:])\nsys.exit(7)\n")
    with subprocess.Popen(
        [*TETHERED, "said", "a", "--b"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as done:
        assert done.stdout is not None and done.stdout.read() == "__main__ ['a', '--b']\n"
        assert done.wait(30) == 7


@pytest.mark.parametrize("stubborn", [False, True])
def test_it_ends_when_its_parent_was_killed(scripts: Path, stubborn: bool) -> None:
    write(
        scripts,
        "sleeps",
        f"""
        import signal, sys, time
        def at_the_end(*_):
            print("told", flush=True)
            if not {stubborn}:
                sys.exit(0)
        signal.signal(signal.SIGTERM, at_the_end)
        print("ready", flush=True)
        time.sleep(60)
        time.sleep(60)
        """,
    )
    write(
        scripts,
        "parent",
        f"""
        import subprocess, time
        child = subprocess.Popen({[*TETHERED, "sleeps"]!r}, stdin=subprocess.PIPE)
        time.sleep(60)
        """,
    )
    parent = subprocess.Popen([sys.executable, "-m", "parent"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    began = time.monotonic()
    # The child holds the same stdout: that it ends says that the child has ended.
    assert parent.stdout.read() == "told\n"
    assert time.monotonic() - began < 50
    parent.stdout.close()
