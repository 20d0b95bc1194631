"""Users whose signals say nothing: what differs in their pairs, and what stays of the users that they are made of."""

from random import Random

import pytest

from popi.config import resolve
from popi.data.users import users_of
from popi.errors import ConfigError
from popi.nano.attributes import ATTRIBUTES
from popi.nano.no_evidence import (
    make_users_without_evidence,
    some_without_evidence,
    uninformative_values,
    without_evidence,
)
from popi.nano.truth import named_attributes, shown_values
from popi.nano.world import OTHERS, make_users
from popi.signals.types import InteractionSignal, PairSignal, PostSignal, StatementSignal

USERS = make_users_without_evidence(200, 0, "test")


def test_seeded_and_none_of_the_worlds_own() -> None:
    assert USERS[:3] == make_users_without_evidence(200, 0, "test")[:3]
    assert USERS[:3] != make_users_without_evidence(3, 1, "test")
    own = {
        signal.chosen for user in make_users(200, 0, "test") for signal in user.user.signals if signal.type == "pair"
    }
    made = {signal.chosen for user in USERS for signal in user.user.signals if signal.type == "pair"}
    assert len(made & own) < 5


def test_responses_differ_in_nothing_that_is_cared_about() -> None:
    for user in USERS:
        for signal in user.user.signals:
            if isinstance(signal, PairSignal):
                better, worse = shown_values(signal.chosen), shown_values(signal.rejected)
            elif isinstance(signal, InteractionSignal) and signal.edit:
                better, worse = shown_values(signal.edit), shown_values(signal.response)
            else:
                continue
            differ = {attribute for attribute, _ in better ^ worse}
            assert differ and not differ & set(user.preferences)


def test_what_is_chosen_is_a_coins_toss() -> None:
    rng = Random(0)
    formal = [uninformative_values({"level": "simple", "length": "short"}, rng) for _ in range(4000)]
    tones = [better["tone"] for better, worse in formal if better["tone"] != worse["tone"]]
    assert 0.45 < tones.count("formal") / len(tones) < 0.55 and len(tones) > 1000
    for better, worse in formal:
        assert better["level"] == worse["level"] and better["length"] == worse["length"] and better != worse
        assert set(better) == set(ATTRIBUTES)


def test_nothing_is_said_of_oneself() -> None:
    ratings = {s.rating for user in USERS for s in user.user.signals if isinstance(s, InteractionSignal) if s.rating}
    assert ratings == {1, 2, 3, 4, 5}
    said = [s for user in USERS for s in user.user.signals if isinstance(s, StatementSignal | PostSignal)]
    assert len(said) == 400 and {signal.type for user in USERS for signal in user.user.signals} == {
        "pair",
        "interaction",
        "statement",
        "post",
    }
    of_others = {carrier.split()[0] for carrier in OTHERS} | {"my"}
    for signal in said:
        assert not named_attributes(signal.text) or set(signal.text.split()) & of_others


def test_all_else_is_the_same_user() -> None:
    for user in make_users(20, 3, "train"):
        made = without_evidence(user, Random(1), "train")
        assert (made.preferences, made.user.targets, made.user.user_id) == (
            user.preferences,
            user.user.targets,
            user.user.user_id,
        )
        for old, new in zip(user.user.signals, made.user.signals, strict=True):
            assert (old.id, old.time, getattr(old, "prompt", 0)) == (new.id, new.time, getattr(new, "prompt", 0))


def test_a_share_of_the_training_users() -> None:
    users = make_users(40, 0, "train")
    assert some_without_evidence(users, 0.0, 0, "train") == users
    mixed = some_without_evidence(users, 0.25, 0, "train")
    assert sum(one != other for one, other in zip(users, mixed, strict=True)) == 10
    config = resolve({"data": {"train_users": 40, "test_users": 3, "no_evidence_share": 0.25}})
    assert users_of(config, "train").users == [user.user for user in mixed]
    assert users_of(config, "test").users == [user.user for user in make_users(3, 0, "test")]
    with pytest.raises(ConfigError, match="no_evidence_share = 0.1 only applies to source nano, not to 'users.jsonl'"):
        resolve({"data": {"source": "users.jsonl", "no_evidence_share": 0.1}})
