"""What the gateway exports, `popi train` reads: the loop closes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popi.data.check import load_users
from popi.data.jsonl import read_users, write_users
from popi.nano.world import make_users
from popi.profiles.training import as_signals, training_user
from popi.signals.types import InteractionSignal, PairSignal, Signal, StatementSignal, TargetPair


def pair(n: int, **changed: str) -> PairSignal:
    words = ("amber", "birch", "cedar", "dahlia", "elder", "fern", "gorse", "hazel")[n]
    fields = {"prompt": f"what is {words}?", "chosen": f"{words} is short", "rejected": f"well {words} goes on and on"}
    return PairSignal(id=f"p{n}", **(fields | changed))  # type: ignore[arg-type]


def test_the_newest_pairs_are_held_out() -> None:
    signals: list[Signal] = [pair(n) for n in range(6)]
    user = training_user("u", [*signals, StatementSignal(text="hi")])
    assert [target.prompt for target in user.targets] == [f"what is {w}?" for w in ("dahlia", "elder", "fern")]
    assert user.signals == [*signals[:3], StatementSignal(text="hi")]
    assert len(training_user("u", [pair(n) for n in range(8)], targets=1).targets) == 1
    assert training_user("u", signals, targets=0).targets == []


def test_what_shows_a_target_is_no_signal() -> None:
    shown = InteractionSignal(prompt="what is birch?", response="birch is short")
    swapped = pair(1, chosen="well birch goes on and on", rejected="birch is short")
    user = training_user("u", [shown, swapped.model_copy(update={"id": "x"}), pair(0), pair(1)], targets=1)
    assert [target.prompt for target in user.targets] == ["what is birch?"]
    assert user.signals == [pair(0)]


def test_of_equal_signals_one_stays_and_pairs_of_equal_responses_go() -> None:
    doubled = [pair(0), pair(0).model_copy(update={"id": "again", "time": 3.0}), pair(2, rejected="CEDAR is short")]
    assert training_user("u", [*doubled, pair(1)], targets=0).signals == [pair(0), pair(1)]


@pytest.mark.parametrize("signals", [[], [pair(0)], [StatementSignal(text="hi")]])
def test_too_little_for_a_target(signals: list[Signal]) -> None:
    assert training_user("u", signals).targets == []
    assert training_user("u", signals).signals == signals


def test_the_training_loader_takes_the_file(tmp_path: Path) -> None:
    people = [training_user(one.user.user_id, one.user.signals) for one in make_users(20, 0, "train")]
    assert all(user.targets for user in people)
    write_users(tmp_path / "users.jsonl", people)
    assert load_users(tmp_path / "users.jsonl") == people


TEXT = st.sampled_from(["tea", "Tea", "long words about tea and cake and more", "no", "cake"])
PAIRS = st.builds(PairSignal, prompt=TEXT, chosen=TEXT, rejected=TEXT)
OTHERS = st.builds(StatementSignal, text=TEXT) | st.builds(InteractionSignal, prompt=TEXT, response=TEXT)


@settings(max_examples=60, deadline=None)
@given(signals=st.lists(PAIRS | OTHERS, min_size=1, max_size=12))
def test_whatever_was_gathered_the_line_has_no_problem(signals: list[Signal], tmp_path_factory: object) -> None:
    named = [one.model_copy(update={"id": str(n)}) for n, one in enumerate(signals)]
    user = training_user("u", named)
    folder = tmp_path_factory.mktemp("lines")  # type: ignore[attr-defined]
    write_users(folder / "users.jsonl", [user])
    if user.targets:
        assert load_users(folder / "users.jsonl") == [user]
    else:
        assert read_users(folder / "users.jsonl") == [user]


def test_targets_come_back_as_pairs_once() -> None:
    target = TargetPair(prompt="what is amber?", chosen="amber is short", rejected="well amber goes on and on")
    assert len(as_signals([], [target], [])) == 1
    assert as_signals([], [target], [pair(0)]) == []
    assert as_signals([pair(0)], [target], []) == [pair(0)]
