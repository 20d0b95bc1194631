"""The nano world: splits, noise, leaks, and what its truth can read."""

import re
from collections import Counter
from random import Random

import pytest

from popi.nano import attributes, grammar, truth, world
from popi.nano.attributes import ATTRIBUTES, KEYWORDS, PHRASES
from popi.nano.grammar import TEST_TOPICS, TOPICS, forms
from popi.nano.world import NanoUser, make_users, oracle_summary, profile, split_of
from popi.signals.types import InteractionSignal, PairSignal


@pytest.fixture(scope="module")
def train() -> list[NanoUser]:
    return make_users(300, seed=0, split="train")


@pytest.fixture(scope="module")
def test() -> list[NanoUser]:
    return make_users(300, seed=0, split="test")


def texts(users: list[NanoUser]) -> list[str]:
    found = []
    for user in users:
        for item in [*user.user.signals, *user.user.targets]:
            found += [v for k, v in item.model_dump(exclude={"type", "id", "time"}).items() if isinstance(v, str)]
    return found


def words(users: list[NanoUser]) -> set[str]:
    return {word for text in texts(users) for word in re.findall(r"[a-z]+", text)}


def test_seeded() -> None:
    assert make_users(5, 3, "train") == make_users(5, 3, "train") != make_users(5, 4, "train")


def test_users_care_about_two_or_three_of_at_least_six(train: list[NanoUser]) -> None:
    assert len(ATTRIBUTES) >= 6 and {len(v) for v in ATTRIBUTES.values()} == {2, 3}
    assert set(Counter(len(user.preferences) for user in train)) == {2, 3}


def test_splits_share_no_combination_and_no_topic(train: list[NanoUser], test: list[NanoUser]) -> None:
    combinations = [{frozenset(u.preferences.items()) for u in users} for users in (train, test)]
    assert not combinations[0] & combinations[1]
    assert all(split_of(u.preferences) == "test" for u in test)
    assert not set(TOPICS) & set(TEST_TOPICS)
    assert not words(train) & set(TEST_TOPICS) and words(test) & set(TEST_TOPICS)


def test_test_wordings_are_new_arrangements_of_known_words(train: list[NanoUser], test: list[NanoUser]) -> None:
    assert words(test) - words(make_users(2000, 1, "train")) <= set(TEST_TOPICS)
    for options in (world.SELF, world.OTHERS, world.HAPPY, world.TIRED, grammar.PROMPTS):
        held = set(options) - set(forms(options, "train"))
        assert len(held) == grammar.HELD_OUT and held <= set(forms(options, "test"))
    seen, fresh = " ".join(texts(make_users(1000, 1, "train"))), " ".join(texts(test))
    for value in grammar.MARKS:
        for wording in grammar.wordings(value, "test"):
            assert wording not in seen
        assert any(wording in fresh for wording in grammar.wordings(value, "test"))
        assert not any(wording in fresh for wording in grammar.wordings(value, "train"))
        assert all(wording in seen for wording in grammar.wordings(value, "train"))


def test_every_marking_word_belongs_to_one_value() -> None:
    marks = [word for _, firsts, seconds in grammar.MARKS.values() for word in (firsts + " " + seconds).split()]
    assert len(marks) == len(set(marks)) and not set(marks) & set(KEYWORDS)


def test_all_five_kinds_of_signal(train: list[NanoUser]) -> None:
    kinds = Counter(signal.type for user in train for signal in user.user.signals)
    assert set(kinds) == {"pair", "interaction", "post", "statement", "demographic"}
    assert all(len(user.user.signals) == world.PAIRS + 3 for user in train)


def test_stated_share_of_pairs_is_against_preference(train: list[NanoUser]) -> None:
    """A pair's better side differs from its worse in a cared attribute, in the user's favour unless it is noise."""
    against = total = 0
    for user in train:
        for pair in user.pairs[: world.PAIRS]:
            cared = [a for a in user.preferences if pair.better[a] != pair.worse[a]]
            assert cared
            wrong = [pair.worse[a] == user.preferences[a] for a in cared]
            assert all(wrong) or not any(wrong)
            against += wrong[0]
            total += 1
    assert abs(against / total - world.NOISE) < 3 * (world.NOISE * (1 - world.NOISE) / total) ** 0.5


def test_targets_never_stand_among_the_signals(train: list[NanoUser], test: list[NanoUser]) -> None:
    for user in [*train, *test]:
        shown: set[str] = set()
        for signal in user.user.signals:
            if isinstance(signal, PairSignal):
                shown |= {signal.chosen, signal.rejected}
            if isinstance(signal, InteractionSignal):
                shown |= {signal.response, signal.edit or signal.response}
        for target in user.user.targets:
            assert not shown & {target.chosen, target.rejected}


def test_an_edit_changes_what_the_user_cares_about_and_nothing_else(train: list[NanoUser]) -> None:
    edits = [user for user in train if len(user.pairs) > world.PAIRS]
    assert len(edits) > 100
    for user in edits:
        facts = user.pairs[-1]
        changed = {a for a in ATTRIBUTES if facts.better[a] != facts.worse[a]}
        assert changed and changed <= set(user.preferences)
        assert all(facts.better[a] == v for a, v in user.preferences.items())


def test_every_phrase_names_its_own_value_and_no_other() -> None:
    for preference, phrases in PHRASES.items():
        for phrase in phrases:
            assert truth.named_attributes(phrase) == {preference}, phrase
    assert len(set(KEYWORDS)) == len(KEYWORDS)


