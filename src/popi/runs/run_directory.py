"""The run directory: the files of a run on disk, and how an interrupted run resumes.

    {root}/{name}/config.json        the resolved config
                 format.json         the version of all this (`popi.runs.formats`)
                 data.json           benchmarks only: the loader's version, an account of its rows, a hash of the users
                 log.jsonl           metrics, one line per step: {"phase", "step", ...}; evaluations during a phase
                                     add a line whose metrics start with eval_
                 tensorboard/, wandb/     the same metrics for those services (`training.report_to`)
                 references.jsonl    reference log-probs, one line per target ({root}/.references: those of all runs)
    {root}/.users/   users of files, parsed and checked, shared by all runs; can be deleted at any time
                 phases/{phase}/     checkpoints/ (during the phase, or as many as training.save_total_limit),
                                     inference_model/ or generator/ or both, samples.jsonl
                                     (sampled summaries with their rewards), reliability.json (of the rewards
                                     before the first step), done.json
                 methods.json        {method: {"inference_model": path, "generator": path}}

Every file that a later step relies on is written to a temporary name and renamed into place, and `done.json` and a
checkpoint's `complete` are written last, so an interruption at any moment leaves either the old state or the new one.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from popi.config import RunConfig, resolve
from popi.errors import RunError
from popi.runs import formats
from popi.runs.files import append_jsonl, read_jsonl, write_jsonl, write_text
from popi.runs.phase_directory import PhaseDirectory
from popi.runs.reporters import Reporter, open_reporters

USERS = ".users"
"""Folder next to run directories with the parsed users of files (`popi.data.store`)."""
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
"""A run's default method is the first of these that it trained."""


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
    """The settings in which two configs differ, as `section.key: saved -> given`, except for the run's location and
    what affects no result."""
    sections = set(RunConfig.model_fields) - {"root", "name"}
    return differences(saved.settings(*sections), given.settings(*sections))


def refuse_other_loader(path: Path, facts: dict[str, Any] | None) -> None:
    """Raise RunError if the run in `path` was trained on users from another version of the benchmark's loader.

    Its splits may differ, so users held out now may have been trained on then.
    """
    saved = _read_data(path)
    if facts is not None and saved is not None and saved.get("loader") != facts["loader"]:
        raise RunError(
            f"{path}: trained on the users of loader {saved.get('loader')}, but this popi has {facts['loader']}, whose "
            "splits may differ; train again, or use the popi version that made the run"
        )


