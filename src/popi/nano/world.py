"""Synthetic users with known preferences, their signals of all five kinds, and their target pairs.

A user cares about two or three attributes. A pair differs in at least one of them (in the user's favour), and at
random in the others. Signals are noisy: a fixed share of pairs is chosen against preference, some statements are
about other people, some about nothing. Test users have combinations of preferences, topics and wordings that no
training user has. Targets are noise-free, have separate prompts, and share no text with the signals.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Literal

from popi.nano.attributes import ATTRIBUTES, PHRASES, PRIOR, Preference
from popi.nano.grammar import KINDS, Response, forms, kind_of, realise, task_prompt, topics
from popi.signals.types import (
    DemographicSignal,
    InteractionSignal,
    PairSignal,
    PostSignal,
    Signal,
    StatementSignal,
    TargetPair,
    User,
)

Split = Literal["train", "test"]

CARED = (2, 3)
"""Numbers of attributes that a user may care about, drawn uniformly."""
PAIRS = 6
"""Preference pairs among a user's signals."""
NOISE = 0.08
"""Share of signal pairs that are chosen against the user's preferences."""
OTHER_CARED = 0.6
"""Probability that a pair differs in a cared attribute other than the one it is about."""
OTHER_UNCARED = 0.25
"""Probability that a signal pair differs in an attribute that the user does not care about."""
TARGET_UNCARED = 0.5
"""The same for a target pair, where unfounded claims of a summary mislead the generator."""
EDITS = 0.5
"""Share of interactions in which the user edits the response; in the others they rate it."""
JOB_FITS = 0.6
"""Probability that a user names a job that goes with one of their preferences, if there is one."""
HELD_OUT_COMBINATIONS = 5
"""One in this many combinations of preferences is reserved for the test split."""

PEOPLE = ("boss", "brother", "sister", "neighbor", "teacher", "friend")
SELF = ("i like {}.", "please give me {}.", "i enjoy {}.", "i want {}.") + ("i do like {}.", "i want {} please.")
OTHERS = ("my {who} likes {}.", "my {who} wants {}.", "{} please my {who}.") + (
    "i want {} for my {who}.",
    "please give my {who} {}.",
)
NOTHING = ("i live near the sea.", "my cat sleeps all day.", "today it rains.", "i had soup for lunch.") + (
    "my cat sleeps near the sea.",
    "today it rains near the sea.",
)
HAPPY = ("so happy with {} today.", "finally {} again.", "more {} for me.") + (
    "so happy, {} again.",
    "finally more {}.",
)
TIRED = ("tired of {}.", "enough of {} already.", "no more {}.") + ("already tired of {}.", "enough, no more {}.")
VERBS = ("prefers", "likes", "wants")
JOBS: dict[str, Preference] = {
    "lawyer": ("tone", "formal"),
    "barista": ("tone", "casual"),
    "engineer": ("level", "technical"),
    "student": ("level", "simple"),
    "manager": ("length", "short"),
    "comedian": ("mood", "playful"),
    "judge": ("mood", "serious"),
    "analyst": ("support", "numbers"),
    "writer": ("support", "story"),
    "nurse": ("closing", "warning"),
}
"""Jobs, each with a preference that it correlates with."""


@dataclass(frozen=True)
class PairFacts:
    """Attribute values of the better and of the worse response in a signal pair or edit."""

    better: dict[str, str]
    worse: dict[str, str]
    topic: str = ""


@dataclass(frozen=True)
class NanoUser:
    """A user and their true preferences."""

    user: User
    preferences: dict[str, str]
    """Attribute -> preferred value, for the attributes they care about."""
    pairs: tuple[PairFacts, ...] = ()
    """The latent values of the signal pairs, for exact inference (truth.py)."""
    scopes: Mapping[str, str] = field(default_factory=dict)
    """Attribute -> the kind of topic that its preference is limited to; missing if it applies to all topics."""
    before: dict[str, str] | None = None
    """For users who changed halfway (change.py): their preferences during the first half of the signals."""


def split_of(preferences: dict[str, str]) -> Split:
    """The split that a combination of preferences belongs to."""
    key = ",".join(f"{a}={v}" for a, v in sorted(preferences.items()))
    return "test" if sha256(key.encode()).digest()[0] % HELD_OUT_COMBINATIONS == 0 else "train"


def draw_preferences(rng: Random, split: Split, how_many: tuple[int, ...] = CARED) -> dict[str, str]:
    """Draw preferences (attribute → value) that belong to `split`; their number is drawn uniformly from `how_many`."""
    while split_of(drawn := any_preferences(rng, how_many)) != split:
        pass
    return drawn


def any_preferences(rng: Random, how_many: tuple[int, ...] = CARED) -> dict[str, str]:
    """Draw preferences (attribute → value) from all combinations, of either split."""
    cared = rng.sample(sorted(ATTRIBUTES), rng.choice(how_many))
    return {a: rng.choices(ATTRIBUTES[a], PRIOR[len(ATTRIBUTES[a])])[0] for a in cared}


