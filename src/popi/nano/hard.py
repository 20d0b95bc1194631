"""A harder nano world: more evidence, part of it wrong, so that a reader has to learn what to trust.

It has the language and the kinds of signals of `popi.nano.world`, on which the base was trained. The signals are less
reliable, so taking them at face value is not enough:

- more pairs are chosen against the user's preferences, and more of the differences within a pair don't matter to them;
- half of the users' statements about themselves do not name a preference by which they choose;
- a preference may be limited to one kind of topic (`grammar.KINDS`).

One attribute and one value are held out: no training user cares about them, and no training user's text suggests that
anyone might. Half of the test users care about one of them. The other half have combinations of preferences that no
training user has.
"""

from collections.abc import Iterable, Mapping
from random import Random

from popi.nano.attributes import ATTRIBUTES, PHRASES, Preference
from popi.nano.grammar import forms, realise, task_prompt, topic_of, topics
from popi.nano.truth import Named, shown_values, wanted_at
from popi.nano.world import (
    HAPPY,
    JOB_FITS,
    JOBS,
    NOTHING,
    OTHERS,
    PEOPLE,
    SELF,
    TARGET_UNCARED,
    TIRED,
    NanoUser,
    PairFacts,
    Split,
    active,
    any_preferences,
    draw_interaction,
    draw_preferences,
    draw_scopes,
    pair_values,
    scoped,
)
from popi.signals.types import (
    DemographicSignal,
    PairSignal,
    PostSignal,
    Signal,
    StatementSignal,
    TargetPair,
    User,
)

PAIRS = 8
"""Preference pairs among a user's signals."""
INTERACTIONS = 1
REMARKS = 3
"""Statements, posts and demographic facts among a user's signals."""
NOISE = 0.2
"""Share of signal pairs that are chosen against the user's preferences."""
OTHER_UNCARED = 0.5
"""Probability that a signal pair differs in an attribute that the user does not care about."""
SINCERE = 0.5
"""Share of users' statements and posts about themselves that name one of their preferences; the others name any
value."""
SCOPED = 0.4
"""Share of users with a preference that is limited to one kind of topic."""
HELD_OUT_ATTRIBUTE = "closing"
HELD_OUT_VALUE: Preference = ("support", "story")
HELD_OUT_SHARE = 0.5
"""Share of the test users who care about the held-out attribute or prefer the held-out value."""


def held_out(preferences: Mapping[str, str]) -> bool:
    """Whether these preferences include the held-out attribute or value."""
    attribute, value = HELD_OUT_VALUE
    return HELD_OUT_ATTRIBUTE in preferences or preferences.get(attribute) == value


def values_in(split: Split) -> dict[str, tuple[str, ...]]:
    """Attribute → the values that the texts of a split's users can have."""
    if split == "test":
        return ATTRIBUTES
    return {a: tuple(v for v in values if (a, v) != HELD_OUT_VALUE) for a, values in ATTRIBUTES.items()}


def differing(split: Split) -> tuple[str, ...]:
    """The attributes in which the responses of a split's pairs may differ."""
    return tuple(a for a in ATTRIBUTES if split == "test" or a != HELD_OUT_ATTRIBUTE)


def draw(rng: Random, split: Split) -> dict[str, str]:
    """Draw preferences (attribute → value) for a user of a split."""
    if split == "test" and rng.random() < HELD_OUT_SHARE:
        while not held_out(drawn := any_preferences(rng)):
            pass
        return drawn
    while held_out(drawn := draw_preferences(rng, split)):
        pass
    return drawn


