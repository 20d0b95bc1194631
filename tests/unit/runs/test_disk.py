"""A full disk: recognised in the errors of all libraries that write, and reported with what to do."""

import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from popi.errors import DataError, RunError
from popi.runs.disk import disk_is_full, full_disk_reported, writing
from popi.runs.files import write_text

SIZE = 1 << 18


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "small", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "python": lambda file: write_text(file, "x" * 2 * SIZE),
    "safetensors": lambda file: save_file({"w": torch.zeros(SIZE)}, file),
    "torch": lambda file: torch.save({"w": torch.zeros(SIZE)}, file),
}


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 10))


@pytest.mark.parametrize("size", [1, 50, 1000, 4000])
def test_whatever_torch_says_on_a_disk_that_is_full_already(small: Path, size: int) -> None:
    (small / "run").mkdir()
    fill(small)
    with pytest.raises(RunError, match="the disk is full"), full_disk_reported(small / "run"):
        torch.save({"w": torch.zeros(size)}, small / "run" / "scheduler.pt")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_reported_whoever_was_writing(small: Path, writer: str) -> None:
    run = small / "run"
    for step in (2, 4):
        checkpoint = run / "phases" / "p" / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
    (checkpoint.with_name("checkpoint-2") / "weights").write_bytes(bytes(30 << 10))
    with pytest.raises(RunError) as stopped, full_disk_reported(run):
        with writing(checkpoint / "optimizer.pt"):
            WRITERS[writer](checkpoint / "optimizer.pt")
    message = str(stopped.value)
    assert message.startswith(f"{run}: the disk is full; completed work is safe. Writing {checkpoint / 'optimizer.pt'}")
    assert " are free, and a checkpoint takes " in message
    assert message.endswith(f"popi train {run / 'config.json'} --resume")
    assert not (run / ".probe").exists()


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("PytorchStreamWriter failed"), DataError("x")):
        with pytest.raises(type(error)) as raised, full_disk_reported(tmp_path):
            raise error
        assert raised.value is error


def test_a_quota_is_a_full_disk_and_a_run_without_files_has_no_checkpoint(tmp_path: Path) -> None:
    error = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "log.jsonl")
    assert disk_is_full(error, tmp_path)
    with pytest.raises(RunError, match="Writing log.jsonl failed; .* are free. Free some space"):
        with full_disk_reported(tmp_path / "none"):
            raise error


def test_what_was_there_before_survives(small: Path) -> None:
    file = small / "methods.json"
    write_text(file, json.dumps({"old": True}))
    with pytest.raises(OSError, match="No space left"):
        write_text(file, json.dumps({"new": "x" * SIZE}))
    assert json.loads(file.read_text()) == {"old": True}


def test_a_thread_that_meets_a_full_disk_prints_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensorboard writes in one."""
    printed = list[str]()
    monkeypatch.setattr(threading, "excepthook", lambda arguments: printed.append(str(arguments.exc_value)))
    before = threading.excepthook

    def fails(error: Exception) -> None:
        raise error

    with full_disk_reported(tmp_path):
        for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError(errno.EIO, "I/O"), ValueError("other")):
            thread = threading.Thread(target=fails, args=(error,))
            thread.start()
            thread.join()
    assert printed == ["[Errno 5] I/O", "other"] and threading.excepthook is before