def pair_values(
    preferences: Mapping[str, str],
    focus: str,
    rng: Random,
    uncared: float = OTHER_UNCARED,
    allowed: Mapping[str, tuple[str, ...]] = ATTRIBUTES,
    differing: Iterable[str] = tuple(ATTRIBUTES),
) -> tuple[dict[str, str], dict[str, str]]:
    """Attribute values of a preferred and a dispreferred response that differ at least in `focus`.

    Args:
        preferences: attribute → preferred value.
        focus: the attribute in which they differ for certain.
        rng: source of randomness.
        uncared: probability that they differ in an attribute without a preference.
        allowed: attribute → the values that responses can have.
        differing: the attributes in which they may differ.
    """
    better = {name: rng.choice(values) for name, values in allowed.items()}
    worse = dict(better)
    for name in differing:
        cared = name in preferences
        if name == focus or rng.random() < (OTHER_CARED if cared else uncared):
            if cared:
                better[name] = preferences[name]
            worse[name] = rng.choice([value for value in allowed[name] if value != better[name]])
    return better, worse


def _subjects(split: Split, signals: int, targets: int, rng: Random) -> list[str]:
    """Topics of a user's pairs and interaction, then of the targets, to be taken from the end. If there are fewer
    topics than signals, signals share topics with each other, but never with a target.
    """
    known = topics(split)
    drawn = rng.sample(known, min(len(known), signals + targets))
    if signals <= len(known):
        return drawn
    of_targets = drawn[: min(targets, len(known) // 2)]
    shared = drawn[len(of_targets) :]
    return of_targets + [shared[i % len(shared)] for i in range(signals)]


def draw_scopes(preferences: Mapping[str, str], share: float, rng: Random) -> dict[str, str]:
    """With probability `share`, limit one preference to one kind of topic: attribute → kind. A user's only preference
    is never limited.
    """
    if not share or len(preferences) < 2 or rng.random() >= share:
        return {}
    return {rng.choice(sorted(preferences)): rng.choice(KINDS)}


def active(preferences: Mapping[str, str], scopes: Mapping[str, str], topic: str) -> dict[str, str]:
    """The preferences that apply to a topic."""
    return {a: v for a, v in preferences.items() if scopes.get(a, kind_of(topic)) == kind_of(topic)}


def cycle(preferences: dict[str, str], n: int, rng: Random) -> list[str]:
    """The attribute that each of n pairs is about: the cared attributes in turn, in random order."""
    names = sorted(preferences)
    rng.shuffle(names)
    return [names[i % len(names)] for i in range(n)]


def draw_interaction(
    preferences: Mapping[str, str],
    topic: str,
    rng: Random,
    split: Split,
    allowed: Mapping[str, tuple[str, ...]] = ATTRIBUTES,
) -> tuple[Signal, PairFacts | None]:
    """A response, with values that are `allowed`, that the user edits or rates; for an edit, also its attribute
    values."""
    prompt = task_prompt(topic, rng, split)
    values = {name: rng.choice(each) for name, each in allowed.items()}
    if rng.random() < EDITS:
        focus = rng.choice(sorted(preferences))
        values[focus] = rng.choice([v for v in allowed[focus] if v != preferences[focus]])
        seed = rng.random()  # the same words except for the user's changes
        response = realise(values, topic, Random(seed), split)
        edited = realise({**values, **preferences}, topic, Random(seed), split)
        facts = PairFacts(edited.values, response.values, topic)
        return InteractionSignal(prompt=prompt, response=response.text, edit=edited.text), facts
    response = realise(values, topic, rng, split)
    return InteractionSignal(prompt=prompt, response=response.text, rating=rating(values, preferences)), None


def rating(values: Mapping[str, str], preferences: Mapping[str, str]) -> int:
    """A rating from 1 to 5, by the share of a user's preferences that a response meets."""
    met = sum(values[a] == v for a, v in preferences.items()) / len(preferences)
    return round(1 + 4 * met)


def draw_remark(preferences: dict[str, str], rng: Random, split: Split, scopes: Mapping[str, str] = {}) -> Signal:
    """A statement, post or demographic fact, which may be about the user, someone else, or nothing."""

    def carrier(options: tuple[str, ...]) -> str:
        return rng.choice(forms(options, split))

    def phrase(preference: Preference) -> str:
        return rng.choice(PHRASES[preference])

    def mine(preference: Preference) -> str:
        return scoped(phrase(preference), scopes.get(preference[0]))

    own: Preference = rng.choice(sorted(preferences.items()))
    anyone: Preference = rng.choice(sorted(PHRASES))
    kind = rng.choices(("self", "others", "nothing", "post", "demographic"), (0.25, 0.2, 0.15, 0.25, 0.15))[0]
    if kind == "self":
        return StatementSignal(text=carrier(SELF).format(mine(own)))
    if kind == "others":
        return StatementSignal(text=carrier(OTHERS).format(phrase(anyone), who=rng.choice(PEOPLE)))
    if kind == "nothing":
        return StatementSignal(text=carrier(NOTHING))
    if kind == "post":
        context = carrier(HAPPY).format(phrase(anyone)) if rng.random() < 0.3 else None
        if rng.random() < 0.3:
            return PostSignal(text=carrier(NOTHING), context=context)
        if rng.random() < 0.5:
            return PostSignal(text=carrier(HAPPY).format(mine(own)), context=context)
        hated = (own[0], rng.choice([v for v in ATTRIBUTES[own[0]] if v != own[1]]))
        return PostSignal(text=carrier(TIRED).format(mine(hated)), context=context)
    fitting = sorted(job for job, preference in JOBS.items() if preference in preferences.items())
    job = rng.choice(fitting if fitting and rng.random() < JOB_FITS else sorted(JOBS))
    return DemographicSignal(text=f"works as {job}.")


def make_user(
    user_id: str,
    rng: Random,
    split: Split,
    targets: int,
    pairs: int = PAIRS,
    others: bool = True,
    how_many: tuple[int, ...] = CARED,
    scoped_share: float = 0.0,
) -> NanoUser:
    """Draw one user: preferences, `pairs` signal pairs, targets; with `others`, an interaction and two remarks.

    The number of attributes that the user cares about is drawn from `how_many`. With probability `scoped_share` one of
    the preferences is limited to one kind of topic.
    """
    preferences = draw_preferences(rng, split, how_many)
    scopes = draw_scopes(preferences, scoped_share, rng)
    signals: list[Signal] = []
    facts: list[PairFacts] = []
    subjects = _subjects(split, pairs + 1, targets, rng)

    def both(focus: str, topic: str, uncared: float) -> tuple[Response, Response]:
        holds = active(preferences, scopes, topic)
        if focus not in holds:
            focus = rng.choice(sorted(holds))
        better, worse = pair_values(holds, focus, rng, uncared)
        return realise(better, topic, rng, split), realise(worse, topic, rng, split)

    for focus in cycle(preferences, pairs, rng):
        topic = subjects.pop()
        chosen, rejected = both(focus, topic, OTHER_UNCARED)
        if rng.random() < NOISE:
            chosen, rejected = rejected, chosen
        facts.append(PairFacts(chosen.values, rejected.values, topic))
        signals.append(PairSignal(prompt=task_prompt(topic, rng, split), chosen=chosen.text, rejected=rejected.text))
    if others:
        topic = subjects.pop()
        interaction, edit = draw_interaction(active(preferences, scopes, topic), topic, rng, split)
        facts += [edit] if edit else []
        signals += [interaction, *(draw_remark(preferences, rng, split, scopes) for _ in range(2))]
    rng.shuffle(signals)
    goals = []
    for focus in cycle(preferences, targets, rng):
        topic = subjects.pop() if subjects else rng.choice(topics(split))
        chosen, rejected = both(focus, topic, TARGET_UNCARED)
        goals.append(TargetPair(prompt=task_prompt(topic, rng, split), chosen=chosen.text, rejected=rejected.text))
    dated = [signal.model_copy(update={"id": f"{user_id}-{i}", "time": float(i)}) for i, signal in enumerate(signals)]
    return NanoUser(
        User(user_id=user_id, signals=dated, targets=goals),
        preferences,
        tuple(facts),
        scopes,
    )


def make_users(n: int, seed: int, split: Split, targets: int = 4, pairs: int = PAIRS) -> list[NanoUser]:
    """`n` users of a split, determined by the seed."""
    rng = Random(f"popi-nano-{split}-{seed}")
    return [make_user(f"{split}-{seed}-{i:05d}", rng, split, targets, pairs) for i in range(n)]


def scoped(phrase: str, kind: str | None) -> str:
    """A preference's phrase, with the kind of topic that it is limited to, if any."""
    return f"{phrase} {kind}" if kind else phrase


def state(preferences: list[Preference], rng: Random | None = None, scopes: Mapping[str, str] = {}) -> str:
    """Preferences as a summary, in the first wording of each, or with `rng` in a random one."""
    phrases = [scoped(rng.choice(PHRASES[p]) if rng else PHRASES[p][0], scopes.get(p[0])) for p in preferences]
    verb = rng.choice(VERBS) if rng else VERBS[0]
    if not phrases:
        return "no clear preference."
    return f"{verb} {' and '.join([', '.join(phrases[:-1]), phrases[-1]] if phrases[:-1] else phrases)}."


def profile(preferences: Mapping[str, str], rng: Random | None = None, scopes: Mapping[str, str] = {}) -> str:
    """Preferences as a summary that goes through all attributes: "wants a formal tone, any level ...".

    In the first wording of each, or with `rng` in a random one.
    """

    def phrase(attribute: str) -> str:
        phrases = PHRASES[attribute, preferences[attribute]]
        return scoped(rng.choice(phrases) if rng else phrases[0], scopes.get(attribute))

    items = [phrase(a) if a in preferences else f"any {a}" for a in ATTRIBUTES]
    return f"{rng.choice(VERBS) if rng else VERBS[0]} {', '.join(items[:-1])} and {items[-1]}."


def oracle_summary(user: NanoUser) -> str:
    """The user's true preferences as a summary."""
    return state(sorted(user.preferences.items()), scopes=user.scopes)