def make_user(user_id: str, rng: Random, split: Split, targets: int) -> NanoUser:
    """Draw one user: preferences, signals and `targets` target pairs."""
    preferences = draw(rng, split)
    scopes = draw_scopes(preferences, SCOPED, rng)
    known, allowed, may_differ = topics(split), values_in(split), differing(split)
    subjects = [rng.choice(known) for _ in range(PAIRS + INTERACTIONS)]
    rest = [topic for topic in known if topic not in subjects] or list(known)
    signals: list[Signal] = []
    facts: list[PairFacts] = []
    for topic in subjects[:PAIRS]:
        holds = active(preferences, scopes, topic)
        values = pair_values(holds, rng.choice(sorted(holds)), rng, OTHER_UNCARED, allowed, may_differ)
        chosen, rejected = values if rng.random() >= NOISE else values[::-1]
        facts.append(PairFacts(chosen, rejected, topic))
        texts = [realise(one, topic, rng, split).text for one in (chosen, rejected)]
        signals.append(PairSignal(prompt=task_prompt(topic, rng, split), chosen=texts[0], rejected=texts[1]))
    for topic in subjects[PAIRS:]:
        signal, edit = draw_interaction(active(preferences, scopes, topic), topic, rng, split, allowed)
        facts += [edit] if edit else []
        signals.append(signal)
    signals += [_remark(preferences, scopes, rng, split) for _ in range(REMARKS)]
    rng.shuffle(signals)
    goals = []
    for _ in range(targets):
        topic = rng.choice(rest)
        holds = active(preferences, scopes, topic)
        values = pair_values(holds, rng.choice(sorted(holds)), rng, TARGET_UNCARED, allowed, may_differ)
        texts = [realise(one, topic, rng, split).text for one in values]
        goals.append(TargetPair(prompt=task_prompt(topic, rng, split), chosen=texts[0], rejected=texts[1]))
    dated = [signal.model_copy(update={"id": f"{user_id}-{i}", "time": float(i)}) for i, signal in enumerate(signals)]
    return NanoUser(User(user_id=user_id, signals=dated, targets=goals), preferences, tuple(facts), scopes)


def make_users(n: int, seed: int, split: Split, targets: int = 4) -> list[NanoUser]:
    """`n` users of a split, determined by the seed."""
    rng = Random(f"popi-nano-hard-{split}-{seed}")
    return [make_user(f"hard-{split}-{seed}-{i:05d}", rng, split, targets) for i in range(n)]


def decided_by_held_out(preferences: Iterable[Named], target: TargetPair) -> bool:
    """Whether, of a test user's preferences, a target's two responses differ only in held-out ones."""
    holds = wanted_at(preferences, topic_of(str(target.prompt), "test"))
    rejected = shown_values(target.rejected)
    missed = {a: v for a, v in holds.items() if (a, v) not in rejected}
    return bool(missed) and all(held_out({a: v}) for a, v in missed.items())


def sayable(split: Split) -> list[Preference]:
    """The preferences that a split's users may name, their own or other people's."""
    allowed = values_in(split)
    return [(a, v) for a, v in sorted(PHRASES) if a in differing(split) and v in allowed[a]]


def _remark(preferences: dict[str, str], scopes: Mapping[str, str], rng: Random, split: Split) -> Signal:
    """A statement, post or demographic fact, about the user (sincere or not), someone else, or nothing."""

    def carrier(options: tuple[str, ...]) -> str:
        return rng.choice(forms(options, split))

    anyone: Preference = rng.choice(sayable(split))
    sincere = rng.random() < SINCERE
    own: Preference = rng.choice(sorted(preferences.items())) if sincere else rng.choice(sayable(split))
    scope = scopes.get(own[0]) if sincere else None
    kind = rng.choices(("self", "others", "nothing", "post", "demographic"), (0.35, 0.15, 0.1, 0.3, 0.1))[0]
    if kind == "self":
        return StatementSignal(text=carrier(SELF).format(scoped(rng.choice(PHRASES[own]), scope)))
    if kind == "others":
        return StatementSignal(text=carrier(OTHERS).format(rng.choice(PHRASES[anyone]), who=rng.choice(PEOPLE)))
    if kind == "nothing":
        return StatementSignal(text=carrier(NOTHING))
    if kind == "post":
        if rng.random() < 0.5:
            return PostSignal(text=carrier(HAPPY).format(scoped(rng.choice(PHRASES[own]), scope)))
        hated = (own[0], rng.choice([v for v in values_in(split)[own[0]] if v != own[1]]))
        return PostSignal(text=carrier(TIRED).format(scoped(rng.choice(PHRASES[hated]), scope)))
    fitting = sorted(job for job, preference in JOBS.items() if preference in preferences.items())
    job = rng.choice(fitting if fitting and rng.random() < JOB_FITS else sorted(JOBS))
    return DemographicSignal(text=f"works as {job}.")
