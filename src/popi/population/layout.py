"""The output folder of a population's summaries.

    OUT/part-00000-000000.jsonl     summaries: part, input file, shard of that file; or .parquet
    OUT/_popi.json                  settings, inputs and counts of a complete run
    OUT/.popi/                      state of a run that is not complete
        plan.json                   settings and inputs, once all shards are staged
        started                     id of the latest start; an older one may write nothing any more
        users/NAME.jsonl            users of a shard and what is wrong with unreadable lines
        ids/NAME                    hashes of their ids and their lines, until repeats have been found
        repeats/NAME.jsonl          lines whose user is on an earlier line
        rejects/NAME.jsonl          users of a shard without a summary
        attempts/NAME               one byte per attempt to write the shard since the latest start
        done/NAME.json              counts of a shard that is complete

Readers of datasets skip names that begin with `.` or `_`. A file that exists is complete: it is written under another
name and then renamed, which is atomic on one machine and on network file systems.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from popi.data.places import SUFFIXES, hub_files, on_hub
from popi.errors import DataError, RunError
from popi.runs.formats import refuse_newer
from popi.runs.run_directory import differences

VERSION = 1
"""Version of the files in the folder."""
Form = Literal["jsonl", "parquet"]


def inputs_of(place: Path) -> list[Path]:
    """The input files: the file itself, all files of a folder (not of its subfolders) or of a hub split, sorted.

    Raises:
        DataError: if there are none.
    """
    if on_hub(place):
        return hub_files(place)
    if not place.is_dir():
        return [place]
    files = sorted(
        f for f in place.iterdir() if f.is_file() and f.suffix in (*SUFFIXES, ".gz") and f.name[0] not in "._"
    )
    if not files:
        raise DataError(f"{place}: no .jsonl, .jsonl.gz or .parquet file in this folder")
    return files


@dataclass(frozen=True)
class Folder:
    """The output folder. Workers get a copy, so it holds only names.

    Attributes:
        path: the folder; absolute, since workers have other working directories.
        form: file format of the summaries.
        start: id of this start.
    """

    path: Path
    form: Form
    start: str

    @classmethod
    def of(cls, path: Path, form: Form) -> "Folder":
        """The folder, for a new start."""
        return cls(path.resolve(), form, uuid.uuid4().hex)

    @property
    def state(self) -> Path:
        return self.path / ".popi"

    @property
    def complete(self) -> Path:
        return self.path / "_popi.json"

    @property
    def plan(self) -> Path:
        return self.state / "plan.json"

    def users(self, name: str) -> Path:
        return self.state / "users" / f"{name}.jsonl"

    def ids(self, name: str) -> Path:
        return self.state / "ids" / name

    def repeats(self, name: str) -> Path:
        return self.state / "repeats" / f"{name}.jsonl"

    def rejects(self, name: str) -> Path:
        return self.state / "rejects" / f"{name}.jsonl"

    def attempts(self, name: str) -> Path:
        return self.state / "attempts" / name

    def done(self, name: str) -> Path:
        return self.state / "done" / f"{name}.json"

    def part(self, name: str) -> Path:
        """The file of a shard's summaries; there is none if all its users were rejected."""
        return self.path / f"part-{name}.{self.form}"

    def begin(self) -> None:
        """Record this start, after which older ones can't write any more.

        Raises:
            DataError: if the folder can't be written to.
        """
        try:
            for name in ("users", "ids", "repeats", "rejects", "done"):
                (self.state / name).mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.state / "attempts", ignore_errors=True)
            (self.state / "attempts").mkdir()
            write_text(self.state / "started", self.start)
        except OSError as error:
            raise DataError(f"{self.path}: can't be written to ({error.strerror or error})") from None

    def refuse_older(self) -> None:
        """Refuse to write for a start that is not the latest, so that a worker that lost its driver can't interfere.

        Raises:
            RunError: if there is a later start, or this machine does not see the folder.
        """
        try:
            latest = (self.state / "started").read_text()
        except OSError:
            raise RunError(
                f"{self.path}: {os.uname().nodename} does not see this folder; input and output must be on a file "
                "system that all machines share"
            ) from None
        if latest != self.start:
            raise RunError(f"{self.path}: another run has started on this folder; this one stops")

    def clear_stage(self) -> None:
        """Delete what an interrupted reading of the input has left."""
        for name in ("users", "ids", "repeats", "rejects", "done", "buckets"):
            shutil.rmtree(self.state / name, ignore_errors=True)
            if name != "buckets":
                (self.state / name).mkdir(parents=True)


# -- starting ---------------------------------------------------------------------------------------------------------


def open_folder(folder: Folder, settings: Mapping[str, Any], *, resume: bool, force: bool) -> dict[str, Any] | None:
    """Check that the folder can be written to, or resumed.

    Returns what is recorded of a run that has staged all its shards (`plan.json`) or is complete (`_popi.json`, with
    `complete`); None if the input has to be read.

    Raises:
        DataError: if it exists and is neither to be resumed nor overwritten, or holds files of others.
        RunError: if the run to be resumed had other settings or inputs.
    """
    path = folder.path
    if path.is_file():
        raise DataError(f"{path}: is a file; --engine ray writes a folder of files, choose another name with --out")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; create it first, or choose another one")
    ours = folder.state.is_dir() or folder.complete.is_file()
    strangers = [file.name for file in path.iterdir() if not _is_ours(file.name)] if path.is_dir() else []
    if strangers:
        raise DataError(f"{path}: holds other files ({strangers[0]}); choose a new folder with --out")
    if not ours:
        return None
    if force:
        for file in path.glob("part-*"):
            file.unlink()
        folder.complete.unlink(missing_ok=True)
        shutil.rmtree(folder.state, ignore_errors=True)
        return None
    if not resume:
        raise DataError(f"{path}: already exists; continue it with --resume, or overwrite it with --force")
    saved = next((read_json(file) for file in (folder.plan, folder.complete) if file.is_file()), None)
    if saved is None:
        return None
    refuse_newer(folder.path, saved.get("format"), VERSION)
    if changed := differences(saved["settings"], dict(settings)):
        raise RunError(
            f"{path}: was begun with other settings or inputs:\n  " + "\n  ".join(changed) + "\n"
            "use those again, or choose another folder with --out"
        )
    return saved


def _is_ours(name: str) -> bool:
    return name.startswith("part-") or name.startswith(".part-") or name in (".popi", "_popi.json")


def settings_of(inputs: list[Path], **settings: Any) -> dict[str, Any]:
    """What a run depends on: `settings`, and for each input its size and time of modification.

    Raises:
        DataError: if an input can't be read.
    """
    try:
        stats = {str(file.resolve()): file.stat() for file in inputs}
    except OSError as error:
        raise DataError(f"{error.filename}: can't be read ({error.strerror})") from None
    described = {name: f"{one.st_size} bytes, modified at {one.st_mtime_ns} ns" for name, one in stats.items()}
    return dict(json.loads(json.dumps(settings | {"inputs": described}, default=str)))


# -- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for the block to write; renamed to `path` if it succeeds.

    The name differs for each attempt: one that is only believed to be dead may still write.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that is known to exist.

    Raises:
        RunError: if it is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error}); start again with --force") from None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines; none if there is no such file."""
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
