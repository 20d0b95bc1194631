"""Reference log-probs of targets: computed once by the untrained base, kept with the run and for later runs.

A run keeps its own in references.jsonl. Behind that stands a cache that all runs of a root share, one file for each
*reference*: these weights in this type on this kind of device, read through this template set and chat template.

    {root}/.references/{key}.jsonl     {"reference": {...}}                      which reference it is
                                       {"targets": hash, "logps": [[c, r], …]}   a user's targets

Each user's targets are scored in a forward of their own, so their log-probs depend on nothing but the reference and
the targets: from the cache, from the run or computed again, they are the same bits, whoever else is in the run.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from popi.generator import Generator
from popi.runs.rows import RowFile
from popi.runs.run_directory import read_jsonl, write_jsonl
from popi.signals.types import TargetPair, User
from popi.training.processes import ALONE, Processes

FOLDER = ".references"
EVERY = 64
"""Users whose reference log-probs are computed between two reports of progress."""
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How far a sum of log-probs from the cache may lie from one computed now, by the weights' type; 0.01 for half
precision. Relative to the sum, or to 100 nats where that is less. Another CPU, number of threads or version of torch
adds in another order, and roundings grow with the sum."""
Logps = list[tuple[float, float]]
"""(chosen, rejected) of each of a user's targets."""


@dataclass(frozen=True)
class ReferencedTarget:
    """A target pair with what the reference model says of it on the plain prompt (summed log-probs)."""

    pair: TargetPair
    ref_chosen: float
    ref_rejected: float


def targets_key(user: User) -> str:
    """A hash of a user's targets. Not the `user_id`: windows of one user share it and have targets of their own."""
    targets = json.dumps([target.model_dump(mode="json") for target in user.targets])
    return hashlib.sha256(targets.encode()).hexdigest()[:20]


def weights_stamp(model: Any) -> str:
    """A hash of a model's weights; adapters over it do not count."""
    whole = hashlib.sha256()
    plain = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if "lora_" not in name and not name.startswith("user_embedding.")
    }
    for name in sorted(plain):
        content = plain[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        whole.update(f"{name} {tuple(plain[name].shape)} ".encode())
        whole.update(hashlib.blake2b(memoryview(content)).digest())
    return whole.hexdigest()[:20]


def identity(reference: Generator) -> dict[str, str]:
    """What the log-probs of a reference depend on, besides the targets."""
    model, templates, local = reference.local.model, reference.templates, reference.local
    told = {**templates.sources, "delimiters": list(templates.delimiters), "single_line": templates.single_line}
    chat = [local.tokenizer.chat_template, local.tokenizer.get_vocab()]

    def stamp(content: Any) -> str:
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]

    return {
        "weights": weights_stamp(model),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": local.device.type,
        "template": stamp(told),
        "chat_template": stamp(chat),
    }


class References:
    """Reference log-probs of every target of a user.

    Args:
        path: the run's own file.
        cache: the folder that runs share; None: there is none.
        processes: score users side by side; the first process reads and writes the files, and all know all log-probs.
    """

    def __init__(self, path: Path, cache: Path | None = None, processes: Processes = ALONE) -> None:
        self.path, self.cache, self.processes = path, cache, processes
        self._file = RowFile(path)
        self._known = processes.decide(self._read)

    def _read(self) -> dict[str, Logps]:
        known: dict[str, Logps] = {}
        with suppress(ValueError):  # a damaged line: it and those after it are computed again
            for _, row in self._file.read():
                known[row["targets"]] = [(chosen, rejected) for chosen, rejected in row["logps"]]
        return known

    def missing(self, users: Sequence[User]) -> list[User]:
        """The users whose targets this run did not look up yet; equal targets count once."""
        return [user for key, user in {targets_key(user): user for user in users}.items() if key not in self._known]

    def compute(
        self,
        users: Sequence[User],
        reference: Generator,
        batch_size: int = 64,
        report: Callable[[int], None] | None = None,
    ) -> None:
        """Have the untrained `reference` score, on the plain prompt, the targets of those users not scored before.

        The run's own file gets them as they come, so that a killed run goes on with those that are missing; the shared
        one at the end. Log-probs from behind an API are not shared between runs: what model answers there is not known.
        """
        todo = self.missing(users)
        if not todo:
            return
        processes = self.processes
        if not reference.trainable:
            self._keep(_together(todo, reference, batch_size, report, processes))
            return
        shared = self._shared(reference) if processes.first else None
        cached = processes.decide(lambda: shared.matching(todo, reference, batch_size) if shared else {})
        missing = [user for user in todo if targets_key(user) not in cached]
        self._keep(chain([cached], _one_by_one(missing, reference, batch_size, report, len(todo), processes)))
        if shared and missing:
            shared.add({key: self._known[key] for key in map(targets_key, users)})

    def _keep(self, parts: Iterator[dict[str, Logps]]) -> None:
        """Add parts to what is known and to the file, each as soon as it is there."""
        for part in parts:
            self._known |= part
            if self.processes.first:
                self._file.append(_rows(part))
        self._file.close()

    def _shared(self, reference: Generator) -> "_Shared | None":
        return None if self.cache is None else _Shared(self.cache, identity(reference))

    def targets(self, user: User) -> list[ReferencedTarget]:
        """The user's targets with their reference log-probs."""
        return [
            ReferencedTarget(target, *logps)
            for target, logps in zip(user.targets, self._known[targets_key(user)], strict=True)
        ]


