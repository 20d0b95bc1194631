"""Held-out users to evaluate on: the run's own (nano world, test file, benchmark), or any JSONL file of users."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from popi.config import BENCHMARKS, RunConfig
from popi.data.leaks import refuse_leaks
from popi.data.store import Progress, user_ids
from popi.data.users import Person, UnlabelledUsers, users_of
from popi.errors import ConfigError, DataError
from popi.runs.provenance import stamp_of_each
from popi.signals.types import User


def held_out(
    config: RunConfig,
    path: str | Path | None = None,
    *,
    cache: Path | None = None,
    report: Progress | None = None,
) -> tuple[Sequence[Person], dict[str, Any] | None]:
    """The users to evaluate on, each with at least one target pair; for a benchmark, also facts about its loader.

    Args:
        config: names the source of the run's own held-out users; only the first `data.test_users` are taken.
        path: a JSONL file whose users are all taken instead. Files do not contain true preferences.
        cache: as in `users_of`.
        report: receives the progress of reading.

    Raises:
        ConfigError: the run was trained on a file and names no test file.
        DataError: the file or set is invalid, leaks targets into signals, or holds users that the run was trained on.
    """
    data = config.data
    if path is None:
        if data.source != "nano" and data.source not in BENCHMARKS and data.test is None:
            raise ConfigError(
                "data.test is not set, so there are no users to evaluate on; set it to a JSONL file of users, "
                "or name one with --users FILE"
            )
        loaded = users_of(config, "test", cache=cache, report=report)
        trained: Sequence[User]
        if loaded.trained is not None:
            trained = loaded.trained
        elif data.source == "nano":
            trained = []  # the world's splits share neither users nor texts
        else:
            trained = users_of(config, "train", cache=cache, report=report).users
        refuse_leaks(loaded.users, data.source if data.test is None else data.test, trained, report)
        return loaded.people, loaded.facts
    from popi.data.check import load_users

    trained_on = [] if data.source == "nano" or data.source in BENCHMARKS else [data.source]
    users = load_users(path, against=trained_on, **data.windows(), cache=cache, report=report)
    trained = users_of(config, "train", cache=cache, report=report).users
    ids = set(user_ids(users))
    if both := sorted(ids.intersection(user_ids(trained))):
        raise DataError(f"{path}: the run was trained on {len(both)} of these users, {both[0]!r} among them")
    refuse_leaks(users, str(path), trained, report)
    return UnlabelledUsers(users), None


def users_stamp(people: Sequence[Person]) -> str:
    """A short hash of users: their signals and targets."""
    return stamp_of_each(person.user.model_dump(mode="json") for person in people)


def benchmark_of(
    config: RunConfig, facts: Mapping[str, Any] | None, users: str | Path | None = None
) -> dict[str, str | None]:
    """What every row records about where its users come from: the source, and the loader's version."""
    data = config.data
    source = str(users) if users is not None else data.test or data.source
    return {"benchmark": source, "benchmark_version": facts["loader"] if facts is not None else None}


def labelled(named: Iterable[tuple[str, ...]]) -> list[list[str]]:
    """[attribute, value] of each preference, sorted; a kind of topic that it is limited to follows its value."""
    return sorted([one[0], " ".join(one[1:])] for one in named)


def named_attributes(text: str) -> set[tuple[str, ...]]:
    """The preferences of the nano world that a summary names: (attribute, value), or (attribute, value, kind of topic)
    for a preference limited to that kind.
    """
    from popi.nano.truth import named_attributes as parse

    return parse(text)
