"""The best possible predictions of a user's choices, given nothing, the signals, a summary, or the true preferences.

A *belief* is a probability for every combination of preferences that users of a split can have. For users drawn by
`world.make_user` it is exact, both the prior and the posterior given all signals. The posterior given a summary needs
a fitted model of how summaries are written, a `Channel`. `choice_probability` converts a belief to the exact
probability of the choice in a target pair. Texts are parsed by `truth.shown_values`, which is exact for the grammar's.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations

from popi.nano.attributes import ATTRIBUTES, PHRASES, Preference
from popi.nano.truth import HYPOTHESES, shown_values
from popi.nano.world import (
    HAPPY,
    JOB_FITS,
    JOBS,
    NOISE,
    OTHER_CARED,
    OTHER_UNCARED,
    SELF,
    TARGET_UNCARED,
    TIRED,
    Split,
    rating,
    split_of,
)
from popi.signals.types import (
    DemographicSignal,
    InteractionSignal,
    PairSignal,
    PostSignal,
    Signal,
    StatementSignal,
    TargetPair,
)

Values = Mapping[str, str]
"""Attribute → value: of a response, or what a user prefers."""
Belief = list[tuple[dict[str, str], float]]
"""[(preferences, probability)], summing to 1."""


@cache
def prior(split: Split) -> Belief:
    """The prior over the split's combinations, as `world.draw_preferences` draws them."""
    return _normalised([(h, math.exp(log)) for h, log in HYPOTHESES if split_of(h) == split])


def given_signals(signals: Sequence[Signal], split: Split) -> Belief:
    """The posterior given all signals of a user, as drawn by `world.make_user`."""
    pairs = [(values_of(s.chosen), values_of(s.rejected)) for s in signals if isinstance(s, PairSignal)]
    others = [s for s in signals if not isinstance(s, PairSignal)]
    weights = []
    for preferences, p in prior(split):
        for signal in others:
            p *= signal_likelihood(signal, preferences)
        weights.append((preferences, p * pairs_likelihood(pairs, preferences) if p else 0.0))
    return _normalised(weights)


def choice_probability(belief: Belief, target: TargetPair) -> float:
    """The probability that `target.chosen` is the preferred one of the two responses.

        P(a over b) = Σ_h p(h)·P(a, b | h) / Σ_h p(h)·(P(a, b | h) + P(b, a | h))

    where P(a, b | h) is the probability that a user with preferences h gets this pair, with a preferred to b.

    Raises:
        ValueError: the grammar can't have written the responses, or the pair is impossible under the belief.
    """
    a, b = values_of(target.chosen), values_of(target.rejected)
    straight = sum(p * target_likelihood(h, a, b) for h, p in belief if p)
    swapped = sum(p * target_likelihood(h, b, a) for h, p in belief if p)
    if not straight + swapped:
        raise ValueError("these two responses can't be a target pair under any preferences of the belief")
    return straight / (straight + swapped)


@lru_cache(maxsize=1 << 14)
def values_of(response: str) -> Values:
    """The attribute values of a response that the grammar wrote.

    Raises:
        ValueError: the response shows no value of some attribute, or two.
    """
    shown = shown_values(response)
    values = dict(shown)
    if len(shown) != len(ATTRIBUTES) or len(values) != len(ATTRIBUTES):
        raise ValueError(f"not a response of the nano grammar: {response!r}")
    return values


# Likelihoods, each up to factors that are equal for all preferences.


def focus_likelihoods(preferences: Values, better: Values, worse: Values, uncared: float) -> dict[str, float]:
    """Attribute that the pair is about → P(these two responses | preferences, chosen by preference).

    Relative to the probability for a user who cares about nothing, since `world.pair_values` draws the values of
    uncared attributes identically for everyone. `uncared` is the probability that such an attribute differs.
    """
    fit = 1.0
    for attribute, value in preferences.items():
        if better[attribute] == worse[attribute]:
            fit *= (1 - OTHER_CARED) / (1 - uncared)
        elif better[attribute] == value:
            fit *= OTHER_CARED * len(ATTRIBUTES[attribute]) / uncared
        else:
            return dict.fromkeys(preferences, 0.0)
    return {a: fit / OTHER_CARED if better[a] != worse[a] else 0.0 for a in preferences}


def target_likelihood(preferences: Values, better: Values, worse: Values) -> float:
    """P(this target pair | preferences), averaged over the attribute that it is about."""
    return sum(focus_likelihoods(preferences, better, worse, TARGET_UNCARED).values()) / len(preferences)


