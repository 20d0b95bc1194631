"""Users who change their minds halfway: the first half of their signals shows other preferences than the second.

These are the world's own users, with their targets and the second half of their signals, which follow their current
preferences. Some of these attributes, but not all, had another value before, and the first half of the signals is
redrawn accordingly: pairs stay pairs, and ids, times and topics stay. `NanoUser.before` holds the earlier preferences.
"""

from dataclasses import replace
from itertools import product
from random import Random

from popi.nano.attributes import ATTRIBUTES
from popi.nano.bayes import values_of
from popi.nano.grammar import realise, task_prompt, topic_of
from popi.nano.world import (
    NOISE,
    NanoUser,
    PairFacts,
    Split,
    cycle,
    draw_interaction,
    draw_remark,
    make_users,
    pair_values,
    split_of,
)
from popi.signals.types import InteractionSignal, PairSignal, Signal


def middle(signals: int) -> int:
    """Number of a user's signals from before the change."""
    return signals // 2


def before_change(preferences: dict[str, str], rng: Random, split: Split) -> dict[str, str]:
    """Earlier preferences for a user: the same attributes, some with another value, at least one unchanged.

    A training user gets a combination of the training split, so that the test users' combinations stay unseen. If there
    is none with an unchanged value, all values may change.
    """
    names = sorted(preferences)
    every = [dict(zip(names, values, strict=True)) for values in product(*(ATTRIBUTES[name] for name in names))]
    allowed = [one for one in every if one != preferences and (split == "test" or split_of(one) == "train")]
    partly = [one for one in allowed if any(one[name] == preferences[name] for name in names)]
    return rng.choice(partly or allowed or [preferences])


def changing(user: NanoUser, rng: Random, split: Split) -> NanoUser:
    """The same user with the first half of the signals from before a change."""
    before = before_change(user.preferences, rng, split)
    old = user.user.signals[: middle(len(user.user.signals))]
    foci = cycle(before, len(old), rng)
    made: list[Signal] = []
    for signal in old:
        new: Signal
        if isinstance(signal, PairSignal):
            topic = topic_of(str(signal.prompt), split)
            sides = pair_values(before, foci.pop(), rng)
            better, worse = (realise(values, topic, rng, split).text for values in sides)
            if rng.random() < NOISE:
                better, worse = worse, better
            new = PairSignal(prompt=task_prompt(topic, rng, split), chosen=better, rejected=worse)
        elif isinstance(signal, InteractionSignal):
            new = draw_interaction(before, topic_of(str(signal.prompt), split), rng, split)[0]
        else:
            new = draw_remark(before, rng, split)
        made.append(new.model_copy(update={"id": signal.id, "time": signal.time}))
    signals = [*made, *user.user.signals[len(old) :]]
    facts = tuple(fact for signal in signals if (fact := _facts(signal, split)) is not None)
    return replace(user, user=user.user.model_copy(update={"signals": signals}), pairs=facts, before=before)


def make_changing_users(n: int, seed: int, split: Split, targets: int = 4, pairs: int | None = None) -> list[NanoUser]:
    """`n` users of a split who change halfway: the users of `make_users` with the same arguments, changed."""
    made = make_users(n, seed, split, targets) if pairs is None else make_users(n, seed, split, targets, pairs)
    rng = Random(f"popi-nano-change-{split}-{seed}")
    return [changing(user, rng, split) for user in made]


def some_changing(users: list[NanoUser], share: float, seed: int, split: Split) -> list[NanoUser]:
    """The users with a share of them, chosen by the seed, changing halfway; unchanged for a share of 0."""
    rng = Random(f"popi-nano-change-share-{split}-{seed}")
    chosen = set(rng.sample(range(len(users)), round(share * len(users))))
    return [changing(user, rng, split) if i in chosen else user for i, user in enumerate(users)]


def _facts(signal: Signal, split: Split) -> PairFacts | None:
    if isinstance(signal, PairSignal):
        better, worse = signal.chosen, signal.rejected
    elif isinstance(signal, InteractionSignal) and signal.edit:
        better, worse = signal.edit, signal.response
    else:
        return None
    return PairFacts(dict(values_of(better)), dict(values_of(worse)), topic_of(str(signal.prompt), split))
