"""Users whose signals say nothing of what they prefer: who should be told that no preference is known.

The world's own users, with the same preferences, task prompts and targets, and other signals: the two responses of a
pair differ only in attributes that the user does not care about, and which of them is chosen is a coin's toss; an edit
changes such attributes at random, a rating is a die's roll; what is said is about other people or about nothing.
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
    """Attribute values of a chosen and a rejected response, by a coin's toss. They differ in at least one attribute,
    and in none that is cared about.
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
    """The same user with signals that say nothing of the user's preferences; ids, times and prompts stay."""
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
                seed = rng.random()  # the same words, but for what the user changes
                better, worse = (realise(values, topic, Random(seed), split).text for values in (chosen, rejected))
                new = InteractionSignal(prompt=signal.prompt, response=worse, edit=better)
                facts.append(PairFacts(chosen, rejected, topic))
            else:
                response = realise(chosen, topic, rng, split).text
                new = InteractionSignal(prompt=signal.prompt, response=response, rating=rng.randint(1, RATINGS))
        else:
            new = _said(rng, split)
        signals.append(new.model_copy(update={"id": signal.id, "time": signal.time}))
    return replace(user, user=user.user.model_copy(update={"signals": signals}), pairs=tuple(facts))


def make_users_without_evidence(n: int, seed: int, split: Split, targets: int = 4) -> list[NanoUser]:
    """`n` users of a split without evidence, the same ones for the same seed; none of `make_users`' own."""
    rng = Random(f"popi-nano-no-evidence-{split}-{seed}")
    drawn = make_users(n, rng.randrange(2**32), split, targets)
    return [
        without_evidence(replace(one, user=one.user.model_copy(update={"user_id": f"no-evidence-{i:05d}"})), rng, split)
        for i, one in enumerate(drawn)
    ]


def some_without_evidence(users: list[NanoUser], share: float, seed: int, split: Split) -> list[NanoUser]:
    """The users, a share of them, drawn from the seed, without evidence; of 0 the same list."""
    rng = Random(f"popi-nano-share-{split}-{seed}")
    chosen = set(rng.sample(range(len(users)), round(share * len(users))))
    return [without_evidence(user, rng, split) if i in chosen else user for i, user in enumerate(users)]


def _said(rng: Random, split: Split) -> Signal:
    """Something about other people, or about nothing."""
    phrase = rng.choice(PHRASES[rng.choice(sorted(PHRASES))])
    about_others = rng.choice(forms(OTHERS, split)).format(phrase, who=rng.choice(PEOPLE))
    nothing = rng.choice(forms(NOTHING, split))
    return rng.choice((StatementSignal(text=about_others), StatementSignal(text=nothing), PostSignal(text=nothing)))
