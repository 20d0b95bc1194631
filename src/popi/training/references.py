"""Reference log-probs of targets: computed once by the untrained base, and stored for the run and for later runs.

A run stores its own in references.jsonl. In addition, all runs of a root share a cache with one file per *reference*:
specific weights, dtype and kind of device, with a template set and chat template.

    {root}/.references/{key}.jsonl     {"reference": {...}}                      the reference
                                       {"targets": hash, "logps": [[c, r], …]}   a user's targets

Each user's targets are scored in a separate forward, so their log-probs depend only on the reference and the targets.
They are bit-identical whether they come from the cache, the run or a recomputation, regardless of the other users.
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

from popi.errors import RunError
from popi.generator import Generator
from popi.runs.files import read_jsonl, write_jsonl
from popi.runs.rows import RowFile
from popi.signals.render import shortened
from popi.signals.types import TargetPair, User
from popi.training.processes import ALONE, Processes

FOLDER = ".references"
EVERY = 64
"""Users between reports of progress."""
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Tolerance for a cached sum of log-probs, by the weights' dtype; 0.01 for half precision. Relative to the sum, but at
least to 100 nats. Other CPUs, numbers of threads and versions of torch add in another order, and rounding errors grow
with the sum."""
Logps = list[tuple[float, float]]
"""(chosen, rejected) for each of a user's targets."""


@dataclass(frozen=True)
class ReferencedTarget:
    """A target pair with the reference model's summed log-probs on the plain prompt."""

    pair: TargetPair
    ref_chosen: float
    ref_rejected: float


def targets_key(user: User) -> str:
    """A hash of a user's targets. The `user_id` would not do: a user's windows share it but have different targets."""
    targets = json.dumps([target.model_dump(mode="json") for target in user.targets])
    return hashlib.sha256(targets.encode()).hexdigest()[:20]


def weights_stamp(model: Any) -> str:
    """A hash of a model's weights, without adapters."""
    whole = hashlib.sha256()
    plain = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): parameter
        for name, parameter in model.named_parameters()
        if "lora_" not in name and not name.startswith("user_embedding.")
    }
    for name in sorted(plain):
        # Cloned: numpy would pin the storage, which a sharded model has to free.
        content = plain[name].detach().cpu().contiguous().flatten().view(torch.uint8).clone().numpy()
        whole.update(f"{name} {tuple(plain[name].shape)} ".encode())
        whole.update(hashlib.blake2b(memoryview(content)).digest())
    return whole.hexdigest()[:20]


def identity(reference: Generator) -> dict[str, str]:
    """Everything besides the targets that a reference's log-probs depend on."""
    model, templates, local = reference.local.model, reference.templates, reference.local
    sources = {**templates.sources, "delimiters": list(templates.delimiters), "single_line": templates.single_line}
    chat = [local.tokenizer.chat_template, local.tokenizer.get_vocab()]

    def stamp(content: Any) -> str:
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]

    return {
        "weights": weights_stamp(model),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": local.device.type,
        "template": stamp(sources),
        "chat_template": stamp(chat),
    }


class References:
    """Reference log-probs of every target of a user.

    Args:
        path: the run's own file.
        cache: the folder shared by runs; None disables the cache.
        processes: score users in parallel. The first process reads and writes the files; all receive all log-probs.
    """

    def __init__(self, path: Path, cache: Path | None = None, processes: Processes = ALONE) -> None:
        self.path, self.cache, self.processes = path, cache, processes
        self._file = RowFile(path)
        self._known = processes.decide(self._read)

    def _read(self) -> dict[str, Logps]:
        known: dict[str, Logps] = {}
        with suppress(ValueError):  # a damaged line: it and those after it are computed again
            for start, row in self._file.read():
                try:
                    known[row["targets"]] = [(float(chosen), float(rejected)) for chosen, rejected in row["logps"]]
                except (KeyError, TypeError, ValueError):
                    self._file.end = start
                    break
        return known

    def verify(self, users: Sequence[User], reference: Generator, batch_size: int = 64) -> None:
        """Have a reference behind an API score the first user again that this run has stored, as a server may come back
        with another model under the same name. Does nothing for a local one.

        Raises:
            RunError: it gives other log-probs now, so rewards would compare two models.
            BatchError: the server failed.
        """
        held = [user for user in users if targets_key(user) in self._known]
        if held and not reference.trainable:
            self.processes.decide(partial(self._verify, held[0], reference, batch_size))

    def _verify(self, user: User, reference: Generator, batch_size: int) -> None:
        off = _off(_logps(user, reference, batch_size), self._known[targets_key(user)], close=0.01)
        if off is not None:
            raise RunError(
                f"{reference.name}: its log-probs are not those from the start of the run (a target's is off by "
                f"{off[0]:.3g}; {off[1]:.3g} is allowed): the server has another model under this name, or other "
                "weights. Serve the model that the run started with, or start another run"
            )

    def missing(self, users: Sequence[User]) -> list[User]:
        """Users whose targets this run has not scored yet, without duplicate targets."""
        return [user for key, user in {targets_key(user): user for user in users}.items() if key not in self._known]

    def compute(
        self,
        users: Sequence[User],
        reference: Generator,
        batch_size: int = 64,
        report: Callable[[int], None] | None = None,
    ) -> None:
        """Have the untrained `reference` score, on the plain prompt, the targets of users not scored yet.

        They are appended to the run's own file as they arrive, so that an interrupted run resumes with the missing
        ones, and to the shared file at the end. Log-probs from an API are not shared between runs, because the model
        behind it may change.
        """
        todo = self.missing(users)
        if not todo:
            return
        processes = self.processes
        if not reference.trainable:
            self._keep(_together(todo, reference, batch_size, report, processes), todo)
            return
        shared = self._shared(reference) if processes.first else None
        cached = processes.decide(lambda: shared.matching(todo, reference, batch_size) if shared else {})
        missing = [user for user in todo if targets_key(user) not in cached]
        self._keep(chain([cached], _one_by_one(missing, reference, batch_size, report, len(todo), processes)), todo)
        if shared and missing:
            shared.add({key: self._known[key] for key in map(targets_key, users)})

    def _keep(self, parts: Iterator[dict[str, Logps]], users: Sequence[User]) -> None:
        """Add each part to memory and to the file as soon as it is available."""
        for part in parts:
            refuse_invalid(part, users)
            self._known |= part
            if self.processes.first:
                self._file.append(_rows(part))
        self._file.close()

    def _shared(self, reference: Generator) -> "_Shared | None":
        return None if self.cache is None else _Shared(self.cache, identity(reference))

    def targets(self, user: User) -> list[ReferencedTarget]:
        """The user's targets with reference log-probs."""
        return [
            ReferencedTarget(target, *logps)
            for target, logps in zip(user.targets, self._known[targets_key(user)], strict=True)
        ]


