"""Fewer signals of the same user by a stated, nested rule: the first k, so that a longer cut holds every shorter."""

from collections.abc import Sequence
from random import Random
from typing import Literal

from popi.data.users import Person
from popi.errors import ConfigError
from popi.signals.types import Signal
from popi.studies.study import with_signals

OrderOfSignals = Literal["given", "shuffled"]


def ordered(person: Person, order: OrderOfSignals, seed: int) -> list[Signal]:
    """A user's signals in the order in which they are cut.

    Args:
        person: the user.
        order: `given`: as they stand; `shuffled`: by a permutation of the user's own, drawn from the seed and the user
            id alone: the same in every cut, and whoever else is studied.
        seed: of the permutations.
    """
    signals = list(person.user.signals)
    if order == "shuffled":
        Random(f"popi-evidence-{seed}-{person.user.user_id}").shuffle(signals)
    return signals


def first_signals(people: Sequence[Person], k: int, order: OrderOfSignals = "given", seed: int = 0) -> list[Person]:
    """The users with the first `k` of their signals; who has fewer keeps all. Targets stay."""
    return [with_signals(person, ordered(person, order, seed)[:k]) for person in people]


def doubling(most: int) -> list[int]:
    """0, 1, 2, 4, 8, … below `most`, and `most`."""
    sizes = [0]
    while (size := max(1, 2 * sizes[-1])) < most:
        sizes.append(size)
    return sizes if most == 0 else [*sizes, most]


def read_sizes(text: str) -> list[int]:
    """The numbers of signals in `0,1,2,4`, in rising order; 0 is always among them, to compare with.

    Raises:
        ConfigError: it is something else.
    """
    try:
        sizes = {int(part) for part in text.split(",")}
    except ValueError:
        sizes = {-1}
    if min(sizes) < 0:
        raise ConfigError(f"--signals {text}: must be whole numbers from 0 on, as in 0,1,2,4,8")
    return sorted(sizes | {0})