def pairs_likelihood(pairs: Sequence[tuple[Values, Values]], preferences: Values) -> float:
    """P(these signal pairs | preferences), including noise.

    The pairs are about the cared attributes in turn (`world.cycle`), and shuffled. So all arrangements in which each
    attribute has its number of pairs are equally likely, and this sums over them.
    """
    weights = []
    for chosen, rejected in pairs:
        straight = focus_likelihoods(preferences, chosen, rejected, OTHER_UNCARED)
        swapped = focus_likelihoods(preferences, rejected, chosen, OTHER_UNCARED)
        weights.append([(1 - NOISE) * straight[a] + NOISE * swapped[a] for a in preferences])
    n = len(preferences)
    turns = [len(range(i, len(pairs), n)) for i in range(n)]
    total = sum(_arrangements(weights, counts) for counts in set(permutations(turns)))
    ways = math.factorial(len(pairs)) / math.prod(map(math.factorial, turns))
    return total / ways / len(set(permutations(turns)))


def _arrangements(weights: Sequence[Sequence[float]], counts: tuple[int, ...]) -> float:
    """Σ Π weights over all ways to assign attributes to pairs, where each attribute gets as many as in `counts`."""
    sums = {counts: 1.0}
    for row in weights:
        extended: dict[tuple[int, ...], float] = {}
        for state, partial in sums.items():
            for i, weight in enumerate(row):
                if weight and state[i]:
                    after = (*state[:i], state[i] - 1, *state[i + 1 :])
                    extended[after] = extended.get(after, 0.0) + partial * weight
        sums = extended
    return sum(sums.values())


WANTED = {c.format(phrase): p for c in (*SELF, *HAPPY) for p, phrases in PHRASES.items() for phrase in phrases}
"""Statement or post → the preference that its author names as their own."""
HATED = {c.format(phrase): p for c in TIRED for p, phrases in PHRASES.items() for phrase in phrases}
"""Post → the value that its author is tired of."""


def signal_likelihood(signal: Signal, preferences: Values) -> float:
    """P(this signal | preferences) for a signal other than a pair; 1 if it says nothing about the user."""
    if isinstance(signal, InteractionSignal):
        given = values_of(signal.response)
        if signal.edit is None:
            return float(signal.rating == rating(given, preferences))
        edited = values_of(signal.edit)
        if dict(edited) != {**given, **preferences}:
            return 0.0
        wrong = [len(ATTRIBUTES[a]) / (len(ATTRIBUTES[a]) - 1) for a in preferences if given[a] != preferences[a]]
        return sum(wrong) / len(preferences)
    if isinstance(signal, DemographicSignal):
        job = signal.text.removeprefix("works as ").rstrip(".")
        fitting = [j for j, preference in JOBS.items() if preference in preferences.items()]
        chance = JOB_FITS if fitting else 0.0
        return (1 - chance) / len(JOBS) + (chance / len(fitting) if job in fitting else 0.0)
    if isinstance(signal, StatementSignal | PostSignal):
        if wanted := WANTED.get(signal.text):
            return float(wanted in preferences.items()) / len(preferences)
        if hated := HATED.get(signal.text):
            return float(preferences.get(hated[0], hated[1]) != hated[1]) / len(preferences)
    return 1.0


# Summaries


@dataclass(frozen=True)
class Channel:
    """How often a writer names each value of an attribute, given the value that the user prefers.

    P(named | preferences) = Π_a P(named values of a | preferred value of a, or none): attribute by attribute, as the
    nano base writes. Only the named values count; the wording and the rest of the summary are ignored.
    """

    counts: Mapping[tuple[str, str | None], Counter[frozenset[str]]]

    SMOOTHING = 0.5
    """Added to the count of each form: nothing named, one value, or several."""

    @classmethod
    def fit(cls, users: Iterable[tuple[frozenset[Preference], Values]]) -> "Channel":
        """Fit to (values named by a summary, its user's preferences)."""
        counts: dict[tuple[str, str | None], Counter[frozenset[str]]] = {}
        for named, preferences in users:
            for attribute in ATTRIBUTES:
                key = (attribute, preferences.get(attribute))
                counts.setdefault(key, Counter())[_values_of_attribute(named, attribute)] += 1
        return cls(counts)

    def likelihood(self, named: frozenset[Preference], preferences: Values) -> float:
        """P(named | preferences)."""
        p = 1.0
        for attribute, values in ATTRIBUTES.items():
            seen = self.counts.get((attribute, preferences.get(attribute)), Counter())
            forms = 2 + len(values)  # nothing, one value, several
            p *= (seen[_values_of_attribute(named, attribute)] + self.SMOOTHING) / (
                seen.total() + forms * self.SMOOTHING
            )
        return p

    def belief(self, named: frozenset[Preference], split: Split) -> Belief:
        """The posterior given a summary that names these values."""
        return _normalised([(h, p * self.likelihood(named, h)) for h, p in prior(split)])


def _values_of_attribute(named: frozenset[Preference], attribute: str) -> frozenset[str]:
    return frozenset(value for a, value in named if a == attribute)


def _normalised(weights: Belief) -> Belief:
    total = sum(p for _, p in weights)
    if not total:
        raise ValueError("no preferences of this split explain the signals: not a user of the nano world")
    return [(h, p / total) for h, p in weights]