class _Shared:
    """One reference's file in the shared cache."""

    def __init__(self, folder: Path, reference: dict[str, str]) -> None:
        self.reference = reference
        key = hashlib.sha256(json.dumps(reference, sort_keys=True).encode()).hexdigest()[:20]
        self.path = folder / f"{key}.jsonl"

    def read(self) -> dict[str, Logps]:
        """The file's contents; empty, with a warning, if they are unusable."""
        rows = read_jsonl(self.path)
        if not rows:
            return {}
        try:
            if rows[0]["reference"] != self.reference:
                raise ValueError("it is for another reference")
            cached = {row["targets"]: [(float(c), float(r)) for c, r in row["logps"]] for row in rows[1:]}
            if not all(math.isfinite(x) for logps in cached.values() for pair in logps for x in pair):
                raise ValueError("it contains values that are not finite")
        except (KeyError, TypeError, ValueError) as error:
            self._discard(str(error))
            return {}
        return cached

    def _discard(self, reason: str) -> None:
        warnings.warn(f"{self.path}: discarded and recomputed ({reason})", stacklevel=2)
        self.path.unlink(missing_ok=True)

    def matching(self, users: Sequence[User], reference: Generator, batch_size: int) -> dict[str, Logps]:
        """Cached log-probs of these users, after recomputing the first of them as a check."""
        cached = self.read()
        held = [user for user in users if len(cached.get(targets_key(user), ())) == len(user.targets)]
        if not held:
            return {}
        probe = held[0]
        now = _logps(probe, reference, batch_size)
        close = CLOSE.get(next(reference.local.model.parameters()).dtype, 0.01)
        if (off := _off(now, cached[targets_key(probe)], close)) is not None:
            self._discard(f"a target's log-prob is off by {off[0]:.3g}; {off[1]:.3g} is allowed")
            return {}
        return {targets_key(user): cached[targets_key(user)] for user in held}

    def add(self, more: dict[str, Logps]) -> None:
        """Rewrite the file with these log-probs and those that other runs may have added meanwhile."""
        merged = more | self.read()  # existing values win, because other runs have read them
        rows = [{"targets": key, "logps": logps} for key, logps in sorted(merged.items())]
        write_jsonl(self.path, [{"reference": self.reference}, *rows])


def refuse_invalid(logps: dict[str, Logps], users: Sequence[User]) -> None:
    """Raise RunError if a log-prob is not finite: stored, it would spoil every later run."""
    broken = {key for key, pairs in logps.items() if not all(math.isfinite(x) for pair in pairs for x in pair)}
    for user in users if broken else ():
        for target, pair in zip(user.targets, logps.get(targets_key(user), ()), strict=False):
            if not all(map(math.isfinite, pair)):
                raise RunError(
                    f"reference log-probs of user {user.user_id!r} are {pair[0]} and {pair[1]} (chosen, rejected) for "
                    f"prompt {shortened(target.prompt)!r}: check this target, and the base (float16 overflows: use "
                    "model.dtype=bfloat16 or float32)"
                )


def _off(now: Logps, stored: Logps, close: float) -> tuple[float, float] | None:
    """The first difference beyond the tolerance `close` (see CLOSE), and what is allowed; None if there is none."""
    for sums in zip(now, stored, strict=True):
        for own, before in zip(*sums, strict=True):
            allowed = close * max(100, abs(own))
            if not abs(own - before) <= allowed:
                return abs(own - before), allowed
    return None


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
