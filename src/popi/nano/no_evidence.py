"""Users whose signals reveal nothing about their preferences: their summaries should say that no preference is known.

These are the world's own users with the same preferences, task prompts and targets, but other signals. The two
responses of a pair differ only in attributes that the user does not care about, and the choice is random; an edit
changes such attributes at random; ratings are random; remarks are about other people or about nothing.
"""

from dataclasses import replace
from random import Random

from popi.nano.attributes import ATTRIBUTES, PHRASES
from popi.nano.grammar import forms, random_values, realise, topic_of
from popi.nano.world import NOTHING, OTHER_UNCARED, OTHERS, PEOPLE, NanoUser, PairFacts, Split, make_users
from popi.signals.types import InteractionSignal, PairSignal, PostSignal, Signal, StatementSignal

RATINGS = 5
"""Ratings are from 1 to this."""


def uninformative_values(preferences: dict[str, str], rng: Random) -> tuple[dict[str, str], dict[str, str]]:
    """Attribute values of a chosen and a rejected response, in random order. They differ in at least one attribute, and
    only in ones that the user does not care about.
    """
    one = random_values(rng)
    other = dict(one)
    uncared = [name for name in ATTRIBUTES if name not in preferences]
    focus = rng.choice(uncared)
    for name in uncared:
        if name == focus or rng.random() < OTHER_UNCARED:
            other[name] = rng.choice([value for value in ATTRIBUTES[name] if value != one[name]])
    return (one, other) if rng.random() < 0.5 else (other, one)


def without_evidence(user: NanoUser, rng: Random, split: Split) -> NanoUser:
    """The same user with signals that reveal no preferences; ids, times and prompts stay."""
    signals: list[Signal] = []
    facts: list[PairFacts] = []
    for signal in user.user.signals:
        new: Signal
        if isinstance(signal, PairSignal | InteractionSignal):
            topic = topic_of(str(signal.prompt), split)
            chosen, rejected = uninformative_values(user.preferences, rng)
            if isinstance(signal, PairSignal):
                better, worse = (realise(values, topic, rng, split).text for values in (chosen, rejected))
                new = PairSignal(prompt=signal.prompt, chosen=better, rejected=worse)
                facts.append(PairFacts(chosen, rejected, topic))
            elif signal.edit:
                seed = rng.random()  # the same words except for the user's changes
                better, worse = (realise(values, topic, Random(seed), split).text for values in (chosen, rejected))
                new = InteractionSignal(prompt=signal.prompt, response=worse, edit=better)
                facts.append(PairFacts(chosen, rejected, topic))
            else:
                response = realise(chosen, topic, rng, split).text
                new = InteractionSignal(prompt=signal.prompt, response=response, rating=rng.randint(1, RATINGS))
        else:
            new = _remark(rng, split)
        signals.append(new.model_copy(update={"id": signal.id, "time": signal.time}))
    return replace(user, user=user.user.model_copy(update={"signals": signals}), pairs=tuple(facts))


def make_users_without_evidence(n: int, seed: int, split: Split, targets: int = 4) -> list[NanoUser]:
    """`n` users of a split without evidence, determined by the seed and distinct from those of `make_users`."""
    rng = Random(f"popi-nano-no-evidence-{split}-{seed}")
    drawn = make_users(n, rng.randrange(2**32), split, targets)
    return [
        without_evidence(replace(one, user=one.user.model_copy(update={"user_id": f"no-evidence-{i:05d}"})), rng, split)
        for i, one in enumerate(drawn)
    ]


def some_without_evidence(users: list[NanoUser], share: float, seed: int, split: Split) -> list[NanoUser]:
    """The users with a share of them, chosen by the seed, without evidence; unchanged for a share of 0."""
    rng = Random(f"popi-nano-share-{split}-{seed}")
    chosen = set(rng.sample(range(len(users)), round(share * len(users))))
    return [without_evidence(user, rng, split) if i in chosen else user for i, user in enumerate(users)]


def _remark(rng: Random, split: Split) -> Signal:
    """A remark about other people, or about nothing."""
    phrase = rng.choice(PHRASES[rng.choice(sorted(PHRASES))])
    about_others = rng.choice(forms(OTHERS, split)).format(phrase, who=rng.choice(PEOPLE))
    nothing = rng.choice(forms(NOTHING, split))
    return rng.choice((StatementSignal(text=about_others), StatementSignal(text=nothing), PostSignal(text=nothing)))