class _Shared:
    """One reference's file of the shared cache."""

    def __init__(self, folder: Path, reference: dict[str, str]) -> None:
        self.reference = reference
        key = hashlib.sha256(json.dumps(reference, sort_keys=True).encode()).hexdigest()[:20]
        self.path = folder / f"{key}.jsonl"

    def read(self) -> dict[str, Logps]:
        """What it holds; nothing, and a warning, where that can't be used."""
        rows = read_jsonl(self.path)
        if not rows:
            return {}
        try:
            if rows[0]["reference"] != self.reference:
                raise ValueError("it is of another reference")
            found = {row["targets"]: [(float(c), float(r)) for c, r in row["logps"]] for row in rows[1:]}
            if not all(math.isfinite(x) for logps in found.values() for pair in logps for x in pair):
                raise ValueError("a NaN is in it")
        except (KeyError, TypeError, ValueError) as error:
            self._refuse(str(error))
            return {}
        return found

    def _refuse(self, why: str) -> None:
        warnings.warn(f"{self.path}: not used, and written anew ({why})", stacklevel=2)
        self.path.unlink(missing_ok=True)

    def matching(self, users: Sequence[User], reference: Generator, batch_size: int) -> dict[str, Logps]:
        """What it holds of these users, once the first of them was scored again and comes out the same."""
        found = self.read()
        held = [user for user in users if len(found.get(targets_key(user), ())) == len(user.targets)]
        if not held:
            return {}
        probe = held[0]
        now = _logps(probe, reference, batch_size)
        close = CLOSE.get(next(reference.local.model.parameters()).dtype, 0.01)
        for sums in zip(now, found[targets_key(probe)], strict=True):
            for own, kept in zip(*sums, strict=True):
                allowed = close * max(100, abs(own))
                if not abs(own - kept) <= allowed:
                    self._refuse(f"a target's log-prob is off by {abs(own - kept):.3g}, and {allowed:.3g} is allowed")
                    return {}
        return {targets_key(user): found[targets_key(user)] for user in held}

    def add(self, more: dict[str, Logps]) -> None:
        """Write it anew, whole, with what another run may have added meanwhile."""
        merged = more | self.read()  # what stands there stands: other runs have read it
        rows = [{"targets": key, "logps": logps} for key, logps in sorted(merged.items())]
        write_jsonl(self.path, [{"reference": self.reference}, *rows])


def _logps(user: User, reference: Generator, batch_size: int) -> Logps:
    targets = user.targets
    return list(zip(*reference.pair_logps(targets, [None] * len(targets), batch_size), strict=True))


def _rows(logps: dict[str, Logps]) -> Iterator[dict[str, Any]]:
    return ({"targets": key, "logps": pairs} for key, pairs in logps.items())


def _one_by_one(
    users: Sequence[User],
    reference: Generator,
    batch_size: int,
    report: Callable[[int], None] | None,
    of: int,
    processes: Processes,
) -> Iterator[dict[str, Logps]]:
    """Each user alone, so that its log-probs are the same bits whichever process scores it."""
    done = of - len(users)
    at_once = 1 if processes.alone else EVERY * processes.size
    for start in range(0, len(users), at_once):
        part = users[start : start + at_once]
        own = {
            targets_key(user): _logps(user, reference, batch_size) for user in part[processes.rank :: processes.size]
        }
        yield from processes.gather(own)
        n = done + start + len(part)
        if report and (n % EVERY == 0 or n == of):
            report(n)
    if report and not users:
        report(of)


def _together(
    users: Sequence[User],
    reference: Generator,
    batch_size: int,
    report: Callable[[int], None] | None,
    processes: Processes,
) -> Iterator[dict[str, Logps]]:
    """Many users at once: a server answers many requests at a time. The first process asks it."""

    def scored(part: Sequence[User]) -> dict[str, Logps]:
        targets = [target for user in part for target in user.targets]
        pairs = iter(zip(*reference.pair_logps(targets, [None] * len(targets), batch_size), strict=True))
        return {targets_key(user): [next(pairs) for _ in user.targets] for user in part}

    for start in range(0, len(users), EVERY):
        part = users[start : start + EVERY]
        yield processes.decide(partial(scored, part))
        if report:
            report(start + len(part))
