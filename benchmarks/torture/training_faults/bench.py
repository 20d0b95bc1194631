"""A case of the harness: what befalls a run, how it ended, and the two runs that are compared."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from filelock import FileLock

from training_faults.cases import KINDS, Result, Shape, difference, result, settings, write_config
from training_faults.launcher import Ended, run

LOST = "LOST"
UNBROKEN = "right weights"
RESUMED = "clear stop, resumed to the right weights"
REFUSED = "clear stop that says what to do"


@dataclass(frozen=True)
class Case:
    """Something that befalls a run.

    Attributes:
        group: `kill`, `disk`, `corrupt`, `reward` or `server`.
        shape: what is trained.
        fault: how it is disturbed.
        n: for `kill`, how many times.
    """

    group: str
    shape: Shape
    fault: str
    seed: int
    n: int = 1

    def __str__(self) -> str:
        return f"{self.group}: {self.shape.name}: {self.fault}"


@dataclass
class Outcome:
    """How a case ended: `result` is UNBROKEN, RESUMED, REFUSED, `skipped` or LOST, and `detail` says why."""

    case: Case
    result: str
    detail: str = ""
    faults: int = 1
    places: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """For the JSON."""
        facts = asdict(self)
        return {**facts.pop("case"), **facts} | {"shape": self.case.shape.name}


class Lost(Exception):
    """A run that ended in other weights, or without saying why."""


class Bench:
    """The folder of a case, and its two runs: one that nothing befalls, and one that something does."""

    def __init__(self, case: Case, folder: Path, base: Path, **more: Any) -> None:
        self.case, self.folder, self.base, self.more = case, folder, base, more
        self.random = Random(case.seed)
        shutil.rmtree(folder, ignore_errors=True)
        self.precision, self.exact = "float32", True

    def config(self, name: str, root: Path | None = None) -> Path:
        tree = settings(self.case.shape, self.base, root or self.folder / name, **self.more)
        return write_config(self.folder / f"{name}-config", tree)

    def go(self, config: Path, **options: Any) -> Ended:
        options.setdefault("processes", self.case.shape.processes)
        seed = self.random.randrange(10**6)
        return run(config, self.folder / "output", seed=seed, precision=self.precision, **options)

    def whole(self) -> tuple[Ended, Result]:
        """The unbroken run, which cases with the same settings share."""
        settings_of = [self.case.shape.name, self.more, self.precision]
        key = hashlib.sha256(json.dumps(settings_of).encode()).hexdigest()[:12]
        folder = self.folder.parent / f"whole-{key}"
        config = write_config(folder, settings(self.case.shape, self.base, folder / "root", **self.more))
        ended, facts = None, folder / "ended.json"
        with FileLock(folder / "lock"):
            if facts.exists():
                ended = Ended(**json.loads(facts.read_text()))
            else:
                ended = self.go(config)
                succeeded(ended, "the unbroken run")
                facts.write_text(json.dumps(asdict(ended)))
        return ended, result(directory(config))

    def same(self, expected: Result, config: Path, kinds: tuple[str, ...] = KINDS) -> None:
        """Raise Lost unless a run ended like the unbroken one."""
        if unlike := difference(expected, result(directory(config)), self.exact, kinds):
            raise Lost(unlike)


def directory(config: Path) -> Path:
    tree = json.loads(config.read_text())
    return Path(tree["root"]) / tree["name"]


def succeeded(ended: Ended, name: str) -> None:
    if ended.code:
        raise Lost(f"{name} ended with {ended.code}: {tail(ended.errors)}")


def tail(errors: str) -> str:
    return errors[-1500:].strip()


def stopped_clearly(ended: Ended, *words: str) -> None:
    """Raise Lost unless a run ended with a message of popi's own that has these words."""
    flat = " ".join(ended.errors.split())
    if ended.code != 2 or "Traceback" in flat or "popi: " not in flat:
        raise Lost(f"no clear stop, but {ended.code}: {tail(ended.errors)}")
    if missing := [word for word in words if word not in flat]:
        raise Lost(f"the message lacks {missing}: {tail(ended.errors)}")
