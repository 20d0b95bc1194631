"""What each world's users could be known by: the exact reader of either, under one set of names.

A *belief* is whatever a world's reader makes of what it has seen; only that reader looks inside.
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


@dataclass(frozen=True)
class Reader:
    """The exact reader of a world's test users."""

    prior: Callable[[], Any]
    """Before anything is seen."""
    given_signals: Callable[[Sequence[Signal]], Any]
    """After all signals of a user."""
    choice_probability: Callable[[Any, TargetPair], float]
    """Of a belief and a target pair: the probability of the user's choice."""
    channel: Callable[[Sequence[tuple[Named, Named]]], Callable[[Named], Any]]
    """From (what a summary names, what its user prefers) of some users, to the belief after a summary."""
    summary: Callable[[Any], str]
    """What a belief holds more likely than not, as a summary."""


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
    """Without the kinds of topic, which nobody's preferences depend on in the easy world."""
    return frozenset((one[0], one[1]) for one in named)


def _hard_channel(users: Sequence[tuple[Named, Named]]) -> Callable[[Named], hard_reader.Belief]:
    return hard_reader.Channel.fit(users).belief


WORLDS = {
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
    """What the exact reader of a world (`easy` or `hard`) would write.

    Raises:
        ValueError: the signals are not those of a test user of that world.
    """
    reader = WORLDS[world]
    return reader.summary(reader.given_signals(signals))
