"""metrics.json's entries from rows, with numbers worked by hand; and the best predictions on real nano users."""

import math
from typing import Any

import pytest
from scipy.special import expit

from popi.config import RunConfig, resolve
from popi.evaluation.best_predictions import BestPredictions
from popi.evaluation.figures import difference, measure, on_held_out
from popi.evaluation.methods import METHODS
from popi.evaluation.users import held_out
from popi.nano.hard import decided_by_held_out

ESTIMATE = {"value", "low", "high"}


def row(user: int, target: int, margin: float | None, tokens: float = 20, **more: Any) -> dict[str, Any]:
    return {
        "user_id": f"test-0-{user:05d}",
        "window": user,
        "target": target,
        "summary": None,
        "margin": margin,
        "overhead_tokens": tokens,
        "chosen_logp": None if margin is None else -30.0 + margin / 4,
        "reference_chosen_logp": -30.0,
        "reference_rejected_logp": -31.0,
        **more,
    }


def of_file(**tree: Any) -> RunConfig:
    return resolve({"data": {"source": "users.jsonl"}, **tree})


PLAIN = [row(u, t, 0.0, 0) for u in range(3) for t in range(2)]
POPI = [row(u, t, 10.0 if (u, t) != (2, 1) else -10.0) for u in range(3) for t in range(2)]


def test_entries_worked_by_hand() -> None:
    config = of_file(evaluation={"token_price": 0.5}, training={"inference": {"beta": 0.2}})
    examples = [{"user_id": "a", "prompts": [{"answers": {"popi_alternating": "four"}}, {"answers": {}}]}]
    found = measure({"no_personalization": PLAIN, "popi_alternating": POPI}, config, [], examples)
    assert set(found) == {"methods"}, "no truth is known of users of a file"
    entry = found["methods"]["popi_alternating"]
    assert entry["calibration"]["beta"] == 0.2
    right = expit(2.0)
    assert entry["calibration"]["log_loss"]["value"] == pytest.approx(-(5 * math.log(right) + math.log(1 - right)) / 6)
    assert entry["calibration"]["expected_calibration_error"]["value"] == pytest.approx(abs(5 / 6 - right))
    assert [b["pairs"] for b in entry["calibration"]["reliability"]] == [0] * 7 + [6, 0, 0]
    assert entry["differences"] == {"no_personalization": difference(POPI, PLAIN)}
    assert entry["differences"]["no_personalization"]["reward_accuracy"]["value"] == pytest.approx(5 / 6 - 0.5)
    assert entry["differences"]["no_personalization"]["margin"]["value"] == pytest.approx(40 / 6)
    # a quarter of each margin is the chosen response's: 2.5 nats five times, -2.5 once; the plain prompt moves nothing
    assert entry["chosen_drift"]["value"] == pytest.approx(10 / 6)
    assert entry["differences"]["no_personalization"]["chosen_drift"] == pytest.approx(entry["chosen_drift"])
    assert found["methods"]["no_personalization"]["chosen_drift"]["value"] == 0
    assert found["methods"]["no_personalization"]["differences"] == {}
    assert entry["prompt_cost"]["value"] == pytest.approx(20 * 0.5e-6)
    assert entry["response_length"]["value"] == 4
    assert "response_length" not in found["methods"]["no_personalization"]
    terms = entry["loss_terms"]
    assert set(terms) == {"beta", "fitted"} and set(terms["fitted"]) == {"loss", "generator_error", "left_unsaid"}
    assert all(set(estimate) == ESTIMATE for estimate in terms["fitted"].values())
    parts = [terms["fitted"][key]["value"] for key in ("loss", "generator_error", "left_unsaid")]
    assert parts[0] == pytest.approx(parts[1] + parts[2]) and parts[0] == entry["calibration"]["log_loss"]["value"]


def test_no_price_no_cost() -> None:
    found = measure({"popi_alternating": POPI}, of_file(), [])
    assert "prompt_cost" not in found["methods"]["popi_alternating"]


def test_missing_rows_are_in_no_figure_and_pairs_are_those_of_both() -> None:
    lost = [*POPI[:-1], row(2, 1, None, missing="the server gave none") | {"overhead_tokens": None}]
    found = measure({"no_personalization": PLAIN, "popi_alternating": lost}, of_file(), [])
    entry = found["methods"]["popi_alternating"]
    assert entry["reward_accuracy"]["value"] == 1.0
    assert entry["differences"]["no_personalization"]["pairs"] == 5
    assert difference(POPI, PLAIN[2:])["pairs"] == 4 and difference(POPI, [])["reward_accuracy"]["value"] is None


def test_one_beta_for_all_methods() -> None:
    """It is the summary reward's, whatever the losses' are, or another; and the margins' order decides."""
    trained = {"inference": {"beta": 0.15}, "generator": {"loss": "ipo", "beta": 0.04}}
    rows = {name: POPI for name in METHODS}
    for evaluation, beta in (({"per_user_lora": {"beta": 0.3}}, 0.15), ({"beta": 0.5}, 0.5)):
        found = measure(rows, of_file(training=trained, evaluation=evaluation), [])["methods"]
        assert {entry[part]["beta"] for entry in found.values() for part in ("calibration", "loss_terms")} == {beta}
    worse = [row(u, t, 8.0) for u in range(3) for t in range(2)]
    better = [row(u, t, 12.0) for u in range(3) for t in range(2)]
    both = measure({"popi_plug_and_play": worse, "popi_alternating": better}, of_file(training=trained), [])["methods"]
    losses = [
        both[name]["loss_terms"]["fitted"]["loss"]["value"] for name in ("popi_plug_and_play", "popi_alternating")
    ]
    # at .15 and .04, each its own, the larger margin would have the larger loss: log(1 + e^-1.2) and log(1 + e^-0.48)
    assert losses == pytest.approx([math.log1p(math.exp(-1.2)), math.log1p(math.exp(-1.8))])


