"""Readers of the nano world beside the trained one: a vote, the base's own answers restated, the exact posterior."""

import pytest

from popi.nano import vote
from popi.nano.answers import READ_AS
from popi.nano.readers import exact_summary
from popi.nano.truth import named_attributes
from popi.nano.world import make_users
from popi.signals.types import PairSignal, TargetPair, User


def pair(chosen: str, rejected: str) -> PairSignal:
    return PairSignal(prompt="what is rice?", chosen=chosen, rejected=rejected)


def test_votes_are_counted_and_led() -> None:
    formal = "dear sir, haha wink! rice - easy tip, like a lamp. any doubts?"
    casual = "hey pal, haha wink! rice - easy tip, like a lamp. any doubts?"
    signals = [pair(formal, casual), pair(formal, casual), pair(casual, formal)]
    assert vote.votes(signals)[("tone", "formal")] == 1
    assert vote.votes(signals)[("tone", "casual")] == -1
    assert vote.named(vote.votes(signals), 1) == [("tone", "formal")]
    assert vote.named(vote.votes(signals), 2) == []
    assert vote.summary(signals, 1) == "prefers a formal tone."
    target = vote.differences(
        TargetPair(prompt="what is jam?", chosen=formal.replace("rice", "jam"), rejected=casual.replace("rice", "jam"))
    )
    assert target == {("tone", "formal"): 1, ("tone", "casual"): -1}
    assert vote.choice([("tone", "formal")], target) == 1.0
    assert vote.choice([("tone", "casual")], target) == 0.0
    assert vote.choice([("mood", "serious")], target) == 0.5


def test_the_lead_is_chosen_by_the_users_given() -> None:
    train: list[User] = [user.user for user in make_users(200, 5, "train")]
    assert vote.best_lead(train) == 2  # a lead of 1 names too much, of 4 too little


@pytest.mark.parametrize(
    ("read_as", "answer", "summary"),
    [
        ("tally", "tone formal level nothing support example.", "prefers examples and a formal tone."),
        ("tally", "tone formal indoors level nothing support example.", "prefers examples and a formal tone indoors."),
        ("tally", "tone level", "no clear preference."),
        ("tally", "nonsense", "no clear preference."),
        ("values", "tone casual level simple.", "prefers simple words and a casual tone."),
        ("lead of 2", "tone formal 4 1 level simple 2 2 mood same 0 0.", "prefers a formal tone."),
        ("lead of 3", "tone formal 4 2 level simple 3 0.", "prefers simple words."),
        ("lead of 1", "tone formal x 1.", "no clear preference."),
    ],
)
def test_answers_are_restated(read_as: str, answer: str, summary: str) -> None:
    assert READ_AS[read_as](answer) == summary


def test_the_exact_reader_says_nearly_all() -> None:
    hits = named = wanted = 0
    for user in make_users(60, 5, "test"):
        said, true = named_attributes(exact_summary(user.user.signals, "easy")), set(user.preferences.items())
        hits, named, wanted = hits + len(said & true), named + len(said), wanted + len(true)
    assert hits / named > 0.95
    assert hits / wanted > 0.95
