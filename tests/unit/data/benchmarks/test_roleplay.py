from pathlib import Path

import benchmark_sets as sets


def test_train_in_shards_and_a_validation_split(tmp_path: Path) -> None:
    rows = sets.roleplay("train")
    for i in range(3):
        sets.write(tmp_path / f"train-0000{i}-of-00003.parquet", rows[i::3])
    for split in ("validation", "test"):
        sets.write(tmp_path / f"{split}-00000-of-00001.parquet", sets.roleplay(split, personas=2))
    found = sets.loaded("roleplay", tmp_path)
    assert not found.problems
    # 20 rows a persona: two windows of 8 + 1, two rows left over.
    assert (found.train.rows, found.train.windows, found.train.left_over) == (80, 8, 8)
    assert {(len(one.user.signals), len(one.user.targets)) for one in found.train.users} == {(8, 1)}
    assert found.others["test"].user_ids == {"test-0", "test-1"}
    other = sets.loaded("roleplay", tmp_path, test_split="validation")
    assert other.others["test"].user_ids == {"validation-0", "validation-1"}
    assert other.train.users == found.train.users


def test_yw_is_preferred_and_the_persona_is_the_oracle(tmp_path: Path) -> None:
    row = {"x": " what? ", "yw": " this ", "yl": "that", "level": "p", "score_persona": None}
    described = {"persona_uuid": "p", "persona_description": "  likes tea. "}
    second = {**row, "x": "how?", "score_persona": described}
    place = sets.write(tmp_path / "train.jsonl", [row, second])
    found = sets.loaded("roleplay", place, {"signals_per_user": 1})
    [one] = found.train.users
    [target] = one.user.targets
    assert (target.chosen, target.rejected) == ("this", "that")
    assert one.oracle == ("likes tea." if target.prompt == "how?" else None)
    del row["score_persona"]
    assert not sets.loaded("roleplay", sets.write(tmp_path / "train.parquet", [row] * 9)).train.bad


def test_personas_of_both_splits_are_dropped_from_the_test_and_counted(tmp_path: Path) -> None:
    sets.write(tmp_path / "train.jsonl", sets.roleplay("train"))
    test = sets.roleplay("test", personas=2) + [
        {**row, "x": f"{row['x']} again"} for row in sets.roleplay("train", personas=1)
    ]
    sets.write(tmp_path / "test.jsonl", test)
    found = sets.loaded("roleplay", tmp_path)
    assert found.others["test"].user_ids == {"test-0", "test-1"}
    assert found.others["test"].dropped == {"its user also appears in train (unseen_users)": 20}
    assert "in train and test: 0 users" in "\n".join(found.summary())
    kept = sets.loaded("roleplay", tmp_path, unseen_users=False)
    assert kept.others["test"].user_ids == {"test-0", "test-1", "train-0"}
    assert "in train and test: 1 users" in "\n".join(kept.summary())


def test_a_row_of_two_personas_is_dropped_and_counted(tmp_path: Path) -> None:
    rows = sets.roleplay("train")
    rows[0] = {**rows[0], "level": "train-1"}
    found = sets.loaded("roleplay", sets.write(tmp_path / "train.jsonl", rows))
    assert found.train.dropped == {"score_persona and level are different personas": 1}