def test_what_each_method_tells_its_generator() -> None:
    told: dict[str, set[str]] = {}
    for name, method in METHODS.items():
        told.setdefault(method.tells, set()).add(name)
    assert told == {
        "nothing": {"no_personalization", "population_dpo", "user_embedding"},
        "signals": {"raw_signals", "copy", "copy_dpo", "fspo", "per_user_lora", "user_embedding_from_signals"},
        "summary": {
            *("untrained_summary", "untrained_summary_copy_dpo", "tally", "marker_vote", "exact_reader"),
            *("popi_plug_and_play", "popi_alternating", "popi_simultaneous"),
        },
        "preferences": {"oracle"},
    }


def test_terms_of_nano_users_by_the_worlds_own_probabilities() -> None:
    """A summary of the truth leaves little unsaid, one of nothing all but what everybody likes."""
    config = resolve({"data": {"test_users": 60, "targets_per_user": 3}})
    people, _ = held_out(config)
    keys = [(w, t) for w in range(60) for t in range(3)]
    rows_of = {
        "no_personalization": [row(w, t, 0.0, 0) for w, t in keys],
        "raw_signals": [row(w, t, 20.0) for w, t in keys],
        "untrained_summary": [row(w, t, 10.0, summary="no clear preference.") for w, t in keys],
        "oracle": [row(w, t, 20.0, summary=people[w].oracle) for w, t in keys],
        "popi_alternating": [row(w, t, 20.0, summary=people[w].oracle) for w, t in keys],
    }
    found = measure(rows_of, config, people)
    terms = {name: entry["loss_terms"]["world"] for name, entry in found["methods"].items()}
    unsaid = {name: entry["left_unsaid"]["value"] for name, entry in terms.items()}
    assert unsaid["oracle"] == 0.0
    assert terms["oracle"]["generator_error"]["value"] == pytest.approx(-math.log(expit(2.0)))
    assert unsaid["raw_signals"] == found["loss_of_the_best"]["signals"]["value"] < 0.01
    assert unsaid["no_personalization"] == found["loss_of_the_best"]["nothing"]["value"]
    assert 0.6 < unsaid["no_personalization"] < math.log(2)
    assert unsaid["untrained_summary"] == pytest.approx(unsaid["no_personalization"], abs=0.05)
    assert 0 < unsaid["popi_alternating"] < 0.2
    for entry in terms.values():
        assert entry["loss"]["value"] == pytest.approx(
            entry["generator_error"]["value"] + entry["left_unsaid"]["value"]
        )


def test_held_out_preferences_of_the_harder_world_have_their_own_accuracy() -> None:
    config = resolve({"data": {"world": "hard", "test_users": 60, "targets_per_user": 4}})
    people, _ = held_out(config)
    rows = [row(w, t, 0.0, 0) for w in range(60) for t in range(4)]

    def decided(one: dict[str, Any]) -> bool:
        person = people[one["window"]]
        return decided_by_held_out(person.preferences or (), person.user.targets[one["target"]])

    right = [{**one, "margin": 10.0 if decided(one) else -10.0} for one in rows]
    methods = measure({"no_personalization": rows, "raw_signals": right}, config, people)["methods"]
    pairs = sum(map(decided, rows))
    assert 5 <= pairs < 60
    assert methods["raw_signals"]["reward_accuracy"]["value"] == pytest.approx(pairs / 240)
    assert methods["raw_signals"]["held_out"]["pairs"] == pairs
    assert methods["raw_signals"]["held_out"]["reward_accuracy"]["value"] == 1.0
    assert methods["no_personalization"]["held_out"]["reward_accuracy"]["value"] == 0.5
    assert on_held_out([], people)["reward_accuracy"]["value"] is None


def test_a_summary_is_read_by_what_other_users_were_told() -> None:
    """Summaries that name the opposite of the truth say as much: the reader learns the writer's ways."""
    config = resolve({"data": {"test_users": 60, "targets_per_user": 2}})
    people, _ = held_out(config)
    best = BestPredictions(people)
    keys = [(w, t) for w in range(60) for t in range(2)]

    def loss(write: Any) -> float:
        rows = [row(w, t, 0.0, summary=write(w)) for w, t in keys]
        return -sum(map(math.log, best.given("popi_alternating", rows))) / len(rows)

    def says(w: int, turned: bool) -> str:
        words = {"formal": "polite", "casual": "chatty", "simple": "beginner", "technical": "expert"}
        turn = {"formal": "casual", "casual": "formal", "simple": "technical", "technical": "simple"}
        values = [v for _, v in sorted(people[w].preferences or ()) if v in words]
        return " ".join(words[turn[v] if turned else v] for v in values) or "nothing."

    straight, turned = loss(lambda w: says(w, False)), loss(lambda w: says(w, True))
    assert turned == pytest.approx(straight, abs=0.03) and straight < loss(lambda w: "nothing.") - 0.1
