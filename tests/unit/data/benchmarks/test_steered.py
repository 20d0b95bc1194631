"""ELIX and Review: the label, the filter, windows, and what keeps the splits apart."""

from collections import Counter
from pathlib import Path
from typing import Any

import benchmark_sets as sets
import pytest

from popi.data.benchmarks.result import Split, prompt_key
from popi.signals.types import PairSignal, TargetPair

ROW = {
    "prompt": " why tea? ",
    "level_x": "child",
    "level_y": "expert",
    "response_x": " it is x\n",
    "response_y": "it is y",
    "scorer_level": "child",
    "label": 0,
}


def pairs(split: Split) -> list[PairSignal | TargetPair]:
    return [part for one in split.users for part in (*one.user.signals, *one.user.targets)]  # type: ignore[misc]


def one_pair(tmp_path: Path, row: dict[str, Any], **settings: Any) -> PairSignal | TargetPair:
    second = {**row, "prompt": "why rice?"}
    place = sets.write(tmp_path / "train.jsonl", [row, second])
    found = sets.loaded("elix", place, {"signals_per_user": 1}, **settings)
    assert not found.problems, found.problems
    return next(pair for pair in pairs(found.train) if pair.prompt == "why tea?")


def test_label_0_prefers_x_and_texts_are_stripped(tmp_path: Path) -> None:
    pair = one_pair(tmp_path, ROW)
    assert (pair.chosen, pair.rejected) == ("it is x", "it is y")
    pair = one_pair(tmp_path, {**ROW, "label": 1})
    assert (pair.chosen, pair.rejected) == ("it is y", "it is x")


def test_det_choice_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    row = {**ROW, "label": 0, "det_choice": 1}
    assert one_pair(tmp_path, row).chosen == "it is x"
    assert one_pair(tmp_path, row, choice_column="det_choice").chosen == "it is y"
    found = sets.loaded("elix", sets.write(tmp_path / "train.jsonl", [ROW]), choice_column="det_choice")
    assert [(p.field, p.message) for p in found.problems] == [("det_choice", "required, but missing")]


@pytest.mark.parametrize("label", [2, True, "0", 0.0, None])
def test_other_labels_are_bad_rows(tmp_path: Path, label: object) -> None:
    found = sets.loaded("elix", sets.write(tmp_path / "train.jsonl", [{**ROW, "label": label}]))
    [problem] = found.problems
    assert (problem.kind, problem.line, problem.field) == ("bad row", 1, "label")
    assert str(tmp_path / "train.jsonl") in str(problem)


def test_bad_rows_are_told_or_dropped_and_counted(tmp_path: Path) -> None:
    rows = sets.elix("train")
    rows[3] |= {"response_x": " ", "scorer_level": None}
    place = sets.write(tmp_path / "train-00000-of-00001.parquet", rows)
    found = sets.loaded("elix", place)
    assert [(p.line, p.unit, p.field) for p in found.problems] == [(4, "row", "response_x"), (4, "row", "scorer_level")]
    found = sets.loaded("elix", place, on_bad_rows="drop")
    assert not found.problems
    assert found.train.dropped["bad rows (on_bad_rows = drop)"] == 1
    assert found.train.rows == 60


def test_scorers_of_neither_level_are_dropped_counted_and_kept_on_demand(tmp_path: Path) -> None:
    place = sets.make("elix", tmp_path)
    rule = "scorer_level is neither level_x nor level_y (scorer_match)"
    assert sets.loaded("elix", place).train.dropped == {rule: 6}
    kept = sets.loaded("elix", place, scorer_match=False)
    assert kept.train.dropped == {}
    assert kept.train.windows > sets.loaded("elix", place).train.windows


def test_windows_have_four_signals_and_a_target_and_no_row_twice(tmp_path: Path) -> None:
    place = sets.make("elix", tmp_path)
    for split in (sets.loaded("elix", place, scorer_match=False).train, sets.loaded("elix", place).others["test"]):
        assert {(len(one.user.signals), len(one.user.targets)) for one in split.users} == {(4, 1)}
        used = Counter((pair.prompt, pair.chosen, pair.rejected) for pair in pairs(split))
        assert set(used.values()) == {1}  # the released loader passes twice over both splits
        assert len(used) == split.used == 5 * split.windows
    # 12 rows a level make two windows and two rows left over.
    assert (split := sets.loaded("elix", place, scorer_match=False).others["test"]).windows == 10
    assert split.left_over == 10 and split.rows == 60


def test_users_are_levels_that_come_in_turn_with_the_oracles_words(tmp_path: Path) -> None:
    split = sets.loaded("elix", sets.make("elix", tmp_path), scorer_match=False).others["test"]
    assert {one.user.user_id for one in split.users[:5]} == set(sets.LEVELS)
    assert all(one.oracle == f"The user is {one.user.user_id}." for one in split.users)
    few = sets.loaded("elix", tmp_path, {"test_users": 5, "train_users": 3}, scorer_match=False, whole=False)
    assert few.others["test"].users == split.users[:5]
    assert (len(few.train.users), few.train.windows) == (3, 10)


