"""The run directory: what a run leaves on disk, and how a killed run finds where it was.

    {root}/{name}/config.json        the resolved config
                 format.json         the version of all this (`popi.runs.formats`)
                 data.json           of a benchmark: its loader's version, what became of its rows, a hash of the users
                 log.jsonl           metrics, one line a step: {"phase", "step", ...}; of evaluations while a phase
                                     trains one more, its metrics begin with eval_
                 tensorboard/, wandb/     the same, for those (`training.report_to`)
                 references.jsonl    reference log-probs, once a target ({root}/.references: those of all runs)
    {root}/.users/   users of files, as they were read and checked, for all runs; can be deleted at any time
                 phases/{phase}/     checkpoints/ (while it runs, or as many as training.save_total_limit),
                                     inference_model/ or generator/ or both, samples.jsonl
                                     (sampled summaries with their rewards), reliability.json (of the rewards
                                     before the first step), done.json
                 methods.json        {method: {"inference_model": path, "generator": path}}

Every file that a later step trusts is written aside and renamed into place, and `done.json` and a checkpoint's
`complete` are written last: a kill at any moment leaves either the old state or the new.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from popi.config import RunConfig, resolve
from popi.errors import RunError
from popi.runs import formats
from popi.runs.reporters import Reporter, open_reporters

COMPLETE = "complete"
SPARE = 2
"""Checkpoints of a phase that stay while it trains: the newest, and one to fall back on should that be damaged."""
USERS = ".users"
"""Folder beside run directories: the users of files as they were read (`popi.data.store`)."""
METHOD_ORDER = (
    "simultaneous",
    "alternating",
    "plug_and_play",
    "population_dpo",
    "fspo",
    "copy",
    "user_embedding_from_signals",
    "user_embedding",
)
"""Which method a run stands for when none is named: the first of these that it trained."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(checkpoint: Path) -> str | None:
    """What is wrong with a complete checkpoint; None if its files are those that were sealed.

    One that an earlier version sealed has no checksums, and is taken as it is.

    Raises:
        RunError: a newer popi sealed it.
    """
    try:
        sealed = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    except ValueError:
        return f"{COMPLETE} is damaged"
    if isinstance(sealed, int):
        return None
    formats.refuse_newer(checkpoint, sealed.get("format", formats.CHECKPOINT), formats.CHECKPOINT)
    for name, digest in sealed["sha256"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if sha256(file) != digest:
            return f"{name} is not as it was written (its SHA-256 differs)"
    return None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a last line that a kill cut short is left out. No file: no rows."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # splitlines() would also cut at U+2028
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a JSON-lines file whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows and hand them to the operating system (a kill of this process loses none)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(saved: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """The values in which two trees of settings differ, as `section.key: saved -> given`."""
    old, new = _flatten(saved), _flatten(given)
    keys = sorted(old.keys() | new.keys())
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]


def config_differences(saved: RunConfig, given: RunConfig) -> list[str]:
    """The settings in which two configs differ, as `section.key: saved -> given`; where the run lies is left out."""
    place = {"root", "name"}
    return differences(saved.model_dump(mode="json", exclude=place), given.model_dump(mode="json", exclude=place))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within it no other process works in this folder; a kill frees it.

    Raises:
        RunError: another one does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{folder}: another process is at work there; wait for its end, or name another run") from None
    except OSError as error:
        raise RunError(f"{folder.parent}: can't be written to ({error.strerror or error})") from None
    try:
        yield
    finally:
        lock.release()


def refuse_other_loader(path: Path, facts: dict[str, Any] | None) -> None:
    """Raise RunError where a run in `path` was trained on users of another version of the benchmark's loader.

    Its splits may differ: what is held out now may have been trained on then.
    """
    kept = _read_data(path)
    if facts is not None and kept is not None and kept.get("loader") != facts["loader"]:
        raise RunError(
            f"{path}: trained on the users of loader {kept.get('loader')}, and this popi has {facts['loader']}, whose "
            "splits may differ; train again, or use the popi version that made the run"
        )


def _read_data(path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads((path / "data.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path / 'data.json'}: damaged ({error}); train this run again") from None
    return kept if isinstance(kept, dict) else {}


class PhaseDirectory:
    """One phase of a run."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._sound: set[int] = set()
        """Steps whose checkpoints were found as they were sealed: files of gigabytes are read for that once."""

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def reliability(self) -> Path:
        return self.path / "reliability.json"

    @property
    def done(self) -> bool:
        """Whether the phase ended and its models stand."""
        return (self.path / "done.json").is_file()

    def checkpoint(self, say: Callable[[str], None] = lambda line: None) -> tuple[Path, int] | None:
        """The newest complete checkpoint whose files are those that were sealed, and its step.

        What a kill left half-written is removed. A complete checkpoint that has changed since (a failing disk, a copy
        cut short) is set aside as `damaged-STEP`, `say` reports it, and the one before it counts.
        """
        steps = []
        for folder in self.checkpoints.glob("checkpoint-*"):
            if (folder / COMPLETE).is_file():
                steps.append(int(folder.name.rpartition("-")[2]))
            else:
                shutil.rmtree(folder)
        for step in sorted(steps, reverse=True):
            folder = self.at(step)
            changed = None if step in self._sound else damaged(folder)
            if changed is None:
                self._sound.add(step)
                return folder, step
            aside = self.checkpoints / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            say(f"{folder}: {changed}; set aside as {aside.name}, and the checkpoint before it is used")
        return None

    def seal(self, step: int, best: int | None = None, limit: int | None = None) -> None:
        """Declare a checkpoint complete, with the SHA-256 of each of its files, then remove the older ones but `best`
        and the newest `limit` (`SPARE` if None)."""
        files = sorted(file for file in self.at(step).iterdir() if file.name != COMPLETE)
        facts = {"step": step, "format": formats.CHECKPOINT, "sha256": {f.name: sha256(f) for f in files}}
        write_text(self.at(step) / COMPLETE, json.dumps(facts))
        for old in self.steps()[: -(limit or SPARE)]:
            if old != best:
                (self.at(old) / COMPLETE).unlink(missing_ok=True)  # first: a half-removed one must not look complete
                shutil.rmtree(self.at(old))

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, the newest last."""
        return sorted(int(folder.name.rpartition("-")[2]) for folder in self.checkpoints.glob("checkpoint-*"))

    def at(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.checkpoints / f"checkpoint-{step}"

    def save(self, component: str, write: Callable[[Path], None]) -> Path:
        """Save a trained component (`inference_model` or `generator`) whole or not at all. Returns its folder."""
        final, aside = self.path / component, self.path / f"{component}.tmp"
        for folder in (aside, final):
            if folder.exists():
                shutil.rmtree(folder)
        aside.mkdir(parents=True)
        write(aside)
        os.replace(aside, final)
        return final

    def finish(self, facts: dict[str, Any], keep: bool = False) -> None:
        """Mark the phase as done and drop its checkpoints, unless they are to stay."""
        write_text(self.path / "done.json", json.dumps(facts, indent=2) + "\n")
        if not keep:
            shutil.rmtree(self.checkpoints, ignore_errors=True)


class RunDirectory:
    """One run on disk. `create`, `resume` or `open` it."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config
        self._reporters: dict[str, list[Reporter]] = {}

    @classmethod
    def create(cls, config: RunConfig) -> "RunDirectory":
        """Start a run.

        Raises:
            RunError: something stands there already; nothing is overwritten.
        """
        path = config.directory
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path} exists already and nothing of it is overwritten; "
                f"continue it with --resume, or name another run with name={config.name}-2"
            )
        write_text(path / formats.FILE, json.dumps({"format": formats.RUN_DIRECTORY}) + "\n")
        write_text(path / "config.json", config.model_dump_json(indent=2) + "\n")  # last: with it there is a run
        return cls(path, config)

    @classmethod
    def resume(cls, config: RunConfig) -> "RunDirectory":
        """Open a run to go on with it, or start it if it never began.

        Raises:
            RunError: the run belongs to another config (the message names the settings), or isn't a run.
        """
        path = config.directory
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, not a run directory; name another run with name=…")
        leftovers = {"config.json.tmp", formats.FILE, f"{formats.FILE}.tmp"}  # killed before its config was in place
        if not path.exists() or {entry.name for entry in path.iterdir()} <= leftovers:
            shutil.rmtree(path, ignore_errors=True)
            return cls.create(config)
        run = cls.open(path)
        differences = config_differences(run.config, config)
        if differences:
            raise RunError(
                f"{path} was started with other settings:\n  " + "\n  ".join(differences) + "\n"
                "resume it with its own config.json, or give the new settings another name=…"
            )
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """Open a run to read from it.

        Raises:
            RunError: there is no run at `path`, its config can't be read, or it was made by a newer popi.
        """
        path = Path(path)
        formats.of_run(path)
        file = path / "config.json"
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"{path} is not a run directory: {file} can't be read ({reason})") from None
        if not isinstance(tree, dict):
            raise RunError(f"{path} is not a run directory: {file} holds {type(tree).__name__}, not settings")
        return cls(path, resolve(tree, source=str(file)))

    @property
    def began(self) -> bool:
        """Whether there is training to lose: a logged step, a checkpoint or a phase that is done."""
        return self.log_file.exists() or any(self.path.glob("phases/*/checkpoints/*")) or bool(self.methods())

    def phase(self, name: str) -> PhaseDirectory:
        return PhaseDirectory(self.path / "phases" / name)

    # models

    def methods(self) -> dict[str, dict[str, str]]:
        """What each trained method consists of: paths below the run directory, or the base's name.

        Raises:
            RunError: methods.json is damaged.
        """
        file = self.path / "methods.json"
        try:
            methods = json.loads(file.read_text(encoding="utf-8"))
            return {m: {part: str(of[part]) for part in ("inference_model", "generator")} for m, of in methods.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{file}: damaged ({error!r}); delete it, then write it again with: "
                f"popi train {self.path / 'config.json'} --resume"
            ) from None

    def set_method(self, method: str, inference_model: str, generator: str) -> None:
        methods = self.methods() | {method: {"inference_model": inference_model, "generator": generator}}
        write_text(self.path / "methods.json", json.dumps(methods, indent=2) + "\n")

    def resolve(self, model: str) -> str:
        """A loadable path or name for an entry of methods.json."""
        inside = self.path / model
        return str(inside) if model.startswith("phases/") else model

    def models(self, method: str | None = None) -> tuple[str, str]:
        """Paths of (inference model, generator) of a method; None: the fullest one that was trained.

        Raises:
            RunError: the method wasn't trained in this run (the message lists those that were).
        """
        methods = self.methods()
        if not methods:
            command = f"popi train {self.path / 'config.json'} --resume"
            raise RunError(f"{self.path}: no method is trained to its end yet; finish the run with: {command}")
        if method is None:
            method = next(name for name in (*METHOD_ORDER, *methods) if name in methods)
        if method not in methods:
            raise RunError(f"{self.path}: method {method!r} was not trained here; trained: {', '.join(methods)}")
        entry = methods[method]
        return self.resolve(entry["inference_model"]), self.resolve(entry["generator"])

    def keep_data(self, facts: dict[str, Any] | None) -> None:
        """Write which benchmark users the run trains on; where that is written already, it must be the same.

        Raises:
            RunError: the users are not those that the run began with (another loader, or other data).
        """
        if facts is None:
            return
        refuse_other_loader(self.path, facts)
        kept = _read_data(self.path)
        if kept is None:
            write_text(self.path / "data.json", json.dumps(facts, indent=2) + "\n")
        elif kept.get("stamp") != facts["stamp"]:
            raise RunError(
                f"{self.path}: the data changed since this run began ({kept.get('windows')} windows then, "
                f"{facts['windows']} now, with other content); put the old data back, or start a run of another name"
            )

    # metrics

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    def log(self, row: dict[str, Any]) -> None:
        """One step's metrics, `phase` and `step` among them, to log.jsonl and what the run reports to."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        append_jsonl(self.log_file, [clean])
        numbers = {k: v for k, v in clean.items() if k not in ("phase", "step") and isinstance(v, int | float)}
        for reporter in self.reporters(row["phase"], row["step"]):
            reporter.log(row["step"], numbers)

    def show(self, phase: str, step: int, rows: list[dict[str, Any]]) -> None:
        """A step's sampled summaries, one row each, to what the run reports to."""
        for reporter in self.reporters(phase, step):
            reporter.table(step, rows)

    def reporters(self, phase: str, step: int) -> list[Reporter]:
        """What a phase reports to, opened for it where `step` is its next; those of the phase before are closed.

        Raises:
            ConfigError: one can't be used.
        """
        if phase not in self._reporters:
            self.close()
            self._reporters[phase] = open_reporters(self.config, self.path, phase, step)
        return self._reporters[phase]

    def close(self) -> None:
        for reporter in (one for opened in self._reporters.values() for one in opened):
            reporter.close()
        self._reporters.clear()

    def rewind(self, phase: str, step: int) -> None:
        """Forget what was logged and sampled in `phase` after `step`: the resumed run writes it again."""
        if self.log_file.is_file():
            rows = read_jsonl(self.log_file)
            write_jsonl(self.log_file, [row for row in rows if row["phase"] != phase or row["step"] <= step])
        samples = self.phase(phase).samples
        if samples.is_file():
            write_jsonl(samples, [row for row in read_jsonl(samples) if row["step"] <= step])
