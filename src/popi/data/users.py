"""The users of a config, training or held out: of the nano world, of files, or of a benchmark. The only way in."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from popi.config import BENCHMARKS, DataConfig, RunConfig
from popi.data.benchmarks.registry import load, load_clean
from popi.data.benchmarks.result import Loaded, Options
from popi.data.jsonl import listing
from popi.data.store import Progress
from popi.errors import DataError
from popi.signals.types import User

SplitName = Literal["train", "test"]


@dataclass(frozen=True)
class Person:
    """A user with the truth where it is known."""

    user: User
    preferences: frozenset[tuple[str, str]] | None = None
    """The nano world's (attribute, value) pairs that the user cares about."""
    oracle: str | None = None
    """The truth as a summary."""


class Nameless(Sequence[Person]):
    """Users as `Person`s without a known truth, each made on access; a slice is a view."""

    def __init__(self, users: Sequence[User]) -> None:
        self.users = users

    def __len__(self) -> int:
        return len(self.users)

    @overload
    def __getitem__(self, key: int) -> Person: ...

    @overload
    def __getitem__(self, key: slice) -> "Nameless": ...

    def __getitem__(self, key: int | slice) -> "Person | Nameless":
        return Nameless(self.users[key]) if isinstance(key, slice) else Person(self.users[key])

    def __iter__(self) -> Iterator[Person]:
        return map(Person, self.users)


@dataclass(frozen=True)
class People:
    """The users of one split, cut to `data.train_users` or `data.test_users`: of files on disk, of others in memory."""

    people: Sequence[Person]
    facts: dict[str, Any] | None = None
    """Of a benchmark: which loader made them, what became of its rows, a hash of the users."""
    trained: Sequence[User] | None = None
    """Of a benchmark's held-out users: the training users, which were read with them."""

    @property
    def users(self) -> Sequence[User]:
        if isinstance(self.people, Nameless):
            return self.people.users
        return [person.user for person in self.people]


def users_of(
    config: RunConfig, split: SplitName, *, cache: Path | None = None, report: Progress | None = None
) -> People:
    """The training or the held-out users of a config. Files are checked whole, the other split's too.

    Args:
        config: names the source.
        split: which users.
        cache: a folder that keeps users of files for the next time (`popi.data.check.load_users`).
        report: told how far the reading is.

    Raises:
        DataError: a file or set can't be read or has problems; the message lists them. Or a file's config names no
            test file and `split` is `test`.
    """
    data = config.data
    if data.source == "nano":
        return People(_nano(config, split))
    if data.source in BENCHMARKS:
        name = "interpolated" if split == "test" and data.benchmark.interpolated else split
        loaded = load_clean(data.source, options(data))
        if not loaded.splits[name].users:
            raise DataError(f"{data.source}: no users in split {name!r}; the set has no rows of them")
        found = loaded.splits[name].users
        trained = None if split == "train" else [one.user for one in loaded.train.users]
        return People([Person(one.user, oracle=one.oracle) for one in found], loaded.facts(name), trained)
    from popi.data.check import load_users

    def load(path: str, against: list[str], limit: int) -> Sequence[User]:
        return load_users(path, against, **data.windows(), limit=limit, cache=cache, report=report)

    if split == "test":
        if data.test is None:
            raise DataError("data.test is not set, so there are no held-out users; set it to a JSONL file of users")
        return People(Nameless(load(data.test, [data.source], data.test_users)))
    users = load(data.source, [data.test] if data.test else [], data.train_users)
    if data.test:
        load(data.test, [], data.test_users)  # a bad file of test users is refused now, not after training
    return People(Nameless(users))


def _nano(config: RunConfig, split: SplitName) -> list[Person]:
    from popi.nano.change import some_changing
    from popi.nano.no_evidence import some_without_evidence
    from popi.nano.world import make_users, oracle_summary

    data = config.data
    n = data.train_users if split == "train" else data.test_users
    made = make_users(n, config.seed, split, targets=data.targets_per_user)
    if split == "train":
        made = some_changing(made, data.change_share, config.seed, split)
        made = some_without_evidence(made, data.no_evidence_share, config.seed, split)
    return [Person(one.user, frozenset(one.preferences.items()), oracle_summary(one)) for one in made]


def look_at(data: DataConfig) -> Loaded:
    """All of a benchmark with what is wrong with it, for `popi data check`; a set without a test split is no error.

    Raises:
        DataError: the set can't be read at all.
    """
    return load(data.source, options(data, whole=True))


def one_line_each(loaded: Loaded, split: str) -> list[User]:
    """The users of a split as a JSONL file takes them, where a user stands once: windows of one get ids of their own.

    Raises:
        DataError: the set has problems, or no such split.
    """
    if loaded.problems:
        raise DataError(listing(loaded.source, loaded.problems))
    if split not in loaded.splits or not loaded.splits[split].users:
        held = ", ".join(name for name, found in loaded.splits.items() if found.users) or "none"
        raise DataError(f"{loaded.source}: no users in split {split!r}; splits with users: {held}")
    users = [one.user for one in loaded.splits[split].users]
    windows, seen = Counter(user.user_id for user in users), Counter[str]()
    lines = []
    for user in users:
        seen[user.user_id] += 1
        name = f"{user.user_id}#{seen[user.user_id]}"
        lines.append(user.model_copy(update={"user_id": name}) if windows[user.user_id] > 1 else user)
    return lines


def options(data: DataConfig, whole: bool = False) -> Options:
    """A benchmark loader's options from the settings; `whole`: without limits, and without a test split if need be."""
    settings = data.benchmark
    return Options(
        path=settings.path,
        test_path=settings.test_path,
        train_split=settings.train_split,
        test_split=settings.test_split,
        test_share=settings.test_share,
        seed=settings.split_seed,
        unseen_prompts=settings.unseen_prompts,
        unseen_users=settings.unseen_users,
        drop_bad_rows=settings.on_bad_rows == "drop",
        choice_column=settings.choice_column,
        scorer_match=settings.scorer_match,
        alignx_signals=settings.alignx_signals,
        user_column=settings.user_column,
        **data.windows(),
        train_limit=None if whole else data.train_users,
        test_limit=None if whole else data.test_users,
        read_all=whole,
        need_test=not whole,
    )
