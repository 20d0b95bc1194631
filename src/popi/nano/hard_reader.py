"""The exact reader of the harder nano world: everything that can be inferred from all signals of a test user.

The counterpart of `popi.nano.bayes` for the users of `popi.nano.hard`: the posterior over all combinations of
preferences and scopes, the probability that it gives to a choice, and its summary. Exact for users that
`hard.make_user` draws.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from popi.nano import hard
from popi.nano.attributes import ATTRIBUTES, Preference
from popi.nano.bayes import HATED, WANTED, Values, focus_likelihoods, target_likelihood, values_of
from popi.nano.grammar import KINDS, kind_of, topic_of
from popi.nano.truth import HYPOTHESES, Named
from popi.nano.world import JOB_FITS, JOBS, rating, split_of, state
from popi.signals.types import (
    DemographicSignal,
    InteractionSignal,
    PairSignal,
    PostSignal,
    Signal,
    StatementSignal,
    TargetPair,
)

Combination = frozenset[Named]
"""A user's preferences: (attribute, value), or (attribute, value, kind of topic) for one limited to that kind."""
Belief = dict[Combination, float]
"""Combination → probability, summing to 1."""


@cache
def prior() -> Belief:
    """The prior over test users' combinations, as `hard.draw` and `world.draw_scopes` draw them."""
    every = [(h, math.exp(log)) for h, log in HYPOTHESES]
    special = [(h, p) for h, p in every if hard.held_out(h)]
    ordinary = [(h, p) for h, p in every if not hard.held_out(h) and split_of(h) == "test"]
    belief: Belief = {}
    for group, share in ((special, hard.HELD_OUT_SHARE), (ordinary, 1 - hard.HELD_OUT_SHARE)):
        total = sum(p for _, p in group)
        for preferences, p in group:
            items = sorted(preferences.items())
            belief[frozenset(items)] = share * p / total * (1 - hard.SCOPED)
            for one in items:
                for kind in KINDS:
                    scoped = frozenset((*x, kind) if x == one else x for x in items)
                    belief[scoped] = share * p / total * hard.SCOPED / len(items) / len(KINDS)
    return belief


def given_signals(signals: Sequence[Signal]) -> Belief:
    """The posterior given all signals of a test user.

    Raises:
        ValueError: no test user of the harder world has these signals.
    """
    belief = dict(prior())
    for signal in signals:
        likelihood = _likelihood_of(signal)
        belief = {combination: p * likelihood(combination) for combination, p in belief.items() if p}
    return _normalised(belief)


def choice_probability(belief: Belief, target: TargetPair) -> float:
    """The probability that `target.chosen` is the preferred one of the two responses; see `bayes.choice_probability`.

    Raises:
        ValueError: the grammar can't have written the responses, or the pair is impossible under the belief.
    """
    a, b = values_of(target.chosen), values_of(target.rejected)
    kind = kind_of(topic_of(str(target.prompt), "test"))
    applying: dict[frozenset[Preference], float] = {}
    for combination, p in belief.items():
        applying[_at(combination, kind)] = applying.get(_at(combination, kind), 0.0) + p
    straight = sum(p * target_likelihood(dict(one), a, b) for one, p in applying.items() if p)
    swapped = sum(p * target_likelihood(dict(one), b, a) for one, p in applying.items() if p)
    if not straight + swapped:
        raise ValueError("these two responses can't be a target pair under any preferences of the belief")
    return straight / (straight + swapped)


def best_summary(belief: Belief, threshold: float = 0.5) -> str:
    """The values with a probability above `threshold` as a summary, each with its most probable scope (or none)."""
    mass: dict[Preference, Counter[str | None]] = {}
    for combination, p in belief.items():
        for one in combination:
            kind = one[2] if len(one) > 2 else None
            mass.setdefault((one[0], one[1]), Counter())[kind] += p  # type: ignore[assignment]
    named = {one: max(kinds, key=lambda k: kinds[k]) for one, kinds in mass.items() if kinds.total() > threshold}
    return state(sorted(named), scopes={a: kind for (a, _), kind in named.items() if kind})


@cache
def _at(combination: Combination, kind: str) -> frozenset[Preference]:
    """The preferences that apply to a kind of topic."""
    return frozenset((one[0], one[1]) for one in combination if len(one) == 2 or one[2] == kind)


