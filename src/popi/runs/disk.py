"""A full disk, as a message that says what to do instead of the traceback of whichever library was writing."""

import errno
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from popi.errors import PopiError, RunError

FULL = ("No space left on device", "Disk quota exceeded")
"""What safetensors says, which raises its own error."""
PROBE = 1 << 20
"""Bytes that fit on a disk that is not full."""


@contextmanager
def full_disk_reported(run: Path) -> Iterator[None]:
    """A context in which a write that failed because the disk is full raises a RunError. `run`: its directory.

    Tensorboard's thread meets a full disk, too, and has its error raised by the next call: its own traceback is not
    printed.
    """
    others = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if not isinstance(error, OSError) or not disk_is_full(error, run):
            others(arguments)

    threading.excepthook = hook
    try:
        yield
    except PopiError:
        raise
    except Exception as error:
        if not disk_is_full(error, run):
            raise
        raise RunError(
            f"{run}: the disk is full; completed work is safe. {_details(error, run)}Free some space, then resume "
            f"with: popi train {run / 'config.json'} --resume"
        ) from None
    finally:
        threading.excepthook = others


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context whose errors name the file or folder that is written, as those of safetensors do not."""
    try:
        yield
    except Exception as error:
        if getattr(error, "filename", None) is None:
            error.filename = str(path)  # type: ignore[attr-defined]
        raise


def disk_is_full(error: Exception, folder: Path) -> bool:
    """Whether a write below `folder` failed because the disk, or the user's quota, is full."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in FULL):
        return True
    # torch.save raises a RuntimeError that says, depending on the moment, "unexpected pos" or "iostream error"
    return isinstance(error, RuntimeError) and not _takes_a_probe(folder)


def _takes_a_probe(folder: Path) -> bool:
    probe = next(place for place in (folder, *folder.parents) if place.is_dir()) / ".probe"
    try:
        probe.write_bytes(bytes(PROBE))
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    finally:
        probe.unlink(missing_ok=True)
    return True


def _details(error: Exception, run: Path) -> str:
    """Which file could not be written, how much is free, and how much a checkpoint takes."""
    files = {file: file.stat() for file in run.rglob("*") if file.is_file()} if run.is_dir() else {}
    newest = max(files, key=lambda file: files[file].st_mtime_ns, default=run)
    name = getattr(error, "filename", None) or newest
    sizes: dict[Path, int] = {}
    for file, facts in files.items():
        if file.parent.name.startswith("checkpoint-"):
            sizes[file.parent] = sizes.get(file.parent, 0) + facts.st_size
    place = next(folder for folder in (run, *run.parents) if folder.exists())
    free = f"{_size(shutil.disk_usage(place).free)} are free"
    needed = f", and a checkpoint takes {_size(max(sizes.values()))}" if sizes else ""
    reason = "" if isinstance(error, OSError) else f" ({type(error).__name__}: {error})"
    return f"Writing {name} failed{reason}; {free}{needed}. "


def _size(n: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError
