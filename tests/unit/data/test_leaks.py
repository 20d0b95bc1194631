"""Targets that test nothing are refused, whatever the source, with file, user and target."""

import json
from pathlib import Path
from typing import Any

import pytest

from popi.config import resolve
from popi.data.leaks import refuse_leaks
from popi.data.users import People, Person
from popi.errors import DataError
from popi.evaluation import users as evaluation_users
from popi.evaluation.users import held_out
from popi.signals.types import PairSignal, TargetPair, User

LONG = "hello friend, first soak the seeds in warm water for a day and then put them into dark earth."
SHORT = "dear sir, soak seeds, plant seeds."


def pair(n: int) -> dict[str, str]:
    return {"prompt": f"how do i grow plant number {n}?", "chosen": f"{n}: {LONG}", "rejected": f"{n}: {SHORT}"}


def user(name: str, signals: list[dict[str, str]], targets: list[dict[str, str]]) -> User:
    return User(
        user_id=name,
        signals=[PairSignal(**one) for one in signals],
        targets=[TargetPair(**one) for one in targets],
    )


def swapped(one: dict[str, str]) -> dict[str, str]:
    return one | {"chosen": one["rejected"], "rejected": one["chosen"]}


def test_clean_users_are_not_refused() -> None:
    ann, bob = user("ann", [pair(1)], [pair(2)]), user("bob", [pair(3)], [pair(2)])
    refuse_leaks([ann], "set", [bob])  # another user judged the same pair: that is how a population is learned
    refuse_leaks([ann], "set", [user("ann", [pair(3)], [pair(4)])])  # a user of both splits, with other pairs


@pytest.mark.parametrize("leaked", [pair(2), swapped(pair(2)), pair(2) | {"chosen": f"2: {LONG} Bye!"}])
def test_a_target_among_the_users_own_signals_is_refused(leaked: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"set: 1 problem\n.*user 'ann', targets\[1\]: .*signals\[1\]"):
        refuse_leaks([user("ann", [pair(1), leaked], [pair(3), pair(2)])], "set")


@pytest.mark.parametrize("where", ["signals", "targets"])
def test_a_pair_that_the_training_knew_of_the_same_user_is_refused(where: str) -> None:
    known = {"signals": [pair(9)], "targets": [pair(8)], where: [swapped(pair(2))]}
    trained = user("ann", **known)
    with pytest.raises(DataError, match=r"user 'ann', targets\[0\]: the models were trained on this pair"):
        refuse_leaks([user("ann", [pair(1)], [pair(2)])], "set", [trained])


def test_a_user_who_was_trained_on_under_another_name_is_refused() -> None:
    with pytest.raises(DataError, match="user 'ann', .* trained on this same user, as 'bob'"):
        refuse_leaks([user("ann", [pair(1)], [pair(2)])], "set", [user("bob", [pair(1)], [pair(2)])])


def write(path: Path, *users: User) -> str:
    path.write_text("".join(one.model_dump_json(exclude_none=True) + "\n" for one in users))
    return str(path)


def test_files_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", user("bob", [pair(1)], [pair(2)]))
    leaking = write(tmp_path / "test.jsonl", user("ann", [pair(3)], [pair(3)]))
    with pytest.raises(DataError, match=r"test\.jsonl.*\n.*line 1, targets\[0\]"):
        held_out(resolve({"data": {"source": train, "test": leaking}}))
    twin = write(tmp_path / "twin.jsonl", user("ann", [pair(1)], [pair(2)]))
    with pytest.raises(DataError, match=r"twin\.jsonl.*\n.*'ann', targets\[0\].*as 'bob'"):
        held_out(resolve({"data": {"source": train, "test": twin}}))
    good = write(tmp_path / "good.jsonl", user("cid", [pair(3)], [pair(4)]))
    config = resolve({"data": {"source": train, "test": good}})
    assert len(held_out(config)[0]) == 1
    for file in (leaking, twin):
        with pytest.raises(DataError, match=Path(file).name):
            held_out(config, file)


def test_a_benchmark_whose_test_rows_stand_in_train_is_refused(tmp_path: Path) -> None:
    def rows(*numbers: int) -> list[dict[str, Any]]:
        return [pair(n) | {"user_id": "ann"} for n in numbers]

    def write_rows(name: str, *numbers: int) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(*numbers)))
        return str(path)

    settings = {"unseen_users": False, "unseen_prompts": False, "path": write_rows("train.jsonl", 1, 2)}
    data = {"source": "preferences", "signals_per_user": 1, "targets_per_user": 1}
    good = settings | {"test_path": write_rows("good.jsonl", 3, 4)}
    assert len(held_out(resolve({"data": data | {"benchmark": good}}))[0]) == 1
    bad = settings | {"test_path": write_rows("bad.jsonl", 1, 2)}
    with pytest.raises(DataError, match=r"preferences: .*\n.*user 'ann', targets\[0\]"):
        held_out(resolve({"data": data | {"benchmark": bad}}))


def test_the_nano_world_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    leaking = People([Person(user("test-0", [pair(1)], [pair(1)]))])
    monkeypatch.setattr(evaluation_users, "users_of", lambda config, split, **_: leaking)
    with pytest.raises(DataError, match=r"nano: .*\n.*user 'test-0', targets\[0\]: this target is the same"):
        held_out(resolve({}))
