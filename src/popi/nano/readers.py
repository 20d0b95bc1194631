"""The exact reader of each nano world, behind one interface, and its summaries.

A *belief* is a reader's own representation of a probability distribution over preferences; only that reader looks
inside.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from popi.nano import bayes, hard_reader
from popi.nano.attributes import Preference
from popi.nano.world import state
from popi.signals.types import Signal, TargetPair

Named = frozenset[tuple[str, ...]]
"""Preferences as `truth.named_attributes` returns them."""


@dataclass(frozen=True)
class Reader:
    """The exact reader of a world's test users."""

    prior: Callable[[], Any]
    """The belief before any evidence."""
    given_signals: Callable[[Sequence[Signal]], Any]
    """The belief given all signals of a user."""
    choice_probability: Callable[[Any, TargetPair], float]
    """Belief and target pair → the probability of the user's choice."""
    channel: Callable[[Sequence[tuple[Named, Named]]], Callable[[Named], Any]]
    """Fits, on (preferences that a summary names, preferences of its user), a function from the preferences that
    another summary names to the belief given it."""
    summary: Callable[[Any], str]
    """Belief → the values with a probability above 1/2, as a summary."""


def _likely(belief: bayes.Belief) -> str:
    mass: Counter[Preference] = Counter()
    for preferences, p in belief:
        for one in preferences.items():
            mass[one] += p  # type: ignore[assignment]
    return state(sorted(one for one, p in mass.items() if p > 0.5))


def _easy_channel(users: Sequence[tuple[Named, Named]]) -> Callable[[Named], bayes.Belief]:
    fitted = bayes.Channel.fit((_pairs(named), dict(_pairs(preferred))) for named, preferred in users)
    return lambda named: fitted.belief(_pairs(named), "test")


def _pairs(named: Named) -> frozenset[Preference]:
    """The preferences without kinds of topic, which don't matter in the easy world."""
    return frozenset((one[0], one[1]) for one in named)


def _hard_channel(users: Sequence[tuple[Named, Named]]) -> Callable[[Named], hard_reader.Belief]:
    return hard_reader.Channel.fit(users).belief


READERS = {
    "easy": Reader(
        prior=lambda: bayes.prior("test"),
        given_signals=lambda signals: bayes.given_signals(signals, "test"),
        choice_probability=bayes.choice_probability,
        channel=_easy_channel,
        summary=_likely,
    ),
    "hard": Reader(
        prior=hard_reader.prior,
        given_signals=hard_reader.given_signals,
        choice_probability=hard_reader.choice_probability,
        channel=_hard_channel,
        summary=hard_reader.best_summary,
    ),
}


def exact_summary(signals: Sequence[Signal], world: str) -> str:
    """The summary by the exact reader of a world (`easy` or `hard`): values with a posterior probability above 1/2.

    Raises:
        ValueError: the signals are not from a test user of that world.
    """
    reader = READERS[world]
    return reader.summary(reader.given_signals(signals))
