"""The check of a summary on the user's own pairs: the ratio by hand, what is left out, what is replaced."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from popi.signals.render import Templates
from popi.signals.types import InteractionSignal, PairSignal, Signal, StatementSignal
from popi.studies.evidence.own_evidence import checked_summaries, leave_out, log_ratio
from popi.summary import Summary


def pair(name: str) -> PairSignal:
    return PairSignal(prompt=name, chosen=f"{name}+", rejected=f"{name}-", id=name)


def test_log_ratio_by_hand() -> None:
    # σ(β·h) is 3/4 and 1/4: log(3/4 · 1/4 · 4) = log(3/4)
    h = math.log(3) / 0.1
    assert log_ratio([h, -h], 0.1) == pytest.approx(math.log(0.75))
    assert log_ratio([h, h], 0.1) == pytest.approx(2 * math.log(1.5))
    assert log_ratio([], 0.1) == log_ratio([0.0, 0.0], 0.1) == 0
    assert log_ratio([1e6], 0.1) == pytest.approx(math.log(2)) and log_ratio([-1e4], 0.1) == pytest.approx(
        -999.307, 1e-6
    )


def test_each_pair_is_left_out_with_all_of_its_content() -> None:
    edit = InteractionSignal(prompt="e", response="old", edit="new")
    again = pair("a").model_copy(update={"id": "other", "time": 3.0})
    said, rated = StatementSignal(text="x"), InteractionSignal(prompt="r", response="y", rating=2)
    signals: list[Signal] = [pair("a"), said, edit, again, rated]
    cases = leave_out(signals)
    assert [(case.pair.chosen, case.pair.rejected) for case in cases] == [("a+", "a-"), ("new", "old"), ("a+", "a-")]
    assert [case.signals for case in cases] == [
        (said, edit, rated),
        (pair("a"), said, again, rated),
        (said, edit, rated),
    ]
    assert leave_out([pair("a"), said]) == leave_out([said]) == []
    assert [case.pair.chosen for case in leave_out([pair(n) for n in "abcdef"], limit=2)] == ["e+", "f+"]


class Models:
    """An inference model that says which signals it read, and a generator of known margins."""

    templates = Templates.load("nano")
    local = SimpleNamespace(count_tokens=lambda text: len(text.split()))

    def __init__(self, margins: dict[str, float]) -> None:
        self.margins = margins

    def summarize_many(self, users: Any) -> list[Summary]:
        return [Summary("+".join(str(signal.id) for signal in signals), 1) for signals in users]

    def pair_logps(self, targets: Any, summaries: Any) -> tuple[list[float], list[float]]:
        for target, summary in zip(targets, summaries, strict=True):
            assert summary is None or str(target.prompt) not in summary.text  # never sees what it is scored on
        told = [0.0 if z is None else self.margins[str(t.prompt)] for t, z in zip(targets, summaries, strict=True)]
        return [h - 5.0 for h in told], [-5.0 for _ in told]


def test_nothing_is_asked_about_a_summary_of_which_nothing_was_left() -> None:
    models = Models({})  # asked, it would fail
    refused = Summary("", 0, 2, (), "m", removed_content=("instruction",))
    users = [[pair("a"), pair("b")]]
    assert checked_summaries(models, models, users, [refused], 0.1) == [refused]  # type: ignore[arg-type]


@pytest.mark.parametrize(("of_b", "kept"), [(-9.0, True), (-11.0, False)])
def test_a_summary_that_does_not_hold_is_replaced(of_b: float, kept: bool) -> None:
    models = Models({"a": 10.0, "b": of_b, "c": 0.0})
    written = Summary("likes it", 2, 3, ("#9",), "m")
    users = [[pair("a"), pair("b")], [pair("c")], []]
    # log ratio: with -9 log σ(1) + log σ(-0.9) + 2 log 2, about -0.08: below 0
    threshold = log_ratio([10.0, -10.0], 0.1)
    nothing = Summary("no clear preference.", 3, 0, (), "m", abstained=True)
    told: list[int] = []
    found = checked_summaries(
        models,  # type: ignore[arg-type]
        models,  # type: ignore[arg-type]
        users,
        [written, written, nothing],
        0.1,
        threshold,
        told.append,
    )
    assert found[1:] == [written, nothing] and told == [1, 1, 1]  # too few pairs, and nothing to check
    if kept:
        assert found[0] == written
    else:
        assert found[0] == Summary("no clear preference.", 3, 3, ("#9",), "m", abstained=True)
