"""What the nano world knows: which preferences a summary names, and how well anyone could infer them."""

import math
import re
from itertools import combinations, product

from popi.nano.attributes import ATTRIBUTES, KEYWORDS, PRIOR, Preference
from popi.nano.world import NOISE, OTHER_CARED, OTHER_UNCARED, NanoUser, PairFacts


def named_attributes(text: str) -> set[Preference]:
    """The (attribute, value) pairs that a summary names, by the words that belong to one value alone."""
    return {KEYWORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in KEYWORDS}


def _hypotheses() -> list[tuple[dict[str, str], float]]:
    found = []
    for size in (2, 3):
        subsets = list(combinations(sorted(ATTRIBUTES), size))
        for cared in subsets:
            for values in product(*(ATTRIBUTES[a] for a in cared)):
                p = math.prod(
                    PRIOR[len(ATTRIBUTES[a])][ATTRIBUTES[a].index(v)] for a, v in zip(cared, values, strict=True)
                )
                found.append((dict(zip(cared, values, strict=True)), math.log(0.5 * p / len(subsets))))
    return found


HYPOTHESES = _hypotheses()


def _likelihood(preferences: dict[str, str], better: dict[str, str], worse: dict[str, str]) -> float:
    """P(these two responses | preferences, chosen with preference), up to a factor equal for all preferences."""
    foci = 0.0
    for focus in preferences:
        p = 1.0
        for name, values in ATTRIBUTES.items():
            differ = better[name] != worse[name]
            if name in preferences:
                fit = 1.0 if better[name] == preferences[name] else 0.0
                same = 0.0 if name == focus else (1 - OTHER_CARED) / len(values)
                change = (1.0 if name == focus else OTHER_CARED) * fit / (len(values) - 1)
                p *= change if differ else same
            else:
                k = len(values)
                p *= OTHER_UNCARED / (k * (k - 1)) if differ else (1 - OTHER_UNCARED) / k
        foci += p / len(preferences)
    return foci


def posterior(pairs: tuple[PairFacts, ...]) -> list[tuple[dict[str, str], float]]:
    """Exact posterior over preferences given pairs alone, noise included: [(preferences, probability)]."""
    logs = []
    for preferences, prior in HYPOTHESES:
        total = prior
        for pair in pairs:
            straight = _likelihood(preferences, pair.better, pair.worse)
            swapped = _likelihood(preferences, pair.worse, pair.better)
            total += math.log(max((1 - NOISE) * straight + NOISE * swapped, 1e-300))
        logs.append(total)
    top = max(logs)
    weights = [math.exp(x - top) for x in logs]
    norm = sum(weights)
    return [(h, w / norm) for (h, _), w in zip(HYPOTHESES, weights, strict=True)]


def ideal_summary(user: NanoUser, threshold: float = 0.5) -> set[Preference]:
    """What a perfect reader of the user's pairs would name: preferences more probable than `threshold`."""
    mass: dict[Preference, float] = {}
    for preferences, p in posterior(user.pairs):
        for item in preferences.items():
            mass[item] = mass.get(item, 0.0) + p
    return {preference for preference, p in mass.items() if p > threshold}