def _likelihood_of(signal: Signal) -> Callable[[Combination], float]:
    """Combination → P(this signal | combination), up to a factor that is equal for all combinations."""
    if isinstance(signal, PairSignal | InteractionSignal):
        kind = kind_of(topic_of(str(signal.prompt), "test"))
        likelihood = _pair(signal) if isinstance(signal, PairSignal) else _interaction(signal)
        computed: dict[frozenset[Preference], float] = {}

        def of_applying(combination: Combination) -> float:
            holds = _at(combination, kind)
            if holds not in computed:
                computed[holds] = likelihood(dict(holds))
            return computed[holds]

        return of_applying
    if isinstance(signal, DemographicSignal):
        return _job(signal.text.removeprefix("works as ").rstrip("."))
    if isinstance(signal, StatementSignal | PostSignal):
        return _remark(signal.text)
    return lambda combination: 1.0


def _pair(signal: PairSignal) -> Callable[[Values], float]:
    chosen, rejected = values_of(signal.chosen), values_of(signal.rejected)

    def likelihood(holds: Values) -> float:
        straight = _mean(focus_likelihoods(holds, chosen, rejected, hard.OTHER_UNCARED))
        swapped = _mean(focus_likelihoods(holds, rejected, chosen, hard.OTHER_UNCARED))
        return (1 - hard.NOISE) * straight + hard.NOISE * swapped

    return likelihood


def _mean(foci: Mapping[str, float]) -> float:
    return sum(foci.values()) / len(foci)


def _interaction(signal: InteractionSignal) -> Callable[[Values], float]:
    given = values_of(signal.response)
    edited = None if signal.edit is None else dict(values_of(signal.edit))

    def likelihood(holds: Values) -> float:
        if edited is None:
            return float(signal.rating == rating(given, holds))
        if edited != {**given, **holds}:
            return 0.0
        wrong = [len(ATTRIBUTES[a]) / (len(ATTRIBUTES[a]) - 1) for a in holds if given[a] != holds[a]]
        return sum(wrong) / len(holds)

    return likelihood


def _job(job: str) -> Callable[[Combination], float]:
    def likelihood(combination: Combination) -> float:
        fitting = [name for name, one in JOBS.items() if any(named[:2] == one for named in combination)]
        chance = JOB_FITS if fitting else 0.0
        return (1 - chance) / len(JOBS) + (chance / len(fitting) if job in fitting else 0.0)

    return likelihood


def _remark(text: str) -> Callable[[Combination], float]:
    """A remark about oneself is either sincere, naming a preference with its scope, or names any value, without one."""
    kind = next((k for k in KINDS if re.search(rf"\b{k}\b", text)), None)
    scope = () if kind is None else (kind,)
    plain = text.replace(f" {kind}", "") if kind else text
    anything = (1 - hard.SINCERE) / len(hard.sayable("test")) if kind is None else 0.0
    wanted, hated = WANTED.get(plain), HATED.get(plain)
    if wanted:
        own = (*wanted, *scope)
        return lambda combination: hard.SINCERE * (own in combination) / len(combination) + anything
    if not hated:
        return lambda combination: 1.0
    attribute, value = hated
    others = len(ATTRIBUTES[attribute]) - 1

    def tired(combination: Combination) -> float:
        own = sum(one[0] == attribute and one[1] != value and one[2:] == scope for one in combination)
        return hard.SINCERE * own / len(combination) / others + anything

    return tired


@dataclass(frozen=True)
class Channel:
    """How often a writer names each value of an attribute, given the user's preference; `bayes.Channel` with scopes."""

    counts: Mapping[tuple[str, Combination], Counter[Combination]] = field(default_factory=dict)

    SMOOTHING = 0.5

    @classmethod
    def fit(cls, users: Iterable[tuple[Combination, Combination]]) -> "Channel":
        """Count over (preferences that a summary names, preferences of its user)."""
        counts: dict[tuple[str, Combination], Counter[Combination]] = {}
        for named, preferred in users:
            for attribute in ATTRIBUTES:
                key = (attribute, _of(preferred, attribute))
                counts.setdefault(key, Counter())[_of(named, attribute)] += 1
        return cls(counts)

    def belief(self, named: Combination) -> Belief:
        """The posterior given a summary that names these preferences."""
        parts = {attribute: _of(named, attribute) for attribute in ATTRIBUTES}
        weights = {}
        for combination, p in prior().items():
            for attribute, values in ATTRIBUTES.items():
                counts = self.counts.get((attribute, _of(combination, attribute)), Counter())
                forms = 2 + len(values) * (1 + len(KINDS))  # nothing, one value with a scope or without, several
                p *= (counts[parts[attribute]] + self.SMOOTHING) / (counts.total() + forms * self.SMOOTHING)
            weights[combination] = p
        return _normalised(weights)


@cache
def _of(named: Combination, attribute: str) -> Combination:
    return frozenset(one for one in named if one[0] == attribute)


def _normalised(belief: Belief) -> Belief:
    total = sum(belief.values())
    if not total:
        raise ValueError("no preferences explain these signals: not a test user of the harder nano world")
    return {combination: p / total for combination, p in belief.items()}
