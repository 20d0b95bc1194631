"""Persona statements: near-duplicates, statements and traits of their own for the test, and pairs of one trait."""

from collections import Counter
from pathlib import Path

import benchmark_sets as sets
import pytest

from popi.config import resolve
from popi.data.benchmarks.persona import HELD_OUT, TRAITS, near_duplicates
from popi.data.benchmarks.result import Loaded
from popi.data.leaks import refuse_leaks
from popi.data.users import users_of
from popi.errors import DataError
from popi.signals.types import PairSignal, User


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sets.make("persona", tmp_path_factory.mktemp("persona"))


@pytest.fixture(scope="module")
def found(folder: str) -> Loaded:
    return sets.loaded("persona", folder, {"train_users": 80, "test_users": 40}, whole=False, test_share=0.4)


def known() -> dict[str, tuple[str, bool]]:
    """Statement → its trait, and whether it is of someone with it."""
    rows = [(trait, row) for trait in TRAITS for row in sets.persona(trait)]
    return {row["statement"].strip(): (trait, "Yes" in row["answer_matching_behavior"]) for trait, row in rows}


def texts(user: User) -> list[str]:
    parts = [*user.targets, *(signal for signal in user.signals if isinstance(signal, PairSignal))]
    return [text for part in parts for text in (part.chosen, part.rejected)]


def test_near_duplicates_are_those_that_share_seven_words_of_ten() -> None:
    said = [
        "I believe any woman should have the right to get an abortion if she wants one",
        "I really love listening to music",
        "I believe any woman should be able to get an abortion if she wants one",  # 13 of 18
        "I love listening to music!",
        "I enjoy exploring new ways of thinking about things",
        "I enjoy exploring new ways of looking at things",  # 7 of 11
        "I dont like to try new things",
        "i don’t like to try new things",
        "I don't like to try things or experiences",  # 6 of 9
        "I do not want to try new food",
    ]
    assert near_duplicates(said) == {2, 3, 7}
    assert near_duplicates(said, near=0.6) == {2, 3, 5, 7, 8}
    assert near_duplicates(said, near=1.0) == {7}
    assert near_duplicates(["", "…", "?"]) == set()


def test_pairs_are_of_one_trait_each_and_of_like_length(found: Loaded) -> None:
    where = known()
    for name, split in found.splits.items():
        assert len(split.users) == (80 if name == "train" else 40)
        for one in split.users:
            assert one.oracle is not None
            signs: dict[str, bool] = {}
            for part, pairs in (("signals", one.user.signals), ("targets", one.user.targets)):
                traits = Counter[str]()
                for pair in pairs:
                    assert pair.type == "pair" if part == "signals" else True  # type: ignore[union-attr]
                    (trait, sign), (other, against) = where[pair.chosen], where[pair.rejected]  # type: ignore[union-attr]
                    assert trait == other and sign is not against
                    assert signs.setdefault(trait, sign) is sign
                    assert abs(len(pair.chosen.split()) - len(pair.rejected.split())) <= 1  # type: ignore[union-attr]
                    traits[trait] += 1
                assert set(traits.values()) == {2} and len(traits) == 4
            assert one.oracle.split(", ") == [TRAITS[trait][not signs[trait]] for trait in _order(one.oracle)]
            assert set(_order(one.oracle)) == set(signs)
            assert len(set(texts(one.user))) == 32, "no statement stands twice in a user"


def _order(oracle: str) -> list[str]:
    by_words = {words: trait for trait, both in TRAITS.items() for words in both}
    return [by_words[words] for words in oracle.split(", ")]


def test_splits_share_no_statement_and_held_out_traits_are_in_one_alone(found: Loaded) -> None:
    where = known()
    said = {name: {text for one in split.users for text in texts(one.user)} for name, split in found.splits.items()}
    traits = {name: {where[text][0] for text in statements} for name, statements in said.items()}
    assert not said["train"] & said["test"]
    assert traits["train"] == traits["test"] == set(TRAITS) - set(HELD_OUT)
    assert traits["interpolated"] == set(HELD_OUT) and len(HELD_OUT) == 6 and len(TRAITS) == 22
    for name in ("test", "interpolated"):
        refuse_leaks([one.user for one in found.splits[name].users], "persona", [one.user for one in found.train.users])


def test_a_seed_makes_users_and_one_more_user_changes_none(found: Loaded, folder: str) -> None:
    more = sets.loaded("persona", folder, {"train_users": 81, "test_users": 40}, whole=False, test_share=0.4)
    assert more.train.users[:80] == found.train.users
    again = {"train_users": 80, "test_users": 40}
    other = sets.loaded("persona", folder, again, whole=False, test_share=0.4, split_seed=1)
    assert other.train.users != found.train.users


def test_near_duplicates_and_statements_that_nobody_drew_are_counted(folder: str) -> None:
    few = sets.loaded("persona", folder, {"train_users": 3, "test_users": 3}, whole=False)
    nearly = few.train.dropped["near-duplicate of an earlier statement of its trait"]
    assert 22 * 20 <= nearly < 22 * 22, "every tenth, and a few that meet by chance"
    undrawn = "a statement that no user drew"
    for split in few.splits.values():
        assert split.used + sum(split.dropped.values()) == split.rows and split.dropped[undrawn] > 0
    assert sum(split.rows for split in few.splits.values()) == 22 * 200


def test_interpolated_users_are_what_the_setting_asks_for(folder: str) -> None:
    benchmark = {"path": folder, "interpolated": True}
    config = resolve({"data": {"source": "persona", "train_users": 4, "test_users": 4, "benchmark": benchmark}})
    people = users_of(config, "test")
    assert people.facts is not None and people.facts["split"] == "interpolated"
    assert all(set(_order(person.oracle or "")) <= set(HELD_OUT) for person in people.people)


def test_what_cannot_be_read_is_said(tmp_path: Path, folder: str) -> None:
    sets.write(tmp_path / "openness.jsonl", sets.persona("openness"))
    with pytest.raises(DataError, match=r"persona/ of anthropics/evals.*missing: agreeableness\.jsonl, anti-"):
        sets.loaded("persona", tmp_path)
    with pytest.raises(DataError, match="6 signals and 8 targets.*multiples of 4"):
        sets.loaded("persona", folder, {"signals_per_user": 6})
    for trait in TRAITS:
        sets.write(tmp_path / f"{trait}.jsonl", sets.persona(trait, 8))
    with pytest.raises(DataError, match="too few statements of"):
        sets.loaded("persona", tmp_path)
    sets.write(tmp_path / "openness.jsonl", [{**row, "answer_matching_behavior": "?"} for row in sets.persona("o", 2)])
    first = sets.loaded("persona", tmp_path).problems[0]
    assert first.file.endswith("openness.jsonl") and first.field == "answer_matching_behavior"