def test_oracle_names_exactly_the_preferences(test: list[NanoUser]) -> None:
    for user in test:
        assert truth.named_attributes(oracle_summary(user)) == set(user.preferences.items())
    assert truth.named_attributes("no clear preference.") == set()


def test_profile_goes_through_all_attributes_in_order() -> None:
    rng = Random(0)
    said = {profile({"mood": "playful", "tone": "formal"}, rng) for _ in range(200)}
    pattern = "(prefers|likes|wants) (.+), any level, any layout, any length, (.+), any support and any closing\\."
    matches = [re.fullmatch(pattern, text) for text in said]
    assert {match[2] for match in matches if match} == set(PHRASES["tone", "formal"])
    assert {match[3] for match in matches if match} == set(PHRASES["mood", "playful"])
    assert all(matches)
    assert truth.named_attributes(profile({}, rng)) == set()


def test_posterior_by_hand() -> None:
    """One pair that differs in tone alone: every hypothesis that does not explain it by tone needs noise or nothing.

    With formal chosen, P(tone=formal | pair) against P(tone=casual | pair) is (1 − noise) : noise weighted by the
    prior 0.6 : 0.4, for the rest of the hypothesis is the same.
    """
    better = {a: v[0] for a, v in ATTRIBUTES.items()}
    pair = world.PairFacts(better, {**better, "tone": "casual"})
    mass = {"formal": 0.0, "casual": 0.0}
    for preferences, p in truth.posterior((pair,)):
        assert "tone" in preferences or p < 1e-12
        if "tone" in preferences:
            mass[preferences["tone"]] += p
    expected = (1 - world.NOISE) * 0.6 / ((1 - world.NOISE) * 0.6 + world.NOISE * 0.4)
    assert mass["formal"] == pytest.approx(expected, abs=1e-9)


def test_the_world_can_be_read_but_not_trivially(test: list[NanoUser]) -> None:
    """A perfect reader of the pairs finds nearly all preferences; half the pairs are not enough."""

    def f1(users: list[NanoUser], use: int) -> float:
        hit = named = true = 0
        for user in users:
            found = truth.ideal_summary(NanoUser(user.user, user.preferences, user.pairs[:use]))
            hit += len(found & set(user.preferences.items()))
            named += len(found)
            true += len(user.preferences)
        return 2 * hit / (named + true)

    assert f1(test[:60], world.PAIRS + 1) > 0.93
    assert f1(test[:60], 2) < 0.75


def test_attribute_names_and_values_are_words_of_their_own() -> None:
    assert len({v for values in attributes.ATTRIBUTES.values() for v in values}) == sum(map(len, ATTRIBUTES.values()))


@pytest.mark.parametrize("split", ["train", "test"])
def test_values_are_read_off_every_wording_of_a_response(split: str) -> None:
    rng = Random(0)
    for _ in range(2000):
        response = grammar.realise(grammar.random_values(rng), rng.choice(grammar.topics(split)), rng, split)
        assert truth.shown_values(response.text) == set(response.values.items()), response.text


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_response_of_the_grammar_is_valid_and_one_that_slipped_is_not(split: str) -> None:
    rng = Random(5)
    for _ in range(300):
        topic = rng.choice(grammar.topics(split))
        text = grammar.realise(grammar.random_values(rng), topic, rng, split).text
        assert truth.valid(text) and truth.valid(text, topic) and truth.topics_in(text) == {topic}, text
        assert not truth.valid(text, "none"), text
        words = text.split()
        slips = [text + " " + words[-1], " ".join(words[1:]), " ".join(words[:-1]), text.replace(topic, "none")]
        slips += [text.replace(topic, f"{topic} {topic}"), text.replace(",", "", 1), ""]
        assert not any(map(truth.valid, slips)), [slip for slip in slips if truth.valid(slip)]


def test_valid_by_hand() -> None:
    """One value of each attribute, the points of one level behind bullets of one kind, one or three of them."""
    text = "dear reader, rice with easy step and small bit and clear tip, about two percent. truly grave. any doubts?"
    assert truth.valid(text, "rice")
    assert truth.valid("dear reader, truly grave. rice - easy step, like a lamp. any doubts?", "rice")
    for right, wrong in (
        (" and clear tip", ""),  # two points
        ("clear tip", "robust protocol"),  # of two levels
        ("and clear", "then clear"),  # of two layouts
        ("about two percent", "about a lamp"),  # half of one support and half of another
        ("dear reader, ", "dear reader, hey pal, "),  # two tones
        ("truly grave. ", ""),  # no mood
    ):
        assert not truth.valid(text.replace(right, wrong)), wrong


def test_no_topic_is_a_marking_word() -> None:
    words = {word for _, firsts, seconds in grammar.MARKS.values() for word in f"{firsts} {seconds}".split()}
    assert not words & truth.ALL_TOPICS


def test_only_whole_marks_are_read() -> None:
    text = "dear pal, rice with easy step and optimal bit, three percent."
    assert truth.shown_values(text) == {("level", "simple"), ("layout", "prose"), ("length", "short")}
    assert truth.shown_values("likes a formal tone and short answers.") == set()


def test_a_wanted_value_counts_where_no_other_of_its_attribute_stands() -> None:
    wanted = {"tone": "formal", "level": "simple", "closing": "recap"}
    assert truth.wanted_shown("dear sir, rice with easy step, like a lamp. any doubts?", wanted) == 2
    assert truth.wanted_shown("dear sir, hey pal, rice with easy step, like a lamp. so done.", wanted) == 2
    assert truth.wanted_shown("", wanted) == 0
