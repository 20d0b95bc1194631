"""The same signals in more or fewer batches, and the users who get them."""

from collections.abc import Sequence
from dataclasses import dataclass

from popi.data.users import Person
from popi.errors import ConfigError
from popi.signals.fit import oldest_first
from popi.signals.types import Signal
from popi.studies.study import Study

NANO_SIGNALS = 16
"""Signals of a nano user of this study, if nothing else is said."""
NANO_OTHERS = 3
"""Of those, what is no pair: an interaction and two things said."""


@dataclass(frozen=True)
class Streamed:
    """A user whose signals come in batches.

    Attributes:
        person: the user, with the preferences that hold in the end.
        before: of a user of the nano world who changes, what was preferred before.
        change: how many signals are from before the change; 0 for a user who does not change.
    """

    person: Person
    before: frozenset[tuple[str, str]] | None = None
    change: int = 0


def batches(signals: Sequence[Signal], n: int) -> list[list[Signal]]:
    """The signals, oldest first, in `n` batches whose sizes differ by one at most; some are empty where there are fewer
    signals than batches.
    """
    ordered = [signals[i] for i in oldest_first(signals)]
    borders = [len(ordered) * b // n for b in range(n + 1)]
    return [ordered[start:end] for start, end in zip(borders, borders[1:], strict=False)]


def read_batches(text: str) -> list[int]:
    """The numbers of batches in `1,2,4`, in rising order.

    Raises:
        ConfigError: it is something else.
    """
    try:
        counts = {int(part) for part in text.split(",")}
    except ValueError:
        counts = {0}
    if min(counts) < 1:
        raise ConfigError(f"--batches {text}: must be whole numbers from 1 on, as in 1,2,4,8,16")
    return sorted(counts)


def kinds_of_users(study: Study, signals: int | None) -> dict[str, list[Streamed]]:
    """Kind → users. In the nano world users of the study's own, with `signals` signals each: stable ones, and the same
    users changing half-way, with the same targets and the same second half of signals. Elsewhere those held out.

    Raises:
        ConfigError: `signals` is given for users who are as they are, or is too small.
    """
    if not study.is_nano:
        if signals is not None:
            raise ConfigError(f"--signals {signals} is of the nano world; these users have signals of their own")
        return {"held out": [Streamed(person) for person in study.people]}
    count = NANO_SIGNALS if signals is None else signals
    if count < NANO_OTHERS + 2:
        raise ConfigError(f"--signals {count}: must be at least {NANO_OTHERS + 2}")
    from popi.nano.change import make_changing_users, middle
    from popi.nano.world import NanoUser, make_users, oracle_summary

    def person(user: NanoUser) -> Person:
        return Person(user.user, frozenset(user.preferences.items()), oracle_summary(user))

    users, seed, targets = len(study.people), study.config.seed, study.config.data.targets_per_user
    stable = make_users(users, seed, "test", targets, count - NANO_OTHERS)
    changing = make_changing_users(users, seed, "test", targets, count - NANO_OTHERS)
    return {
        "stable": [Streamed(person(user)) for user in stable],
        "changing": [
            Streamed(person(user), frozenset((user.before or {}).items()), middle(count)) for user in changing
        ],
    }
