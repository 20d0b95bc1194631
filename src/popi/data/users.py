"""Load a config's training or held-out users, from the nano world, files or a benchmark. All code loads them here."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from popi.config import BENCHMARKS, DataConfig, RunConfig
from popi.data.benchmarks.registry import load, load_clean
from popi.data.benchmarks.result import Loaded, Options
from popi.data.jsonl import listing
from popi.data.store import Progress
from popi.errors import DataError
from popi.signals.types import User

if TYPE_CHECKING:
    from popi.nano.world import NanoUser

SplitName = Literal["train", "test"]


@dataclass(frozen=True)
class Person:
    """A user with their true preferences, where known."""

    user: User
    preferences: frozenset[tuple[str, ...]] | None = None
    """What a user of the nano world prefers: (attribute, value), or (attribute, value, kind of topic) for a preference
    limited to that kind."""
    oracle: str | None = None
    """The true preferences as a summary."""


class UnlabelledUsers(Sequence[Person]):
    """Users as `Person`s without known preferences, each created on access; a slice is a view."""

    def __init__(self, users: Sequence[User]) -> None:
        self.users = users

    def __len__(self) -> int:
        return len(self.users)

    @overload
    def __getitem__(self, key: int) -> Person: ...

    @overload
    def __getitem__(self, key: slice) -> "UnlabelledUsers": ...

    def __getitem__(self, key: int | slice) -> "Person | UnlabelledUsers":
        return UnlabelledUsers(self.users[key]) if isinstance(key, slice) else Person(self.users[key])

    def __iter__(self) -> Iterator[Person]:
        return map(Person, self.users)


@dataclass(frozen=True)
class People:
    """The users of one split, up to `data.train_users` or `data.test_users`; those of files are on disk, others in
    memory.
    """

    people: Sequence[Person]
    facts: dict[str, Any] | None = None
    """Benchmarks only: the loader, an account of its rows, and a hash of the users."""
    trained: Sequence[User] | None = None
    """Held-out users of benchmarks only: the training users, which are loaded along with them."""

    @property
    def users(self) -> Sequence[User]:
        if isinstance(self.people, UnlabelledUsers):
            return self.people.users
        return [person.user for person in self.people]


def users_of(
    config: RunConfig, split: SplitName, *, cache: Path | None = None, report: Progress | None = None
) -> People:
    """The training or held-out users of a config. Files are checked completely, including the other split's.

    Args:
        config: specifies the source.
        split: which users to load.
        cache: a folder in which to cache users of files (`popi.data.check.load_users`).
        report: called with the progress so far.

    Raises:
        DataError: if a file or dataset can't be read or has problems, which the message lists; or if `split` is `test`
            and the source is a file without a test file.
    """
    data = config.data
    if data.source == "nano":
        return People(_nano(config, split))
    if data.source in BENCHMARKS:
        name = "interpolated" if split == "test" and data.benchmark.interpolated else split
        loaded = load_clean(data.source, options(data))
        if not loaded.splits[name].users:
            raise DataError(f"{data.source}: no users in split {name!r}; the dataset has no rows for it")
        users_of_split = loaded.splits[name].users
        trained = None if split == "train" else [entry.user for entry in loaded.train.users]
        people = [Person(entry.user, oracle=entry.oracle) for entry in users_of_split]
        return People(people, loaded.facts(name), trained)
    from popi.data.check import load_users

    def load(path: str, against: list[str], limit: int) -> Sequence[User]:
        return load_users(path, against, **data.windows(), limit=limit, cache=cache, report=report)

    if split == "test":
        if data.test is None:
            raise DataError("data.test is not set, so there are no held-out users; set it to a JSONL file of users")
        return People(UnlabelledUsers(load(data.test, [data.source], data.test_users)))
    users = load(data.source, [data.test] if data.test else [], data.train_users)
    if data.test:
        load(data.test, [], data.test_users)  # report problems in the test file now, not after training
    return People(UnlabelledUsers(users))


def _nano(config: RunConfig, split: SplitName) -> list[Person]:
    from popi.nano import hard
    from popi.nano.change import some_changing
    from popi.nano.no_evidence import some_without_evidence
    from popi.nano.world import make_users

    data = config.data
    n = data.train_users if split == "train" else data.test_users
    if data.world == "hard":
        return [person(user) for user in hard.make_users(n, config.seed, split, data.targets_per_user)]
    made = make_users(n, config.seed, split, targets=data.targets_per_user)
    if split == "train":
        made = some_changing(made, data.change_share, config.seed, split)
        made = some_without_evidence(made, data.no_evidence_share, config.seed, split)
    return [person(user) for user in made]


def person(user: "NanoUser") -> Person:
    """A user of the nano world with their true preferences."""
    from popi.nano.world import oracle_summary

    scopes = {a: (kind,) for a, kind in user.scopes.items()}
    named = frozenset((a, v, *scopes.get(a, ())) for a, v in user.preferences.items())
    return Person(user.user, named, oracle_summary(user))


def load_for_check(data: DataConfig) -> Loaded:
    """A complete benchmark with its problems, for `popi data check`. A missing test split is not an error.

    Raises:
        DataError: if the dataset can't be read at all.
    """
    return load(data.source, options(data, whole=True))


def with_unique_ids(loaded: Loaded, split: str) -> list[User]:
    """The users of a split for a JSONL file, which needs unique ids: each window of the same user gets its own.

    Raises:
        DataError: if the dataset has problems, or no such split.
    """
    if loaded.problems:
        raise DataError(listing(loaded.source, loaded.problems))
    if split not in loaded.splits or not loaded.splits[split].users:
        available = ", ".join(name for name, other in loaded.splits.items() if other.users) or "none"
        raise DataError(f"{loaded.source}: no users in split {split!r}; splits with users: {available}")
    users = [entry.user for entry in loaded.splits[split].users]
    windows, seen = Counter(user.user_id for user in users), Counter[str]()
    lines = []
    for user in users:
        seen[user.user_id] += 1
        name = f"{user.user_id}#{seen[user.user_id]}"
        lines.append(user.model_copy(update={"user_id": name}) if windows[user.user_id] > 1 else user)
    return lines


def options(data: DataConfig, whole: bool = False) -> Options:
    """A benchmark loader's options from the settings; `whole` lifts the limits and tolerates a missing test split."""
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
