"""A loader's input and output: options, users with their oracles, and an account of every row."""

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
REPEATED = "duplicate row of the same user"
BAD = "bad rows (on_bad_rows = drop)"
LEAKING = "is also one of the user's targets, or nearly"
TWICE = "duplicate signal of the same user"
BARE = "no signals remain"


@dataclass(frozen=True)
class Options:
    """A loader's resolved settings, documented in `popi.config.benchmark.BenchmarkConfig` together with defaults."""

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
    """Maximum users of the train split."""
    test_limit: int | None = None
    """Maximum users of any other split."""
    read_all: bool = False
    """Continue reading after the limits, so that `popi data check` sees every row."""
    need_test: bool = True
    """Treat a missing test split in a local dataset as an error."""


@dataclass(frozen=True)
class BenchmarkUser:
    """A user, and the benchmark's own description of their preferences if it has one: the oracle's summary."""

    user: User
    oracle: str | None = None


@dataclass
class Split:
    """The users of one split, and an account of its rows: `rows` = bad + dropped + left over + used."""

    name: str
    limit: int | None = None
    users: list[BenchmarkUser] = field(default_factory=list)
    rows: int = 0
    used: int = 0
    """Rows that became part of a user."""
    left_over: int = 0
    """Remaining rows, too few for another window."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason → number of rows."""
    dropped_signals: Counter[str] = field(default_factory=Counter)
    """Reason → number of signals."""
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
        """Add a user (or a window) made from `rows` rows, dropping duplicate signals and signals that repeat a
        target."""
        usable: list[Signal] = []
        for signal in signals:
            if signal in usable:
                self.dropped_signals[TWICE] += 1
            elif any(leak(target, signal) for target in targets):
                self.dropped_signals[LEAKING] += 1
            else:
                usable.append(signal)
        if not usable:
            self.dropped[BARE] += rows
            return
        self.used += rows
        self.windows += 1
        self.user_ids.add(user_id)
        self.signals.update(signal.type for signal in usable)
        self.targets += len(targets)
        self.target_prompts.update(prompt_key(target) for target in targets)
        self.prompts.update(prompt_key(part) for part in (*targets, *usable) if hasattr(part, "prompt"))
        if not self.full:
            self.users.append(BenchmarkUser(User(user_id=user_id, signals=usable, targets=list(targets)), oracle))

    def stamp(self) -> str:
        """A hash of the users and their oracles, in order."""
        hasher = hashlib.sha256()
        for entry in self.users:
            hasher.update(f"{entry.user.model_dump_json()}\t{entry.oracle}\n".encode())
        return hasher.hexdigest()[:16]

    def summary(self) -> list[str]:
        """The account as lines for a terminal."""
        if not self.rows:
            return [f"{self.name}: no rows"]
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.signals.most_common()) or "none"
        people, windows = len(self.user_ids), f", {self.windows} windows" if self.windows != len(self.user_ids) else ""
        lines = [f"{self.name}: {self.rows} rows, {people} users{windows}, {self.targets} targets; signals: {kinds}"]
        lines += [f"  rows dropped: {number} ({rule})" for rule, number in sorted(self.dropped.items()) if number]
        lines += [f"  rows left over: {self.left_over} (too few for a window)"] if self.left_over else []
        lines += [f"  signals dropped: {number} ({rule})" for rule, number in sorted(self.dropped_signals.items())]
        return lines


@dataclass
class Loaded:
    """A loader's result: the splits (`train`, `test` and benchmark-specific ones) and the problems."""

    source: str
    version: str
    train: Split
    others: dict[str, Split]
    problems: list[Problem]

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train} | self.others

    def facts(self, split: str) -> dict[str, Any]:
        """The account of a split that a run stores."""
        account = self.splits[split]
        return {
            "source": self.source,
            "loader": self.version,
            "split": split,
            "rows": account.rows,
            "users": len({entry.user.user_id for entry in account.users}),
            "windows": len(account.users),
            "dropped": dict(account.dropped),
            "dropped_signals": dict(account.dropped_signals),
            "left_over": account.left_over,
            "stamp": account.stamp(),
        }

    def summary(self) -> list[str]:
        """Lines for a terminal: the account of every split, overlaps with train, and the problems by kind."""
        lines = [self.version]
        lines += [f"  {line}" for split in self.splits.values() for line in split.summary()]
        for name, split in ((name, split) for name, split in self.others.items() if split.rows):
            users, prompts = self.train.user_ids & split.user_ids, self.train.prompts & split.target_prompts
            lines.append(f"  in train and {name}: {len(users)} users, {len(prompts)} prompts of {name}'s targets")
        kinds = Counter(problem.kind for problem in self.problems)
        return lines + ([f"  {kind}: {number}" for kind, number in kinds.most_common()] or ["  no problems"])


def prompt_key(part: Any) -> str:
    """A short hash of a task prompt that ignores case and punctuation."""
    return digest(normal(prompt_text(part.prompt)).text)[:20]


def digest(*parts: object) -> str:
    """A hash of the parts that is the same on every machine (Python's `hash` differs between processes)."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()


def share(seed: int, kind: str, key: str) -> float:
    """A number in [0, 1) determined by the seed and the key; keys below the test share belong to the test split."""
    return int(digest("popi-split", seed, kind, key)[:13], 16) / 16**13


def in_hash_order(items: Iterable[Any], seed: int, key: Any) -> list[Any]:
    """Shuffle by content, so that the order of rows and files does not matter."""
    return sorted(items, key=lambda item: digest("popi-order", seed, key(item)))
