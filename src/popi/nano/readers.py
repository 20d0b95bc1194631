"""The exact reader's summaries: values with a posterior probability above 1/2, given all signals of a test user."""

from collections import Counter
from collections.abc import Sequence

from popi.nano.attributes import Preference
from popi.nano.bayes import given_signals
from popi.nano.world import state
from popi.signals.types import Signal


def exact_summary(signals: Sequence[Signal]) -> str:
    """Values with an exact posterior probability above 1/2, as a summary.

    Raises:
        ValueError: the signals are not from a test user of the nano world.
    """
    mass: Counter[Preference] = Counter()
    for preferences, p in given_signals(signals, "test"):
        for one in preferences.items():
            mass[one] += p  # type: ignore[assignment]
    return state(sorted(one for one, p in mass.items() if p > 0.5))
