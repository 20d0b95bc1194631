"""Cut a user's signals to the first k, so that longer cuts include shorter ones."""

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
        order: `given`: unchanged; `shuffled`: a random permutation that depends only on the seed and the user id, and
            so is the same for every cut and any selection of users.
        seed: seed of the permutations.
    """
    signals = list(person.user.signals)
    if order == "shuffled":
        Random(f"popi-evidence-{seed}-{person.user.user_id}").shuffle(signals)
    return signals


def first_signals(people: Sequence[Person], k: int, order: OrderOfSignals = "given", seed: int = 0) -> list[Person]:
    """The users with the first `k` of their signals, or all if they have fewer, and the same targets."""
    return [with_signals(person, ordered(person, order, seed)[:k]) for person in people]


def doubling(maximum: int) -> list[int]:
    """0, 1, 2, 4, 8, … below `maximum`, and `maximum`."""
    sizes = [0]
    while (size := max(1, 2 * sizes[-1])) < maximum:
        sizes.append(size)
    return sizes if maximum == 0 else [*sizes, maximum]


def read_sizes(text: str) -> list[int]:
    """Parse numbers of signals such as `0,1,2,4`, in ascending order. 0 is always included, for comparison.

    Raises:
        ConfigError: if the text is invalid.
    """
    try:
        sizes = {int(part) for part in text.split(",")}
    except ValueError:
        sizes = {-1}
    if min(sizes) < 0:
        raise ConfigError(f"--signals {text}: must be integers of at least 0, such as 0,1,2,4,8")
    return sorted(sizes | {0})
