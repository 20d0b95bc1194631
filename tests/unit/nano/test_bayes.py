"""The best predictions in the nano world, against numbers worked by hand and against what its users do."""

import math
from random import Random

import pytest

from popi.nano import bayes, truth, world
from popi.nano.attributes import ATTRIBUTES
from popi.nano.grammar import realise
from popi.nano.world import NOISE, OTHER_CARED, OTHER_UNCARED, TARGET_UNCARED, make_user, make_users
from popi.signals.types import DemographicSignal, InteractionSignal, PostSignal, StatementSignal, TargetPair

FORMAL_LIST = {"tone": "formal", "layout": "list"}
BASE = {
    name: values[0] for name, values in ATTRIBUTES.items()
}  # formal, simple, list, short, playful, example, question


def text(**changed: str) -> str:
    return realise({**BASE, **changed}, "tea", Random(0), "test").text


def test_values_are_read_off_a_response() -> None:
    assert bayes.values_of(text(mood="serious")) == {**BASE, "mood": "serious"}
    with pytest.raises(ValueError, match="not a response of the nano grammar: 'hello'"):
        bayes.values_of("hello")


def test_prior_is_that_of_the_users() -> None:
    prior = bayes.prior("test")
    assert sum(p for _, p in prior) == pytest.approx(1)
    assert all(world.split_of(h) == "test" for h, _ in prior) and len(prior) > 90

    # Two or three attributes with even chances, of 21 and 35 sets of them; then each value by its own odds.
    def drawn(preferences: dict[str, str]) -> float:
        odds = {2: (0.6, 0.4), 3: (0.4, 0.3, 0.3)}
        values = [odds[len(ATTRIBUTES[a])][ATTRIBUTES[a].index(v)] for a, v in preferences.items()]
        return math.prod(values) / {2: 21, 3: 35}[len(preferences)]

    ratios = [p / drawn(h) for h, p in prior]
    assert {len(h) for h, _ in prior} == {2, 3} and max(ratios) == pytest.approx(min(ratios))


def test_likelihood_of_a_pair_worked_by_hand() -> None:
    better, worse = {**BASE}, {**BASE, "tone": "casual", "mood": "serious"}
    # In units of one who cares about nothing: tone differs, of 2 values: 0.6·2/0.25; layout does not: 0.4/0.75.
    fit = OTHER_CARED * 2 / OTHER_UNCARED * (1 - OTHER_CARED) / (1 - OTHER_UNCARED)
    found = bayes.focus_likelihoods(FORMAL_LIST, better, worse, OTHER_UNCARED)
    assert found == {"tone": pytest.approx(fit / OTHER_CARED), "layout": 0.0}  # about tone, so surely different there
    assert set(bayes.focus_likelihoods(FORMAL_LIST, worse, better, OTHER_UNCARED).values()) == {0.0}
    assert bayes.target_likelihood(FORMAL_LIST, better, worse) == pytest.approx(
        2 / TARGET_UNCARED * (1 - OTHER_CARED) / (1 - TARGET_UNCARED) / 2
    )


def test_likelihoods_are_those_of_truth_up_to_a_factor() -> None:
    user = make_users(1, 3, "test")[0]
    pair = user.pairs[0]
    ratios = []
    for preferences, _ in bayes.prior("test"):
        found = bayes.focus_likelihoods(preferences, pair.better, pair.worse, OTHER_UNCARED)
        theirs = truth._likelihood(preferences, pair.better, pair.worse)
        assert bool(sum(found.values())) == bool(theirs)
        ratios += [sum(found.values()) / len(found) / theirs] if theirs else []
    assert len(ratios) > 1 and max(ratios) == pytest.approx(min(ratios))


def test_pairs_are_about_the_cared_attributes_in_turn() -> None:
    tone, layout = ((BASE, {**BASE, a: v}) for a, v in (("tone", "casual"), ("layout", "prose")))
    w = 1 - NOISE
    about = {
        a: bayes.focus_likelihoods(FORMAL_LIST, *pair, OTHER_UNCARED)[a]
        for a, pair in (("tone", tone), ("layout", layout))
    }
    # Two pairs, one about each: of the two arrangements only one gives both pairs what differs in them.
    assert bayes.pairs_likelihood([tone, layout], FORMAL_LIST) == pytest.approx(
        w * w * about["tone"] * about["layout"] / 2
    )
    assert bayes.pairs_likelihood([tone, tone], FORMAL_LIST) == 0.0
    # One pair: about either, with even chances.
    assert bayes.pairs_likelihood([tone], FORMAL_LIST) == pytest.approx(w * about["tone"] / 2)
    assert bayes.pairs_likelihood([], FORMAL_LIST) == 1.0


