from collections import Counter
from pathlib import Path
from typing import Any

import benchmark_sets as sets
import pytest

from popi.data.benchmarks.result import BenchmarkUser, Split
from popi.signals.render import Templates

POST = {"prompt": "a post", "comment": "a comment"}
PAIR = {"prompt": "another post", "chosen": "one", "rejected": "two"}
ROW = {
    "prompt": " the post ",
    "chosen": " yes ",
    "rejected": "no",
    "Preference Direction": [0.5] * 90,
    "Demographic Information": "",
    "User-Generated Content": [],
    "Pair-wise Comparative Feedback": [],
}
KINDS = ("ugc", "pair", "demo", "arbitrary")


def train(tmp_path: Path, *rows: dict[str, Any], kind: str = "arbitrary", **settings: Any) -> Split:
    found = sets.loaded("alignx", sets.write(tmp_path / "train.jsonl", list(rows)), alignx_signals=kind, **settings)
    assert {problem.kind for problem in found.problems} <= {"nothing to use"}, found.problems
    return found.train


def types(one: BenchmarkUser) -> list[str]:
    return [signal.type for signal in one.user.signals]


def turned(value: Any) -> Any:
    """The same rows with every direction replaced by a telling mark."""
    if isinstance(value, list):
        return [turned(item) for item in value]
    if isinstance(value, dict):
        return {key: [0.123456] * 90 if key == "Preference Direction" else turned(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_direction_ever_reaches_a_user(tmp_path: Path, kind: str, suffix: str) -> None:
    rows = sets.alignx("train")
    plain = sets.loaded("alignx", sets.write(tmp_path / f"a{suffix}", rows), alignx_signals=kind).train
    changed = sets.loaded("alignx", sets.write(tmp_path / f"b{suffix}", turned(rows)), alignx_signals=kind).train
    assert plain.users and plain.users == changed.users  # not even their ids or the mix drawn
    assert plain.stamp() == changed.stamp()
    template = Templates.load("default")
    for one in changed.users:
        shown = one.user.model_dump_json() + repr(template.inference_messages(one.user.signals)) + str(one.oracle)
        assert "0.123456" not in shown and "irection" not in shown


def test_a_row_is_a_user_of_one_target(tmp_path: Path) -> None:
    [one] = train(tmp_path, {**ROW, "User-Generated Content": [POST]}).users
    assert one.user.targets[0].model_dump() == {"prompt": "the post", "chosen": "yes", "rejected": "no"}
    assert one.user.signals[0].model_dump(exclude_none=True) == {
        "type": "post",
        "text": "a comment",
        "context": "a post",
    }
    assert one.oracle is None


def test_each_kind_takes_its_own_signals_and_no_more_than_asked_for(tmp_path: Path) -> None:
    row = {
        **ROW,
        "Demographic Information": " a gardener ",
        "User-Generated Content": [{**POST, "comment": f"comment {i}"} for i in range(3)],
        "Pair-wise Comparative Feedback": [{**PAIR, "chosen": f"chosen {i}"} for i in range(8)],
    }
    assert types(train(tmp_path, row, kind="ugc").users[0]) == ["post"] * 3  # lists may be shorter than 4
    pairs = train(tmp_path, row, kind="pair").users[0]
    assert [signal.chosen for signal in pairs.user.signals] == [f"chosen {i}" for i in range(4)]  # type: ignore[union-attr]
    [fact] = train(tmp_path, row, kind="demo").users[0].user.signals
    assert (fact.type, fact.text) == ("demographic", "a gardener")  # type: ignore[union-attr]


def test_rows_without_signals_of_the_kind_are_dropped_and_counted(tmp_path: Path) -> None:
    rule = "no signals of the requested kind (alignx_signals)"
    row = {**ROW, "User-Generated Content": None}
    del row["Pair-wise Comparative Feedback"]
    for kind in KINDS:
        assert train(tmp_path, row, kind=kind).dropped == {rule: 1}


def test_an_arbitrary_mix_is_never_empty_and_of_all_sizes(tmp_path: Path) -> None:
    rows = sets.alignx("train", 240)
    mixed = train(tmp_path, *rows)
    empty = [row for row in rows if not row["User-Generated Content"] and not row["Pair-wise Comparative Feedback"]]
    assert mixed.windows == 240 - sum(not row["Demographic Information"] for row in empty)
    sizes = {kind: Counter(types(one).count(kind) for one in mixed.users) for kind in ("post", "pair", "demographic")}
    assert set(sizes["post"]) == set(sizes["pair"]) == {0, 1, 2, 3, 4}
    assert set(sizes["demographic"]) == {0, 1}
    again = sets.loaded("alignx", tmp_path / "train.jsonl", split_seed=1).train
    assert [types(one) for one in again.users] != [types(one) for one in mixed.users]


def test_choices_between_equals_and_signals_that_hold_the_target_are_left_out(tmp_path: Path) -> None:
    row = {
        **ROW,
        "Pair-wise Comparative Feedback": [
            {**PAIR, "rejected": "ONE"},
            {"prompt": "the post", "chosen": "no", "rejected": "yes"},
            PAIR,
            PAIR,
        ],
    }
    split = train(tmp_path, row, kind="pair")
    assert types(split.users[0]) == ["pair"]
    assert split.dropped_signals == {
        "chosen and rejected are the same text": 1,
        "is also one of the user's targets, or nearly": 1,
        "duplicate signal of the same user": 1,
    }
    leaking = {**row, "Pair-wise Comparative Feedback": row["Pair-wise Comparative Feedback"][1:2]}
    assert train(tmp_path, leaking, kind="pair").dropped == {"no signals remain": 1}


def test_targets_of_equal_responses_and_rows_seen_before_are_dropped_and_counted(tmp_path: Path) -> None:
    row = {**ROW, "User-Generated Content": [POST]}
    split = train(tmp_path, row, {**row, "rejected": "YES"}, row)
    assert split.windows == 1
    assert split.dropped == {
        "chosen and rejected are the same text": 1,
        "duplicate row of the same user": 1,
    }
    sets.write(tmp_path / "test.jsonl", [row, {**row, "prompt": "a third"}])
    found = sets.loaded("alignx", tmp_path, alignx_signals="ugc")
    assert found.others["test"].dropped == {"the same row also appears in train": 1}


def test_a_wrong_entry_of_a_list_is_named(tmp_path: Path) -> None:
    row = {**ROW, "User-Generated Content": [POST, {"prompt": "p", "comment": 5}]}
    found = sets.loaded("alignx", sets.write(tmp_path / "train.jsonl", [row]))
    assert [(p.field, p.message, p.arrived) for p in found.problems] == [
        ("User-Generated Content[1].comment", "must be text", "5")
    ]


def test_the_test_set_may_lie_elsewhere_and_reading_stops_at_the_limit(tmp_path: Path) -> None:
    place = sets.write(tmp_path / "a" / "part.parquet", sets.alignx("train", 60))
    test = sets.write(tmp_path / "b" / "rows.parquet", sets.alignx("test", 12))
    found = sets.loaded("alignx", place.parent, {"train_users": 7, "test_users": 3}, test_path=str(test), whole=False)
    assert (len(found.train.users), len(found.others["test"].users)) == (7, 3)
    assert found.train.rows < 60
    whole = sets.loaded("alignx", place.parent, test_path=str(test))
    assert whole.train.rows == 60 and whole.train.users[:7] == found.train.users
