"""The harder world: its users' signals, what is held out, and that its exact reader is exact."""

import math
import re
from itertools import islice
from typing import Any

import pytest

from popi.config import resolve
from popi.data.users import users_of
from popi.errors import ConfigError
from popi.evaluation.users import labelled
from popi.nano import hard, hard_reader, readers, vote
from popi.nano.grammar import INDOOR, TEST_TOPICS, TOPICS, kind_of, topic_of
from popi.nano.truth import named_attributes, shown_values, wanted_at
from popi.nano.world import NanoUser, active, state
from popi.signals.types import PairSignal, TargetPair

USERS = {split: hard.make_users(300, 5, split) for split in ("train", "test")}


def truth(user: NanoUser) -> frozenset[tuple[str, ...]]:
    return frozenset((a, v, *((user.scopes[a],) if a in user.scopes else ())) for a, v in user.preferences.items())


def test_the_same_seed_makes_the_same_users() -> None:
    assert hard.make_users(3, 5, "test") == USERS["test"][:3]
    assert hard.make_users(3, 6, "test") != USERS["test"][:3]


def test_no_text_of_a_training_user_shows_what_is_held_out() -> None:
    attribute, value = hard.HELD_OUT_VALUE
    for user in USERS["train"]:
        assert not hard.held_out(user.preferences)
        for pair in [*user.user.targets, *(s for s in user.user.signals if isinstance(s, PairSignal))]:
            both = shown_values(pair.chosen) ^ shown_values(pair.rejected)
            assert hard.HELD_OUT_ATTRIBUTE not in {a for a, _ in both}
        texts = " ".join(signal.model_dump_json() for signal in user.user.signals)
        named = named_attributes(texts)
        assert not {one for one in named if one[0] == hard.HELD_OUT_ATTRIBUTE or one[:2] == (attribute, value)}
    assert not any(
        hard.HELD_OUT_VALUE in shown_values(text)
        for user in USERS["train"]
        for target in user.user.targets
        for text in (target.chosen, target.rejected)
    )


def test_half_of_the_test_users_care_about_what_is_held_out() -> None:
    share = sum(hard.held_out(user.preferences) for user in USERS["test"]) / len(USERS["test"])
    assert abs(share - hard.HELD_OUT_SHARE) < 3 * math.sqrt(0.25 / len(USERS["test"]))


@pytest.mark.parametrize("split", ["train", "test"])
def test_pairs_are_noisy_and_targets_are_not(split: str) -> None:
    against = pairs = 0
    for user in USERS[split]:
        for target in user.user.targets:
            holds = active(user.preferences, user.scopes, topic_of(target.prompt, split))  # type: ignore[arg-type]
            chosen, rejected = dict(shown_values(target.chosen)), dict(shown_values(target.rejected))
            differing = [a for a in holds if chosen[a] != rejected[a]]
            assert differing and all(chosen[a] == holds[a] for a in differing)
        for facts in user.pairs[: hard.PAIRS]:
            holds = active(user.preferences, user.scopes, facts.topic)
            against += any(facts.worse[a] == v != facts.better[a] for a, v in holds.items())
            pairs += 1
    assert abs(against / pairs - hard.NOISE) < 0.03


def test_no_target_is_about_a_topic_of_the_signals() -> None:
    for user in USERS["test"]:
        seen = {topic_of(str(s.prompt), "test") for s in user.user.signals if isinstance(s, PairSignal)}
        assert not seen & {topic_of(str(target.prompt), "test") for target in user.user.targets}


def test_every_topic_is_of_one_kind_and_both_kinds_are_common() -> None:
    assert set(TOPICS + TEST_TOPICS) >= INDOOR
    for topics in (TOPICS, TEST_TOPICS):
        assert sum(kind_of(topic) == "indoors" for topic in topics) == len(topics) / 2