def test_a_window_never_shows_a_prompt_twice(tmp_path: Path) -> None:
    """A level judges several pairs of one prompt; the target's response would stand among the signals."""
    rows = [{**row, "prompt": f"why {i // 5 % 6}?"} for i, row in enumerate(sets.elix("train", 120))]
    found = sets.loaded("elix", sets.write(tmp_path / "train.jsonl", rows), scorer_match=False)
    for one in found.train.users:
        prompts = [prompt_key(part) for part in (*one.user.signals, *one.user.targets)]
        assert len(set(prompts)) == 5
    assert found.train.dropped_signals == {}
    # A level has four rows of each of six prompts; what one window passes over, the next one takes.
    assert found.train.windows >= 3 * 5 and found.train.used + found.train.left_over == 120


def test_neither_files_nor_the_order_of_rows_change_the_users(tmp_path: Path) -> None:
    whole = sets.loaded("elix", sets.make("elix", tmp_path / "a"))
    rows = sets.elix("train")[::-1]
    for i, part in enumerate((rows[:13], rows[13:40], rows[40:])):
        sets.write(tmp_path / "b" / f"train-0000{i}-of-00003.parquet", part)
    sets.write(tmp_path / "b" / "test-00000-of-00001.parquet", sets.elix("test"))
    other = sets.loaded("elix", tmp_path / "b")
    for split in ("train", "test"):
        assert whole.splits[split].users == other.splits[split].users
    assert whole.train.users != sets.loaded("elix", tmp_path / "b", split_seed=1).train.users


def test_prompts_of_the_test_are_none_of_trains(tmp_path: Path) -> None:
    test = sets.elix("test")
    for i in range(0, 60, 2):
        test[i] = {**test[i], "prompt": sets.elix("train")[i]["prompt"].upper()}
    sets.write(tmp_path / "train.jsonl", sets.elix("train"))
    sets.write(tmp_path / "test.jsonl", test)
    found = sets.loaded("elix", tmp_path, scorer_match=False)
    assert found.others["test"].dropped == {"its prompt also appears in train (unseen_prompts)": 30}
    trained = {prompt_key(pair) for pair in pairs(found.train)}
    assert not trained & {prompt_key(pair) for pair in pairs(found.others["test"])}
    kept = sets.loaded("elix", tmp_path, scorer_match=False, unseen_prompts=False)
    assert kept.others["test"].dropped == {}
    assert trained & {prompt_key(pair) for pair in pairs(kept.others["test"])}
    assert "0 prompts of test's targets" in "\n".join(found.summary())
    assert "0 prompts of test's targets" not in "\n".join(kept.summary())


def test_equal_responses_and_repeated_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = sets.elix("train")
    rows[0]["response_y"] = rows[0]["response_x"].strip().upper()
    rows.append(rows[1])
    found = sets.loaded("elix", sets.write(tmp_path / "train.jsonl", rows), scorer_match=False)
    assert found.train.dropped == {
        "chosen and rejected are the same text": 1,
        "duplicate row of the same user": 1,
    }


def test_combined_levels_of_review_are_a_split_of_their_own(tmp_path: Path) -> None:
    found = sets.loaded("review", sets.make("review", tmp_path))
    single, combined = set(sets.REVIEWS[:4]), set(sets.REVIEWS[4:])
    assert found.train.user_ids == found.others["test"].user_ids == single
    assert found.others["interpolated"].user_ids == combined
    assert found.train.dropped == {"interpolated user: never trained on": 24}
    # They are the test split's rows: 12 of each of two levels, two windows each.
    assert (found.others["interpolated"].rows, found.others["interpolated"].windows) == (24, 4)
    assert found.others["test"].rows == 48
    test_prompts = {row["prompt"] for row in sets.review("test")}
    assert {pair.prompt for pair in pairs(found.others["interpolated"])} <= test_prompts
    oracles = {one.user.user_id: one.oracle for one in found.others["interpolated"].users + found.train.users}
    assert oracles["positive+concise"] == "This user prefers positive and concise reviews."
    assert oracles["verbose"] == "This user prefers verbose reviews."


def test_levels_that_are_not_reviews_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{**row, "scorer_level": "sad+concise"} if i < 5 else row for i, row in enumerate(sets.review("train"))]
    found = sets.loaded("review", sets.write(tmp_path / "train.jsonl", rows))
    [rule] = [rule for rule in found.train.dropped if rule.startswith("scorer_level is neither one of negative")]
    assert found.train.dropped[rule] == 5
