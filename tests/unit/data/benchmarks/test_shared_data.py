"""The loaders on real text, where it lies beside the project: fixtures in the benchmarks' layouts, and real judgements.

POPI_SHARED_DATA names the folder; by default `../shared/data` of the project.
"""

import os
from pathlib import Path

import benchmark_sets as sets
import pytest

from popi.config import resolve
from popi.data.benchmarks.movielens import popularity_accuracy, read_ratings
from popi.data.benchmarks.registry import load
from popi.data.benchmarks.result import Loaded, prompt_key
from popi.data.leaks import refuse_leaks
from popi.data.users import options

ROOT = Path(__file__).parents[4]
FOLDER = next(
    (
        folder
        for folder in (
            Path(os.environ.get("POPI_SHARED_DATA", "nowhere")),
            *(up / "shared/data" for up in ROOT.parents),
        )
        if (folder / "schema_fixtures").is_dir()
    ),
    None,
)
pytestmark = pytest.mark.skipif(FOLDER is None, reason="no shared data: POPI_SHARED_DATA names no folder that is there")


def read(source: str, place: str, **settings: object) -> Loaded:
    assert FOLDER is not None
    return sets.loaded(source, FOLDER / place, **settings)


def accounted(found: Loaded) -> None:
    for split in found.splits.values():
        assert split.rows == split.bad + split.used + split.left_over + sum(split.dropped.values())


def test_elix_has_one_empty_response_that_is_named() -> None:
    found = read("elix", "schema_fixtures/elix")
    [problem] = found.problems
    assert (problem.line, problem.unit, problem.field) == (61, "row", "response_y")
    accounted(found)
    found = read("elix", "schema_fixtures/elix", on_bad_rows="drop", choice_column="det_choice")
    assert not found.problems
    assert (found.train.rows, found.others["test"].rows) == (500, 161)
    assert len(found.train.user_ids) == 5
    accounted(found)


@pytest.mark.parametrize("kind", ["ugc", "pair", "demo", "arbitrary"])
def test_alignx(kind: str) -> None:
    found = read("alignx", "schema_fixtures/alignx", alignx_signals=kind)
    assert (found.train.rows, found.others["test"].rows) == (320, 80)
    accounted(found)
    if kind == "demo":  # the fixture has no demographics
        assert {problem.kind for problem in found.problems} == {"nothing to use"}
    else:
        assert not found.problems and found.train.users


@pytest.mark.parametrize(
    ("source", "place", "settings"),
    [
        ("review", "schema_fixtures/review", {}),
        ("roleplay", "schema_fixtures/roleplay", {}),
        ("roleplay", "schema_fixtures/roleplay", {"test_split": "validation"}),
        ("polis", "polis", {}),
        ("mtbench", "mtbench_human/pairs_turn1.jsonl", {}),
        ("preferences", "mtbench_human/pairs_turn1.jsonl", {"user_column": "category"}),
    ],
)
def test_the_others(source: str, place: str, settings: dict[str, object]) -> None:
    found = read(source, place, **settings)
    assert not found.problems, found.problems[:3]
    accounted(found)
    test = found.others["test"]
    assert found.train.users and test.users
    if source != "review":
        assert not found.train.user_ids & test.user_ids
    if source in ("review", "mtbench"):
        assert not found.train.prompts & {prompt_key(target) for one in test.users for target in one.user.targets}


def test_movielens_has_thousands_of_pairs_that_popularity_says_nothing_of() -> None:
    """Prints the baseline of docs/data.md: pytest -s -k popularity."""
    assert FOLDER is not None
    benchmark = {"path": str(FOLDER / "movielens_small"), "test_share": 0.4}
    settings = options(resolve({"data": {"source": "movielens", "benchmark": benchmark}}).data, whole=True)
    found = load("movielens", settings)
    ratings = read_ratings(settings, found)
    for name, split in found.splits.items():
        accuracy = popularity_accuracy(ratings, split)
        print(f"{name}: {split.targets} pairs of {len(split.user_ids)} people; popularity alone {accuracy:.3f}")
        assert split.targets >= 5000 and 0.48 < accuracy < 0.52


def test_persona_users_have_what_the_design_asks_for() -> None:
    assert FOLDER is not None
    sizes = {"train_users": 100, "test_users": 60}
    found = sets.loaded("persona", FOLDER / "persona_statements", sizes, whole=False)
    assert found.train.dropped["near-duplicate of an earlier statement of its trait"] == 3169
    for split in found.splits.values():
        assert all(len(one.user.targets) == 8 and one.oracle for one in split.users)
        refuse_leaks([one.user for one in split.users], "persona")
        assert sum(len(one.user.signals) < 8 for one in split.users) < 3, "near to a target of another trait"


def test_parquet_and_jsonl_of_one_split_are_the_same_users() -> None:
    assert FOLDER is not None
    for source in ("elix", "review", "roleplay", "alignx"):
        folder, settings = FOLDER / "schema_fixtures" / source, {"on_bad_rows": "drop"}
        one = sets.loaded(source, folder / "test-00000-of-00001.parquet", **settings)
        other = sets.loaded(source, folder / "test.jsonl", **settings)
        assert one.train.users and one.train.users == other.train.users
