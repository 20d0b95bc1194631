"""Polis, MT-Bench and any preference set: users (and prompts) told apart by a seeded hash."""

from pathlib import Path

import benchmark_sets as sets
import pytest

from popi.data.benchmarks.result import Loaded, prompt_key
from popi.signals.types import PairSignal


def make(tmp_path: Path, source: str, **settings: object) -> Loaded:
    found = sets.loaded(source, sets.make(source, tmp_path), **settings)
    assert not found.problems, found.problems
    return found


@pytest.mark.parametrize("source", ["polis", "mtbench", "preferences"])
def test_no_user_stands_in_both_splits_and_the_share_is_about_right(tmp_path: Path, source: str) -> None:
    found = make(tmp_path, source)
    train, test = found.train.user_ids, found.others["test"].user_ids
    assert not train & test
    assert 2 <= len(test) <= 10  # a fifth of 30
    other = make(tmp_path, source, split_seed=1).others["test"].user_ids
    assert other != test
    larger = make(tmp_path, source, test_share=0.5).others["test"]
    assert larger.rows > found.others["test"].rows and test <= larger.user_ids


def test_a_user_keeps_their_split_whoever_else_is_there(tmp_path: Path) -> None:
    few = sets.loaded("polis", sets.write(tmp_path / "few.jsonl", sets.preferences(users=12)))
    many = sets.loaded("polis", sets.write(tmp_path / "many.jsonl", sets.preferences(users=60)))
    assert few.others["test"].user_ids <= many.others["test"].user_ids
    assert few.train.user_ids <= many.train.user_ids


def test_prompts_of_the_mtbench_test_are_seen_by_no_training_user(tmp_path: Path) -> None:
    found = make(tmp_path, "mtbench", test_share=0.3)
    test = found.others["test"]
    seen = found.train.prompts
    assert test.users and found.train.users
    for one in test.users:
        assert not {prompt_key(target) for target in one.user.targets} & seen
        shown = {prompt_key(signal) for signal in one.user.signals if isinstance(signal, PairSignal)}
        assert not shown & test.target_prompts
    assert found.train.dropped["a training user's row with a prompt reserved for testing"] > 0
    # With prompts in common the same users meet again.
    loose = make(tmp_path, "mtbench", test_share=0.3, unseen_prompts=False)
    assert loose.others["test"].target_prompts & loose.train.prompts
    assert loose.train.dropped == {}


def test_rows_keep_their_order_within_a_user(tmp_path: Path) -> None:
    """Signals are older than targets: what `popi data check` promises of a file of rows."""
    found = make(tmp_path, "preferences")
    order = {row["chosen"]: (row["user_id"], i) for i, row in enumerate(sets.preferences())}
    for one in found.train.users + found.others["test"].users:
        places = [order[part.chosen] for part in (*one.user.signals, *one.user.targets)]  # type: ignore[union-attr]
        assert places == sorted(places) and {user for user, _ in places} == {one.user.user_id}


def test_the_user_column_has_any_name_and_may_hold_numbers(tmp_path: Path) -> None:
    rows = [{**row, "who": int(str(row["who"]).split()[1])} for row in sets.preferences(user="who")]
    place = sets.write(tmp_path / "a.parquet", rows)
    found = sets.loaded("preferences", place, user_column="who")
    assert found.train.user_ids | found.others["test"].user_ids == {str(n) for n in range(30)}
    [problem] = sets.loaded("preferences", place).problems[:1]
    assert problem.message == "no column 'user_id'; its columns: who, prompt, chosen, rejected, question_id"
    missing = sets.loaded("preferences", sets.write(tmp_path / "a.jsonl", rows)).problems
    assert (missing[0].field, missing[0].message) == ("user_id", "required, but missing")


def test_chat_messages_with_and_without_a_prompt(tmp_path: Path) -> None:
    def say(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    rows = []
    for i in range(10):
        ask = say("user", f"what about {i}?")
        chosen, rejected = say("assistant", f"yes {i}"), say("assistant", f"no {i}")
        rows.append({"user_id": "a", "prompt": [ask], "chosen": [chosen], "rejected": [rejected]})
        rows.append({"user_id": "b", "chosen": [ask, chosen], "rejected": [ask, rejected]})
    for suffix in (".jsonl", ".parquet"):
        found = sets.loaded("preferences", sets.write(tmp_path / f"a{suffix}", rows), {"targets_per_user": 1})
        users = found.train.users + found.others["test"].users
        assert {one.user.user_id for one in users} == {"a", "b"}
        assert {one.user.targets[0].chosen for one in users} <= {f"yes {i}" for i in range(10)}
    rows[0]["chosen"] = [say("user", "no answer")]
    found = sets.loaded("preferences", sets.write(tmp_path / "b.jsonl", rows))
    assert "must be one assistant message" in found.problems[0].message


def test_a_preference_set_with_a_test_split_of_its_own(tmp_path: Path) -> None:
    rows = sets.preferences()
    sets.write(tmp_path / "train.jsonl", rows[:240])
    sets.write(tmp_path / "held.jsonl", rows[228:])
    found = sets.loaded("preferences", tmp_path / "train.jsonl", test_path=str(tmp_path / "held.jsonl"))
    assert found.train.user_ids == {f"judge {n}" for n in range(20)}
    assert found.others["test"].user_ids == {f"judge {n}" for n in range(20, 30)}
    assert found.others["test"].dropped == {"its user also appears in train (unseen_users)": 12}


def test_too_few_rows_are_told(tmp_path: Path) -> None:
    found = sets.loaded("polis", sets.write(tmp_path / "a.jsonl", sets.preferences(users=4, n=3)))
    assert {problem.kind for problem in found.problems} == {"nothing to use"}
    assert "a window needs 4 signals and 4 targets" in str(found.problems[0])
