"""Ground truth of the nano world: the preferences that a summary names and a response shows, and how well they can be
inferred."""

import math
import re
from collections.abc import Iterable, Mapping
from itertools import combinations, product

from popi.nano.attributes import ATTRIBUTES, KEYWORDS, PRIOR, Preference
from popi.nano.grammar import BULLETS, KINDS, MARKS, POINTS, TEST_TOPICS, TOPICS, kind_of
from popi.nano.world import NOISE, OTHER_CARED, OTHER_UNCARED, PEOPLE, NanoUser, PairFacts
from popi.signals.types import InteractionSignal, PairSignal, PostSignal, Signal

Named = tuple[str, ...]
"""(attribute, value), or (attribute, value, kind of topic) for a preference limited to that kind of topic."""


def named_attributes(text: str) -> set[Named]:
    """The preferences that a summary names, by words that belong to exactly one value.

    A kind of topic limits the last value named before it within the same clause: "a formal tone indoors, jokes".
    """
    scopes: dict[Preference, str | None] = {}
    last: Preference | None = None
    for word in re.findall(r"[a-z]+|,", text.lower()):
        if word in KEYWORDS:
            last = KEYWORDS[word]
            scopes.setdefault(last, None)
        elif word in KINDS and last:
            scopes[last] = word
        if word in (",", "and", *KINDS):
            last = None
    return {preference if kind is None else (*preference, kind) for preference, kind in scopes.items()}


def wanted_at(named: Iterable[Named], topic: str | None) -> dict[str, str]:
    """Attribute → value of the preferences that apply to a topic; without a topic, of those that apply to all."""
    kind = None if topic is None else kind_of(topic)
    return {one[0]: one[1] for one in named if len(one) == 2 or one[2] == kind}


def _any(words: list[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, words))})"


def _marks(value: str) -> str:
    """A pattern for every marking of a value: one of its first and one of its second words, in its form."""
    form, firsts, seconds = MARKS[value]
    return re.escape(form).replace(r"\{\}", "{}").format(_any(firsts.split()), _any(seconds.split()))


_LEVEL = f"(?:{_marks('simple')}|{_marks('technical')})"
_SHOWN = {  # a value's marking in a response, as `grammar.realise` writes it
    (attribute, value): re.compile(rf"(?<!\w){_marks(value)}")
    for attribute in ("tone", "level", "mood", "support", "closing")
    for value in ATTRIBUTES[attribute]
} | {
    ("layout", value): re.compile(rf"(?<!\S){_any([first for first, _ in BULLETS[value]])} {_LEVEL}")
    for value in ATTRIBUTES["layout"]
}
_POINT = re.compile(rf"(?<!\w){_LEVEL}")


def shown_values(response: str) -> set[Preference]:
    """The (attribute, value) pairs that a response shows, parsed from its text.

    Exact for what the grammar writes, in every wording. In any other text a value counts if its complete marking
    occurs, and a length if the number of points matches. After a slip of the generator, an attribute may have two
    values or none.
    """
    shown = {preference for preference, pattern in _SHOWN.items() if pattern.search(response)}
    points = len(_POINT.findall(response))
    return shown | {("length", length) for length, n in POINTS.items() if n == points}


def wanted_shown(response: str, preferences: Mapping[str, str]) -> int:
    """Number of a user's preferences that a response meets: it shows the wanted value and no other of the attribute."""
    shown = shown_values(response)
    return sum({v for a, v in shown if a == attribute} == {value} for attribute, value in preferences.items())


ALL_TOPICS = frozenset(TOPICS + TEST_TOPICS)


def _written() -> str:
    """A pattern for every response that `grammar.realise` can write; captures the topic."""

    def either(attribute: str) -> str:
        return _any_of([_marks(value) for value in ATTRIBUTES[attribute]])

    points = [
        f"{re.escape(first)} {level}" + f"(?: {re.escape(later)} {level})" * (n - 1)
        for bullets in BULLETS.values()
        for first, later in bullets
        for level in map(_marks, ATTRIBUTES["level"])
        for n in POINTS.values()
    ]
    topic = _any(sorted(ALL_TOPICS))
    body = rf"(?P<topic>{topic}) {_any_of(points)}, {either('support')}\."
    mood, end = either("mood"), either("closing")
    after = body.replace("?P<topic>", "?P<topic_after>")
    return rf"{either('tone')} (?:{body} {mood}|{mood} {after}) {end}"


def _any_of(patterns: list[str]) -> str:
    return f"(?:{'|'.join(patterns)})"


_WRITTEN = re.compile(_written())


def topics_in(text: str) -> frozenset[str]:
    """The topics of the world that a task prompt or a response names."""
    return ALL_TOPICS.intersection(re.findall(r"[a-z]+", text.lower()))


def valid(response: str, topic: str | None = None) -> bool:
    """Whether the grammar could have written a response: exactly one value of every attribute, each in its place, and
    nothing else. With a `topic`, also whether the response is about it.
    """
    match = _WRITTEN.fullmatch(response)
    return match is not None and (topic is None or topic in (match["topic"], match["topic_after"]))


def _hypotheses() -> list[tuple[dict[str, str], float]]:
    hypotheses = []
    for size in (2, 3):
        subsets = list(combinations(sorted(ATTRIBUTES), size))
        for cared in subsets:
            for values in product(*(ATTRIBUTES[a] for a in cared)):
                p = math.prod(
                    PRIOR[len(ATTRIBUTES[a])][ATTRIBUTES[a].index(v)] for a, v in zip(cared, values, strict=True)
                )
                hypotheses.append((dict(zip(cared, values, strict=True)), math.log(0.5 * p / len(subsets))))
    return hypotheses


HYPOTHESES = _hypotheses()


def _likelihood(preferences: dict[str, str], better: dict[str, str], worse: dict[str, str]) -> float:
    """P(these two responses | preferences, chosen by preference), up to a factor equal for all preferences."""
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
    """Exact posterior over preferences given only pairs, including noise: [(preferences, probability)]."""
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
    """What a perfect reader of the user's pairs would name: preferences with probability above `threshold`."""
    mass: dict[Preference, float] = {}
    for preferences, p in posterior(user.pairs):
        for item in preferences.items():
            mass[item] = mass.get(item, 0.0) + p
    return {preference for preference, p in mass.items() if p > threshold}


def is_evidence(signal: Signal, wanted: Preference) -> bool:
    """Whether a nano user's signal is evidence for a preference; provenance is checked against this.

    A pair or an edit is evidence if the better text shows the value and the other does not. A remark is if it names the
    value as the user's own wish, and so is a post that is tired of another value of the attribute. Ratings and jobs are
    not: they concern no particular attribute, or are only correlated.
    """
    if isinstance(signal, PairSignal):
        return wanted in shown_values(signal.chosen) and wanted not in shown_values(signal.rejected)
    if isinstance(signal, InteractionSignal):
        edit = signal.edit
        return edit is not None and wanted in shown_values(edit) and wanted not in shown_values(signal.response)
    if any(f"my {who}" in signal.text for who in PEOPLE):
        return False
    named = {(attribute, value) for attribute, value, *_ in named_attributes(signal.text)}
    if isinstance(signal, PostSignal) and any(word in signal.text for word in ("tired", "enough", "no more")):
        return any(one[0] == wanted[0] and one != wanted for one in named)
    return wanted in named
