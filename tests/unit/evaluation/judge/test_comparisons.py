"""Both orders, what is kept, what a resume asks again, and the figures made of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from popi.data.users import Person
from popi.errors import RunError
from popi.evaluation.judge.comparisons import KEY, Comparison, ask_again, compare
from popi.evaluation.judge.question import Missing, OnVerdict, Question
from popi.evaluation.judge.responses import asked
from popi.evaluation.judge.result import figures
from popi.runs.rows import ResumableRows
from popi.signals.types import TargetPair, User


class Scripted:
    """Answers in the order in which it is asked; what is no word is raised."""

    label = "scripted"

    def __init__(self, *verdicts: Any) -> None:
        self.verdicts, self.asked = list(verdicts), []

    def settings(self) -> dict[str, Any]:
        return {"kind": "scripted"}

    def check(self, people: Sequence[Person]) -> None:
        pass

    def ask(self, questions: Sequence[Question], on_verdict: OnVerdict) -> None:
        for index, question in enumerate(questions):
            self.asked.append((question.person.user.user_id, question.first, question.second))
            verdict = self.verdicts.pop(0)
            if isinstance(verdict, BaseException):
                raise verdict
            on_verdict(index, verdict)


def person(name: str, *prompts: str) -> Person:
    targets = [TargetPair(prompt=prompt, chosen="c", rejected="r") for prompt in prompts]
    return Person(User(user_id=name, signals=[], targets=targets))


PEOPLE = [person("ann", "tea?"), person("bob", "jam?")]
OURS = {(0, 0): "ours a", (1, 0): "ours b"}
THEIRS = {(0, 0): "theirs a", (1, 0): "theirs b"}


def judged(path: Path, judge: Scripted, *, resume: bool = False, **changed: Any) -> list[Comparison]:
    kept = ResumableRows(path, {"judge": judge.settings(), "n": 1} | changed, KEY, resume=resume, again=ask_again)
    return compare(judge, PEOPLE, OURS, THEIRS, kept, lambda *_: None)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_pair_is_asked_in_both_orders_and_a_line_each_is_kept(tmp_path: Path) -> None:
    judge = Scripted("first", "second", "tie", "first")
    found = judged(tmp_path / "c.jsonl", judge)
    assert judge.asked == [
        ("ann", "ours a", "theirs a"),
        ("ann", "theirs a", "ours a"),
        ("bob", "ours b", "theirs b"),
        ("bob", "theirs b", "ours b"),
    ]
    assert [c.outcome for c in found] == [1.0, 0.25]
    assert [c.agrees for c in found] == [True, False]
    head, *rows = lines(tmp_path / "c.jsonl")
    assert head["settings"]["n"] == 1
    assert rows[1] == {
        "user_id": "ann",
        "window": 0,
        "target": 0,
        "order": "against first",
        "prompt": "tea?",
        "first": "theirs a",
        "second": "ours a",
        "verdict": "second",
        "missing": None,
        "reason": None,
    }


@pytest.mark.parametrize(
    ("verdicts", "outcome", "agrees"),
    [
        (("first", "second"), 1.0, True),
        (("second", "first"), 0.0, True),
        (("tie", "tie"), 0.5, True),
        (("first", "first"), 0.5, False),
        (("second", "second"), 0.5, False),
        (("tie", "second"), 0.75, False),
    ],
)
def test_outcomes(verdicts: Any, outcome: float, agrees: bool) -> None:
    comparison = Comparison((0, 0), "u", "p", "a", "b", verdicts)
    assert (comparison.outcome, comparison.agrees) == (outcome, agrees)


def test_a_killed_judging_repeats_nothing_that_was_answered(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with pytest.raises(KeyboardInterrupt):
        judged(path, Scripted("first", "second", "tie", KeyboardInterrupt()))
    path.write_text(path.read_text() + '{"user_id": "bob", "win')  # and in the middle of a line
    again = Scripted("tie")
    found = judged(path, again, resume=True)
    assert again.asked == [("bob", "theirs b", "ours b")]
    assert [c.outcome for c in found] == [1.0, 0.5]
    assert len(lines(path)) == 5
    before = path.read_bytes()
    judged(path, Scripted(), resume=True)
    assert path.read_bytes() == before


def test_failures_are_asked_again_and_unreadable_answers_are_not(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    judge = Scripted(Missing("failed", "503"), "second", Missing("unreadable", "hm"), "second")
    found = judged(path, judge)
    assert [c.outcome for c in found] == [None, None]
    result = figures(found)
    assert (result["judged"], result["win_rate"]["value"]) == (0, None)
    assert result["missing_verdicts"] == {"failed": 1, "unreadable": 1}
    assert result["reasons"] == {"503": 1, "hm": 1}
    again = Scripted("first")
    found = judged(path, again, resume=True)
    assert again.asked == [("ann", "ours a", "theirs a")]
    assert [c.outcome for c in found] == [1.0, None]
    assert figures(found)["missing_verdicts"] == {"unreadable": 1}


def test_identical_responses_tie_unasked_and_a_missing_one_is_no_loss(tmp_path: Path) -> None:
    judge = Scripted()
    kept = ResumableRows(tmp_path / "c.jsonl", {}, KEY, resume=False)
    ours, theirs = {(0, 0): "same", (1, 0): "x"}, {(0, 0): "same", (1, 0): None}
    found = compare(judge, PEOPLE, ours, theirs, kept, lambda *_: None)
    assert judge.asked == [] and [c.outcome for c in found] == [0.5, None]
    result = figures(found)
    assert (result["identical"], result["judged"], result["comparisons"]) == (1, 1, 2)
    assert result["missing_verdicts"] == {"no response": 2}
    assert result["agreement"]["value"] is None  # nobody was asked


def test_another_config_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    judged(path, Scripted("tie", "tie", "tie", "tie"))
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"other settings:\n  n: 1 -> 2\n"):
        judged(path, Scripted(), resume=True, n=2)
    with pytest.raises(RunError, match="--resume"):
        judged(path, Scripted())
    kept = ResumableRows(path, {"judge": {"kind": "scripted"}, "n": 1}, KEY, resume=True)
    with pytest.raises(RunError, match="verdicts on other responses"):
        compare(Scripted(), PEOPLE, OURS | {(1, 0): "new"}, THEIRS, kept, lambda *_: None)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["precious\n", "{}\n", '{"settings": {}}\n{"a": 1}\n', '{"settings": {}}\n3\n'])
def test_a_file_of_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(text)
    with pytest.raises(RunError, match="damaged"):
        ResumableRows(path, {}, KEY, resume=True)
    assert path.read_text() == text


def test_figures_worked_by_hand() -> None:
    def comparison(user: str, ours: str, theirs: str, *verdicts: Any) -> Comparison:
        return Comparison((0, 0), user, "p", ours, theirs, verdicts)

    result = figures(
        [
            comparison("a", "long text", "short", "first", "second"),  # won
            comparison("a", "b", "c", "first", "first"),  # position: half
            comparison("b", "no", "yes", "second", "first"),  # lost
            comparison("c", "same", "same", "tie", "tie"),  # identical
            comparison("c", "d", "e", "tie", "second"),  # three quarters
        ]
    )
    assert (result["wins"], result["ties"], result["losses"], result["users"]) == (2, 2, 1, 3)
    assert result["win_rate"]["value"] == pytest.approx((1 + 0.5 + 0 + 0.5 + 0.75) / 5)
    assert result["agreement"]["value"] == pytest.approx(2 / 4)
    assert result["first_position"]["value"] == pytest.approx(4 / 7)  # of 7 verdicts that are no tie
    assert result["length"]["value"] == pytest.approx((9 + 1 + 2 + 4 + 1) / 5)
    assert result["length_difference"]["value"] == pytest.approx((4 + 0 - 1 + 0 + 0) / 5)


def test_prompts_are_counted_by_user_and_asked_once_a_window() -> None:
    people = [person("a", "1?", "1?", "2?"), person("b", "1?"), person("a", "1?", "3?")]
    assert asked(people) == [(0, 0), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert asked(people, 3) == [(0, 0), (0, 2), (1, 0), (2, 0)]
    assert asked(people, 1) == [(0, 0), (1, 0)]
