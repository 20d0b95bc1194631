"""What a loader is asked for and what it gives: options, users with their oracle, and an account of every row."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from popi.data.jsonl import Problem
from popi.signals.similarity import leak, normal, prompt_text
from popi.signals.types import Signal, TargetPair, User

AlignXKind = Literal["ugc", "pair", "demo", "arbitrary"]

EQUAL = "chosen and rejected are the same text"
REPEATED = "the same row of the same user once more"
BAD = "bad rows (on_bad_rows = drop)"
LEAKING = "stands among the user's targets, or nearly"
TWICE = "the same signal of the user once more"
BARE = "no signal is left"


@dataclass(frozen=True)
class Options:
    """A loader's settings, resolved; `popi.config.benchmark.BenchmarkConfig` documents each and holds the defaults."""

    path: str | None
    test_path: str | None
    train_split: str
    test_split: str | None
    test_share: float
    seed: int
    unseen_prompts: bool | None
    unseen_users: bool
    drop_bad_rows: bool
    choice_column: str
    scorer_match: bool
    alignx_signals: AlignXKind
    user_column: str
    signals_per_user: int
    targets_per_user: int
    train_limit: int | None = None
    """Most users kept of the train split."""
    test_limit: int | None = None
    """Most users kept of any other split."""
    read_all: bool = False
    """Read on behind the limits: `popi data check` looks at every row."""
    need_test: bool = True
    """A local set without a test split is an error."""


@dataclass(frozen=True)
class BenchmarkUser:
    """A user, and the benchmark's own words on what they prefer, where it has them: the oracle's summary."""

    user: User
    oracle: str | None = None


@dataclass
class Split:
    """The users of one split, and where each of its rows went: `rows` = bad + dropped + left over + used."""

    name: str
    limit: int | None = None
    users: list[BenchmarkUser] = field(default_factory=list)
    rows: int = 0
    used: int = 0
    """Rows that stand in a user."""
    left_over: int = 0
    """Rows too few for a window."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rule → rows."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rule → signals."""
    windows: int = 0
    targets: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    user_ids: set[str] = field(default_factory=set)
    target_prompts: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    bad: int = 0

    @property
    def full(self) -> bool:
        return self.limit is not None and len(self.users) >= self.limit

    def add(
        self, user_id: str, signals: Sequence[Signal], targets: Sequence[TargetPair], oracle: str | None, rows: int
    ) -> None:
        """A user (or one window of a user) made of `rows` rows. Signals that repeat, or repeat a target, stay out."""
        kept: list[Signal] = []
        for signal in signals:
            if signal in kept:
                self.left_out[TWICE] += 1
            elif any(leak(target, signal) for target in targets):
                self.left_out[LEAKING] += 1
            else:
                kept.append(signal)
        if not kept:
            self.dropped[BARE] += rows
            return
        self.used += rows
        self.windows += 1
        self.user_ids.add(user_id)
        self.signals.update(signal.type for signal in kept)
        self.targets += len(targets)
        self.target_prompts.update(prompt_key(target) for target in targets)
        self.prompts.update(prompt_key(part) for part in (*targets, *kept) if hasattr(part, "prompt"))
        if not self.full:
            self.users.append(BenchmarkUser(User(user_id=user_id, signals=kept, targets=list(targets)), oracle))

    def stamp(self) -> str:
        """A hash of the users and their oracles, in their order."""
        found = hashlib.sha256()
        for one in self.users:
            found.update(f"{one.user.model_dump_json()}\t{one.oracle}\n".encode())
        return found.hexdigest()[:16]

    def told(self) -> list[str]:
        """The account in lines for a terminal."""
        if not self.rows:
            return [f"{self.name}: no rows"]
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.signals.most_common()) or "none"
        people, windows = len(self.user_ids), f", {self.windows} windows" if self.windows != len(self.user_ids) else ""
        lines = [f"{self.name}: {self.rows} rows, {people} users{windows}, {self.targets} targets; signals: {kinds}"]
        lines += [f"  rows dropped: {number} ({rule})" for rule, number in sorted(self.dropped.items()) if number]
        lines += [f"  rows left over: {self.left_over} (too few for a window)"] if self.left_over else []
        lines += [f"  signals left out: {number} ({rule})" for rule, number in sorted(self.left_out.items())]
        return lines


@dataclass
class Loaded:
    """What a loader found: the splits (`train`, `test`, and any of the benchmark's own) and what is wrong."""

    source: str
    version: str
    train: Split
    others: dict[str, Split]
    problems: list[Problem]

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train} | self.others

    def facts(self, split: str) -> dict[str, Any]:
        """What a run keeps of one of its splits."""
        found = self.splits[split]
        return {
            "source": self.source,
            "loader": self.version,
            "split": split,
            "rows": found.rows,
            "users": len({one.user.user_id for one in found.users}),
            "windows": len(found.users),
            "dropped": dict(found.dropped),
            "left_out": dict(found.left_out),
            "left_over": found.left_over,
            "stamp": found.stamp(),
        }

    def summary(self) -> list[str]:
        """The account of every split, what two splits share, and the problems by kind, in lines for a terminal."""
        lines = [self.version]
        lines += [f"  {line}" for split in self.splits.values() for line in split.told()]
        for name, split in ((name, split) for name, split in self.others.items() if split.rows):
            users, prompts = self.train.user_ids & split.user_ids, self.train.prompts & split.target_prompts
            lines.append(f"  in train and {name}: {len(users)} users, {len(prompts)} prompts of {name}'s targets")
        kinds = Counter(problem.kind for problem in self.problems)
        return lines + ([f"  {kind}: {number}" for kind, number in kinds.most_common()] or ["  no problems"])


def prompt_key(part: Any) -> str:
    """A short hash of a task prompt, folded, so that case and punctuation make no other prompt of it."""
    return digest(normal(prompt_text(part.prompt)).text)[:20]


def digest(*parts: object) -> str:
    """A hash of the parts, the same on every machine (Python's own differs from run to run)."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def share(seed: int, what: str, key: str) -> float:
    """A number in [0, 1) that the seed and the key fix: below the share of the test, the key belongs to the test."""
    return int(digest("popi-split", seed, what, key)[:13], 16) / 16**13


def in_hash_order(items: Iterable[Any], seed: int, key: Any) -> list[Any]:
    """Shuffled by content: neither the order of rows nor that of files changes the result."""
    return sorted(items, key=lambda item: digest("popi-order", seed, key(item)))