def test_a_scope_is_written_and_parsed() -> None:
    text = state([("mood", "playful"), ("tone", "formal")], scopes={"tone": "indoors"})
    assert text == "prefers a playful mood and a formal tone indoors."
    assert named_attributes(text) == {("mood", "playful"), ("tone", "formal", "indoors")}
    assert wanted_at(named_attributes(text), "rice") == {"mood": "playful", "tone": "formal"}
    assert wanted_at(named_attributes(text), "rockets") == {"mood": "playful"}
    assert named_attributes("wants jokes, any tone outdoors and proper manners.") == {
        ("mood", "playful"),
        ("tone", "formal"),
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"source": "users.jsonl", "world": "hard"},
            "world = 'hard' only applies to source nano, not to 'users.jsonl'",
        ),
        ({"world": "hard", "change_share": 0.1}, 'change_share = 0.1 can\'t be combined with world = "hard"'),
    ],
)
def test_settings_that_dont_fit_the_harder_world(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve({"data": data})


def test_a_runs_users_come_from_its_world() -> None:
    config = resolve({"data": {"world": "hard", "train_users": 3, "test_users": 60}, "seed": 5})
    train, test = (users_of(config, split).people for split in ("train", "test"))  # type: ignore[arg-type]
    assert [one.user for one in train] == [one.user for one in USERS["train"][:3]]
    assert [one.preferences for one in test] == [truth(user) for user in USERS["test"][:60]]
    limited = next(one for one in test if any(len(named) == 3 for named in one.preferences or ()))
    assert named_attributes(limited.oracle or "") == limited.preferences
    assert ["tone", "formal indoors"] in labelled({("tone", "formal", "indoors"), ("mood", "playful")})


# The exact reader


def test_the_prior_matches_the_users_drawn() -> None:
    prior = hard_reader.prior()
    assert math.isclose(sum(prior.values()), 1.0)
    users = [truth(user) for user in hard.make_users(1000, 1, "test")]
    assert set(users) <= set(prior)
    for holds in (lambda c: len(c) == 2, lambda c: any(len(one) == 3 for one in c), lambda c: ("tone", "formal") in c):
        expected = sum(p for combination, p in prior.items() if holds(combination))
        drawn = sum(map(holds, users)) / len(users)
        assert abs(drawn - expected) < 3.5 * math.sqrt(expected * (1 - expected) / len(users))


def test_the_reader_is_right_as_often_as_it_predicts() -> None:
    """Given only three signals, so that it is often in doubt: a wrong likelihood would make it too sure or too shy."""
    predicted, right = [], []
    for user in hard.make_users(250, 2, "test"):
        belief = hard_reader.given_signals(user.user.signals[:3])
        for target in user.user.targets[:2]:
            p = hard_reader.choice_probability(belief, target)
            predicted.append(max(p, 1 - p))
            right.append(p > 0.5)
    for low, high in ((0.5, 0.8), (0.8, 0.95), (0.95, 1.01)):
        within = [(p, r) for p, r in zip(predicted, right, strict=True) if low <= p < high]
        mean = sum(p for p, _ in within) / len(within)
        share = sum(r for _, r in within) / len(within)
        assert len(within) > 30
        assert abs(share - mean) < 3 * math.sqrt(max(mean * (1 - mean), 0.01) / len(within))


def test_the_preferences_determine_the_choice() -> None:
    for user in islice(USERS["test"], 50):
        for target in user.user.targets:
            assert hard_reader.choice_probability({truth(user): 1.0}, target) == 1.0


def test_all_signals_reveal_nearly_everything() -> None:
    hits = named = wanted = 0
    for user in USERS["test"][:80]:
        summary = named_attributes(readers.exact_summary(user.user.signals, "hard"))
        hits, named, wanted = hits + len(summary & truth(user)), named + len(summary), wanted + len(truth(user))
    assert hits / named > 0.93
    assert hits / wanted > 0.88


def test_users_of_the_other_world_are_refused() -> None:
    edited = next(s for u in USERS["test"] for s in u.user.signals if getattr(s, "edit", None))
    with pytest.raises(ValueError, match="harder nano world"):
        hard_reader.given_signals([edited.model_copy(update={"edit": edited.response})])  # type: ignore[attr-defined]


def test_a_summary_of_an_unknown_writer_leaves_the_prior() -> None:
    unfitted = hard_reader.Channel.fit([])
    belief = unfitted.belief(frozenset())
    for combination, p in islice(hard_reader.prior().items(), 20):
        assert math.isclose(belief[combination], p)


def test_a_writer_that_tells_the_truth_is_believed() -> None:
    users = [truth(user) for user in hard.make_users(800, 3, "test")]
    channel = hard_reader.Channel.fit((one, one) for one in users)
    belief = channel.belief(users[0])
    assert belief[users[0]] > 0.5


# The vote


def test_the_lead_is_chosen_by_the_users_given() -> None:
    assert vote.best_lead(user.user for user in USERS["train"]) == 2  # a lead of 1 names too much, of 4 too little


def test_the_vote_is_below_the_exact_reader() -> None:
    """The world is hard: a reader that counts markers without weighing them is more than eight points behind."""
    lead = vote.best_lead(user.user for user in USERS["train"])
    voted = exact = pairs = 0.0
    for user in USERS["test"][:80]:
        named = vote.named(vote.votes(user.user.signals), lead)
        belief = hard_reader.given_signals(user.user.signals)
        for target in user.user.targets:
            voted += vote.choice(named, vote.differences(target))
            exact += hard_reader.choice_probability(belief, target) > 0.5
            pairs += 1
    assert exact / pairs - voted / pairs > 0.08


def test_pairs_that_only_the_held_out_attribute_decides() -> None:
    better = "dear sir, haha wink! rice - easy tip, like a lamp. any doubts?"
    worse = "dear sir, haha wink! rice - easy tip, like a lamp. so done."
    target = TargetPair(prompt="what is rice?", chosen=better, rejected=worse)
    both = [("closing", "question"), ("tone", "formal")]
    assert hard.decided_by_held_out(both, target)
    assert not hard.decided_by_held_out([("closing", "question", "outdoors"), ("tone", "formal")], target)
    assert not hard.decided_by_held_out(
        both, target.model_copy(update={"rejected": worse.replace("dear sir", "hey pal")})
    )
