"""Divide signals into batches, and choose the users for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from popi.data.users import Person, person
from popi.errors import ConfigError
from popi.signals.fit import oldest_first
from popi.signals.types import Signal
from popi.studies.study import Study

NANO_SIGNALS = 16
"""Default number of signals per nano user in this study."""
NANO_OTHERS = 3
"""How many of them are not pairs: an interaction and two statements."""


@dataclass(frozen=True)
class Streamed:
    """A user whose signals arrive in batches.

    Attributes:
        person: the user, with their final preferences.
        before: earlier preferences of a nano user who changes.
        change: number of signals before the change; 0 for users who do not change.
    """

    person: Person
    before: frozenset[tuple[str, str]] | None = None
    change: int = 0


def batches(signals: Sequence[Signal], n: int) -> list[list[Signal]]:
    """The signals, oldest first, in `n` batches whose sizes differ by at most one; some are empty if there are fewer
    signals than batches.
    """
    ordered = [signals[i] for i in oldest_first(signals)]
    borders = [len(ordered) * b // n for b in range(n + 1)]
    return [ordered[start:end] for start, end in zip(borders, borders[1:], strict=False)]


def read_batches(text: str) -> list[int]:
    """Parse numbers of batches such as `1,2,4`, in ascending order.

    Raises:
        ConfigError: if the text is invalid.
    """
    try:
        counts = {int(part) for part in text.split(",")}
    except ValueError:
        counts = {0}
    if min(counts) < 1:
        raise ConfigError(f"--batches {text}: must be integers of at least 1, such as 1,2,4,8,16")
    return sorted(counts)


def kinds_of_users(study: Study, signals: int | None) -> dict[str, list[Streamed]]:
    """Kind → users. In the nano world, new users with `signals` signals each: stable ones, and the same users with a
    change halfway, the same targets and the same second half of signals. Otherwise the held-out users.

    Raises:
        ConfigError: if `signals` is given outside the nano world, or is too small.
    """
    if not study.is_nano:
        if signals is not None:
            raise ConfigError(f"--signals {signals} only applies to the nano world; these users have their own signals")
        return {"held out": [Streamed(person) for person in study.people]}
    count = NANO_SIGNALS if signals is None else signals
    if count < NANO_OTHERS + 2:
        raise ConfigError(f"--signals {count}: must be at least {NANO_OTHERS + 2}")
    from popi.nano.change import make_changing_users, middle
    from popi.nano.world import make_users

    users, seed, targets = len(study.people), study.config.seed, study.config.data.targets_per_user
    stable = make_users(users, seed, "test", targets, count - NANO_OTHERS)
    changing = make_changing_users(users, seed, "test", targets, count - NANO_OTHERS)
    return {
        "stable": [Streamed(person(user)) for user in stable],
        "changing": [
            Streamed(person(user), frozenset((user.before or {}).items()), middle(count)) for user in changing
        ],
    }
