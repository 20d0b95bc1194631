"""The directory of one phase of a run: its checkpoints, its models and its end."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from popi.errors import RunError
from popi.runs import formats
from popi.runs.disk import writing
from popi.runs.files import sha256, sync_files, write_text

COMPLETE = "complete"
WEIGHTS = "*/*.safetensors"
"""The files of saved models, below a phase's folder."""
SPARE = 2
"""Checkpoints to keep during a phase: the newest, and one as a fallback in case that is damaged."""


def damaged(checkpoint: Path) -> str | None:
    """What is wrong with a complete checkpoint; None if its files match their checksums.

    Checkpoints from earlier versions have no checksums and are accepted unchecked.

    Raises:
        RunError: if a newer version of popi wrote it.
    """
    try:
        sealed = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "it has been removed, or never was complete"
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
            return f"{name} has changed since it was written (its SHA-256 differs)"
    return None


class PhaseDirectory:
    """One phase of a run."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._sound: set[int] = set()
        """Steps whose checkpoints have been verified, since reading gigabytes of files should happen only once."""

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
        """Whether the phase has ended and its models are saved."""
        return (self.path / "done.json").is_file()

    def checkpoint(self, say: Callable[[str], None] = lambda line: None) -> tuple[Path, int] | None:
        """The newest complete checkpoint whose files match their checksums, and its step.

        Incomplete checkpoints are removed. A complete one that has changed since (a failing disk, an incomplete copy)
        is renamed to `damaged-STEP` and reported through `say`, and the previous one is used.

        Raises:
            RunError: if there are complete checkpoints, but all of them have changed.
        """
        steps, renamed = [], []
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
            renamed.append(self.checkpoints / f"damaged-{step}")
            shutil.rmtree(renamed[-1], ignore_errors=True)
            folder.rename(renamed[-1])
            if len(renamed) < len(steps):
                say(f"{folder}: {changed}; renamed to {renamed[-1].name}, and the previous checkpoint is used")
        if renamed:
            raise RunError(
                f"{folder}: {changed}. No checkpoint of phase {self.name} is intact: they were renamed to "
                f"{', '.join(one.name for one in renamed)}. Restore them from a backup under their old names "
                "(checkpoint-STEP), or train this phase again from its beginning by running the same command once more"
            )
        return None

    def seal(self, step: int, best: int | None = None, limit: int | None = None) -> None:
        """Mark a checkpoint as complete, with the SHA-256 of each of its files, then remove all others except `best`
        and the newest `limit` (`SPARE` if None)."""
        sync_files(self.at(step))
        files = sorted(file for file in self.at(step).iterdir() if file.name != COMPLETE)
        facts = {"step": step, "format": formats.CHECKPOINT, "sha256": {f.name: sha256(f) for f in files}}
        write_text(self.at(step) / COMPLETE, json.dumps(facts))
        for old in self.steps()[: -(limit or SPARE)]:
            if old != best:
                (self.at(old) / COMPLETE).unlink(missing_ok=True)  # first, so that a half-removed one isn't complete
                shutil.rmtree(self.at(old))

    def steps(self) -> list[int]:
        """The steps with checkpoints, newest last."""
        return sorted(int(folder.name.rpartition("-")[2]) for folder in self.checkpoints.glob("checkpoint-*"))

    def at(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.checkpoints / f"checkpoint-{step}"

    def save(self, component: str, write: Callable[[Path], None]) -> Path:
        """Save a trained component (`inference_model` or `generator`) atomically. Returns its folder."""
        final, temporary = self.path / component, self.path / f"{component}.tmp"
        for folder in (temporary, final):
            if folder.exists():
                shutil.rmtree(folder)
        temporary.mkdir(parents=True)
        with writing(temporary):
            write(temporary)
        sync_files(temporary)
        os.replace(temporary, final)
        return final

    def finish(self, facts: dict[str, Any], keep: bool = False) -> None:
        """Mark the phase as done, with the SHA-256 of its models' weights, and delete its checkpoints unless `keep` is
        set."""
        models = sorted(file for file in self.path.glob(WEIGHTS) if file.parent != self.checkpoints)
        weights = {str(file.relative_to(self.path)): sha256(file) for file in models}
        write_text(self.path / "done.json", json.dumps(facts | {"sha256": weights}, indent=2) + "\n")
        if not keep:
            self.tidy()

    def tidy(self) -> None:
        """Delete the checkpoints of a phase that is done."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def verify(self, component: str) -> None:
        """Check the weights that the phase saved of a component, before another phase starts from them.

        Raises:
            RunError: if they have changed since.
        """
        done = self.path / "done.json"
        try:
            weights = json.loads(done.read_text(encoding="utf-8")).get("sha256", {})  # none from earlier versions
        except (ValueError, AttributeError):
            raise RunError(f"{done}: damaged; {self._again}") from None
        for name, digest in weights.items():
            file = self.path / name
            if name.startswith(f"{component}/") and (not file.is_file() or sha256(file) != digest):
                problem = "has changed since it was written (its SHA-256 differs)" if file.is_file() else "is missing"
                raise RunError(f"{file}: {problem}; {self._again}")

    @property
    def _again(self) -> str:
        return (
            f"restore it from a backup, or delete the folder {self.path}, and resume: this phase is then trained again"
        )