def test_likelihoods_of_other_signals_worked_by_hand() -> None:
    def likelihood(signal: object) -> float:
        return bayes.signal_likelihood(signal, FORMAL_LIST)  # type: ignore[arg-type]

    assert likelihood(StatementSignal(text="i like a formal tone.")) == 0.5  # one of the two things cared about
    assert likelihood(StatementSignal(text="i like jokes.")) == 0.0
    assert likelihood(StatementSignal(text="my boss likes jokes.")) == 1.0  # of somebody else: the same for everyone
    assert likelihood(PostSignal(text="enough of chatty style already.")) == 0.5
    assert likelihood(PostSignal(text="enough of polite wording already.")) == 0.0
    assert likelihood(PostSignal(text="today it rains.")) == 1.0
    assert likelihood(DemographicSignal(text="works as lawyer.")) == pytest.approx(0.6 + 0.4 / 10)
    assert likelihood(DemographicSignal(text="works as nurse.")) == pytest.approx(0.4 / 10)
    rated = {"prompt": "tea?", "response": text(tone="casual")}  # one of two met: 3
    assert [likelihood(InteractionSignal(**rated, rating=r)) for r in (3, 4)] == [1.0, 0.0]
    edited = {"prompt": "tea?", "response": text(tone="casual")}
    assert likelihood(InteractionSignal(**edited, edit=text())) == pytest.approx(
        2 / 2
    )  # wrong in tone: k/(k−1), halved
    assert likelihood(InteractionSignal(**edited, edit=text(level="technical"))) == 0.0


def test_a_choice_worked_by_hand() -> None:
    target = TargetPair(prompt="tea?", chosen=text(), rejected=text(tone="casual", mood="serious"))
    casual = {"tone": "casual", "layout": "list"}
    belief = [(FORMAL_LIST, 0.8), (casual, 0.2)]
    assert bayes.choice_probability(belief, target) == pytest.approx(0.8)
    # Of three who care about mood too, the pair is likelier by 0.6·2/0.5 and may be about either: ·(1 + 1)/3 · 2/1.
    more = FORMAL_LIST | {"mood": "playful"}
    weight = 0.6 * 2 / 0.5 * 2 / 3 / (1 / 2)
    belief = [(more, 0.5), (casual, 0.5)]
    assert bayes.choice_probability(belief, target) == pytest.approx(weight / (weight + 1))
    with pytest.raises(ValueError, match="under any preferences of the belief"):
        bayes.choice_probability([({"length": "long", "layout": "list"}, 1.0)], target)


@pytest.mark.parametrize("pairs", [1, 2])
def test_predictions_come_true(pairs: int) -> None:
    """Their loss is their entropy: the mark of the exact posterior. Few pairs, so that something is left to guess."""
    rng = Random(pairs)
    losses, entropies, plain = [], [], []
    for _ in range(500):
        user = make_user("x", rng, "test", targets=1, pairs=pairs)
        belief = bayes.given_signals(user.user.signals, "test")
        assert dict(belief_of(belief))[tuple(sorted(user.preferences.items()))] > 0
        p = bayes.choice_probability(belief, user.user.targets[0])
        losses.append(-math.log(p))
        entropies.append(-sum(q * math.log(q) for q in (p, 1 - p) if q > 0))
        plain.append(-math.log(bayes.choice_probability(bayes.prior("test"), user.user.targets[0])))
    n = len(losses)
    gaps = [a - b for a, b in zip(losses, entropies, strict=True)]
    mean = sum(gaps) / n
    error = math.sqrt(sum((g - mean) ** 2 for g in gaps) / (n - 1) / n)
    assert abs(mean) < 4 * error
    assert sum(losses) / n < 0.15 < 0.6 < sum(plain) / n < math.log(2)


def belief_of(belief: bayes.Belief) -> list:
    return [(tuple(sorted(h.items())), p) for h, p in belief]


def test_channel_worked_by_hand() -> None:
    says = frozenset({("tone", "formal")})
    channel = bayes.Channel.fit([(says, {"tone": "formal"}), (frozenset(), {"tone": "formal"}), (frozenset(), {})])
    # Of two who prefer formal one said so: (1 + ½)/(2 + 4·½). Who did not care about the tone: (0 + ½)/(1 + 4·½).
    tone = {True: 1.5 / 4, False: 0.5 / 3}
    others = {
        k: channel.likelihood(frozenset(), h) / (1.5 / 4 if k else 1.5 / 3)
        for k, h in ((1, {"tone": "formal"}), (0, {}))
    }
    assert others[1] == pytest.approx(others[0])  # what was said of the other attributes
    assert channel.likelihood(says, {"tone": "formal"}) == pytest.approx(tone[True] * others[1])
    assert channel.likelihood(says, {}) == pytest.approx(tone[False] * others[0])


def test_a_writer_of_the_truth_leaves_little_unsaid_and_one_of_nothing_all() -> None:
    users = make_users(150, 5, "test")
    for writes, low, high in ((True, 0.0, 0.12), (False, 0.6, 0.75)):
        said = {u.user.user_id: frozenset(u.preferences.items()) if writes else frozenset() for u in users}
        channel = bayes.Channel.fit((said[u.user.user_id], u.preferences) for u in users[:100])
        losses = [
            -math.log(bayes.choice_probability(channel.belief(said[u.user.user_id], "test"), target))
            for u in users[100:]
            for target in u.user.targets
        ]
        assert low <= sum(losses) / len(losses) < high


def test_what_no_nano_user_says_is_refused() -> None:
    signals = [StatementSignal(text="i like jokes."), StatementSignal(text="i like gravity.")]
    assert bayes.given_signals(signals[:1], "test")
    with pytest.raises(ValueError, match="not a user of the nano world"):
        bayes.given_signals(signals, "test")  # playful and serious