def _read_data(path: Path) -> dict[str, Any] | None:
    try:
        saved = json.loads((path / "data.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path / 'data.json'}: damaged ({error}); train this run again") from None
    return saved if isinstance(saved, dict) else {}


class RunDirectory:
    """A run on disk; use `create`, `resume` or `open`."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config
        self._reporters: dict[str, list[Reporter]] = {}

    @classmethod
    def create(cls, config: RunConfig) -> "RunDirectory":
        """Start a run.

        Raises:
            RunError: if the directory exists and is not empty; nothing is overwritten.
        """
        path = config.directory
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(
                f"{path} already exists and is not overwritten; resume it with --resume, or choose another name with "
                f"name={config.name}-2"
            )
        write_text(path / formats.FILE, json.dumps({"format": formats.RUN_DIRECTORY}) + "\n")
        write_text(path / "config.json", config.model_dump_json(indent=2) + "\n")  # last, since it makes this a run
        return cls(path, config)

    @classmethod
    def resume(cls, config: RunConfig) -> "RunDirectory":
        """Open a run to resume it, or start it if it never began.

        Raises:
            RunError: if the run has another config (the message lists the settings), or isn't a run.
        """
        path = config.directory
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, not a run directory; choose another name with name=…")
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
            RunError: if there is no run at `path`, its config can't be read, or it was made by a newer popi.
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
            raise RunError(f"{path} is not a run directory: {file} contains {type(tree).__name__}, not settings")
        return cls(path, resolve(tree, source=str(file)))

    @property
    def began(self) -> bool:
        """Whether there is any training to lose: a logged step, a checkpoint or a finished phase."""
        return self.log_file.exists() or any(self.path.glob("phases/*/checkpoints/*")) or bool(self.methods())

    def phase(self, name: str) -> PhaseDirectory:
        return PhaseDirectory(self.path / "phases" / name)

    # models

    def methods(self) -> dict[str, dict[str, str]]:
        """The components of each trained method: paths below the run directory, or the base's name.

        Raises:
            RunError: if methods.json is damaged.
        """
        file = self.path / "methods.json"
        try:
            methods = json.loads(file.read_text(encoding="utf-8"))
            components = ("inference_model", "generator")
            return {method: {part: str(paths[part]) for part in components} for method, paths in methods.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(
                f"{file}: damaged ({error!r}); delete it, then recreate it with: "
                f"popi train {self.path / 'config.json'} --resume"
            ) from None

    def set_method(self, method: str, inference_model: str, generator: str) -> None:
        methods = self.methods() | {method: {"inference_model": inference_model, "generator": generator}}
        write_text(self.path / "methods.json", json.dumps(methods, indent=2) + "\n")

    def resolve(self, model: str) -> str:
        """A loadable path or name for an entry in methods.json."""
        inside = self.path / model
        return str(inside) if model.startswith("phases/") else model

    def models(self, method: str | None = None) -> tuple[str, str]:
        """Paths of (inference model, generator) of a method; None: the first trained method in `METHOD_ORDER`.

        Raises:
            RunError: if the method wasn't trained in this run (the message lists those that were).
        """
        methods = self.methods()
        if not methods:
            command = f"popi train {self.path / 'config.json'} --resume"
            raise RunError(f"{self.path}: no method has finished training yet; finish the run with: {command}")
        if method is None:
            method = next(name for name in (*METHOD_ORDER, *methods) if name in methods)
        if method not in methods:
            raise RunError(f"{self.path}: method {method!r} was not trained here; trained: {', '.join(methods)}")
        entry = methods[method]
        return self.resolve(entry["inference_model"]), self.resolve(entry["generator"])

    def keep_data(self, facts: dict[str, Any] | None) -> None:
        """Record which benchmark users the run trains on, or check that they match those already recorded.

        Raises:
            RunError: if the users are not those that the run began with (another loader, or other data).
        """
        if facts is None:
            return
        refuse_other_loader(self.path, facts)
        saved = _read_data(self.path)
        if saved is None:
            write_text(self.path / "data.json", json.dumps(facts, indent=2) + "\n")
        elif saved.get("stamp") != facts["stamp"]:
            raise RunError(
                f"{self.path}: the data changed since this run began ({saved.get('windows')} windows then, "
                f"{facts['windows']} now, with other content); restore the old data, or start a run with another name"
            )

    # metrics

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    def log(self, row: dict[str, Any]) -> None:
        """Write a step's metrics, including `phase` and `step`, to log.jsonl and the run's reporters."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        append_jsonl(self.log_file, [clean])
        numbers = {k: v for k, v in clean.items() if k not in ("phase", "step") and isinstance(v, int | float)}
        for reporter in self.reporters(row["phase"], row["step"]):
            reporter.log(row["step"], numbers)

    def show(self, phase: str, step: int, rows: list[dict[str, Any]]) -> None:
        """Send a step's sampled summaries, one row each, to the run's reporters."""
        for reporter in self.reporters(phase, step):
            reporter.table(step, rows)

    def reporters(self, phase: str, step: int) -> list[Reporter]:
        """A phase's reporters. The first call opens them, with `step` as the phase's next step, and closes those of the
        previous phase.

        Raises:
            ConfigError: if one can't be used.
        """
        if phase not in self._reporters:
            self.close()
            self._reporters[phase] = open_reporters(self.config, self.path, phase, step)
        return self._reporters[phase]

    def close(self) -> None:
        for reporters in self._reporters.values():
            for reporter in reporters:
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
