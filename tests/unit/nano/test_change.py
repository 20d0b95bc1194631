"""Users who change half-way: what their signals show before and after, and what stays of the users they are made of."""

from random import Random

import pytest

from popi.config import resolve
from popi.data.users import users_of
from popi.errors import ConfigError
from popi.nano.bayes import values_of
from popi.nano.change import before_change, make_changing_users, middle, some_changing
from popi.nano.grammar import topic_of, topics
from popi.nano.world import NanoUser, make_users, split_of
from popi.signals.types import InteractionSignal, PairSignal

USERS = make_changing_users(200, 0, "test")
PLAIN = make_users(200, 0, "test")


def shown(user: NanoUser, part: slice, preferences: dict[str, str]) -> tuple[int, int]:
    """Of a user's pairs and edits that differ in an attribute of `preferences`: in how many the preferred value won."""
    won = n = 0
    for signal in user.user.signals[part]:
        if isinstance(signal, PairSignal):
            better, worse = values_of(signal.chosen), values_of(signal.rejected)
        elif isinstance(signal, InteractionSignal) and signal.edit:
            better, worse = values_of(signal.edit), values_of(signal.response)
        else:
            continue
        for attribute, value in preferences.items():
            if better[attribute] != worse[attribute]:
                n, won = n + 1, won + (better[attribute] == value)
    return won, n


def test_signals_before_the_middle_show_the_old_preferences_and_those_after_it_the_new() -> None:
    won = {"old": [0, 0], "new": [0, 0], "crossed": [0, 0]}
    for user in USERS:
        assert user.before is not None
        half = middle(len(user.user.signals))
        changed = {a for a, v in user.preferences.items() if user.before[a] != v}
        old = {a: user.before[a] for a in changed}
        new = {a: user.preferences[a] for a in changed}
        for name, part, held in (
            ("old", slice(0, half), old),
            ("new", slice(half, None), new),
            ("crossed", slice(0, half), new),
        ):
            hits, n = shown(user, part, held)
            won[name][0] += hits
            won[name][1] += n
    share = {name: hits / n for name, (hits, n) in won.items()}
    assert share["old"] > 0.85 and share["new"] > 0.85  # NOISE = 8 % are against it
    assert share["crossed"] < 0.2


def test_what_changes() -> None:
    for user, plain in zip(USERS, PLAIN, strict=True):
        assert user.before is not None and user.before.keys() == user.preferences.keys()
        changed = [a for a in user.preferences if user.before[a] != user.preferences[a]]
        assert 1 <= len(changed) < len(user.preferences)
        half = middle(len(user.user.signals))
        assert (user.preferences, user.user.targets) == (plain.preferences, plain.user.targets)
        assert user.user.signals[half:] == plain.user.signals[half:]
        assert user.user.signals[:half] != plain.user.signals[:half]
        for new, old in zip(user.user.signals, plain.user.signals, strict=True):
            assert (new.id, new.time) == (old.id, old.time)
            assert (new.type == old.type) or {new.type, old.type} <= {"statement", "post", "demographic"}
    assert make_changing_users(3, 0, "test") == USERS[:3] != make_changing_users(3, 1, "test")


def test_training_users_never_had_a_combination_of_the_test_users() -> None:
    for user in make_changing_users(200, 0, "train"):
        assert user.before is not None and user.before != user.preferences
        assert split_of(user.before) == "train"


def test_before_a_change_by_hand() -> None:
    """Two attributes of two values: exactly one of them was the other value."""
    found = {tuple(before_change({"tone": "formal", "mood": "serious"}, Random(i), "test").items()) for i in range(50)}
    assert found == {
        (("mood", "playful"), ("tone", "formal")),
        (("mood", "serious"), ("tone", "casual")),
    }


def test_a_share_of_the_training_users() -> None:
    plain = make_users(20, 0, "train")
    assert some_changing(plain, 0.0, 0, "train") == plain
    some = some_changing(plain, 0.25, 0, "train")
    assert sum(user.before is not None for user in some) == 5
    assert all(one.before is not None or one == other for one, other in zip(some, plain, strict=True))
    config = resolve({"data": {"train_users": 20, "change_share": 0.25}})
    assert users_of(config, "train").users == [one.user for one in some]
    assert users_of(config, "test").users == users_of(resolve({}), "test").users
    with pytest.raises(ConfigError, match="change_share = 0.5 only applies to source nano"):
        resolve({"data": {"source": "users.jsonl", "change_share": 0.5}})


def test_more_signals_than_topics() -> None:
    """Signals share topics with each other, never with a target."""
    for user in make_users(30, 0, "test", targets=4, pairs=13):
        assert len(user.user.signals) == 16
        prompts = [str(s.prompt) for s in user.user.signals if isinstance(s, PairSignal | InteractionSignal)]
        about = {topic_of(prompt, "test") for prompt in prompts}
        goals = {topic_of(str(target.prompt), "test") for target in user.user.targets}
        assert len(goals) == 4 and not about & goals and len(about) == len(topics("test")) - 4
