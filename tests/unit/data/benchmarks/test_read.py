import json
import sys
from pathlib import Path

import benchmark_sets as sets
import pytest

from popi.data.benchmarks.read import Columns, Row, read
from popi.data.jsonl import Problem
from popi.errors import DataError

COLUMNS = Columns(("a",), ("b",))


def values(place: Path, split: str = "train", **options: bool) -> list[int]:
    found = list(read(str(place), split, COLUMNS, **options))
    assert all(isinstance(row, Row) for row in found), found
    return [row.values["a"] for row in found if isinstance(row, Row)]


@pytest.fixture(params=[".parquet", ".jsonl"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_files_of_a_split_are_found_by_name_or_folder(tmp_path: Path, suffix: str) -> None:
    for i in range(3):
        sets.write(tmp_path / "data" / f"train-0000{i}-of-00003{suffix}", [{"a": i, "b": 0}])
    sets.write(tmp_path / "data" / f"test{suffix}", [{"a": 7}])
    sets.write(tmp_path / "validation" / f"0000{suffix}", [{"a": 8}])
    assert values(tmp_path) == [0, 1, 2]
    assert (values(tmp_path, "test"), values(tmp_path, "validation")) == ([7], [8])
    with pytest.raises(DataError, match="no parquet or JSONL file of split 'dev'.*it holds: test, train, validation"):
        values(tmp_path, "dev")


def test_a_missing_shard_is_no_smaller_set(tmp_path: Path, suffix: str) -> None:
    for i in (0, 2):
        sets.write(tmp_path / f"train-0000{i}-of-00003{suffix}", [{"a": i}])
    with pytest.raises(DataError, match="lacks shard 00001 of 00003"):
        values(tmp_path)


def test_rows_that_lie_there_as_parquet_and_as_jsonl_are_read_once(tmp_path: Path) -> None:
    for name in ("test-00000-of-00001.parquet", "test.jsonl"):
        sets.write(tmp_path / name, [{"a": 1}])
    assert values(tmp_path, "test") == [1]


def test_a_split_of_another_name_and_a_folder_that_names_none(tmp_path: Path, suffix: str) -> None:
    sets.write(tmp_path / "one" / f"held_out-0{suffix}", [{"a": 1}])
    sets.write(tmp_path / "one" / f"pairs{suffix}", [{"a": 2}])
    assert values(tmp_path / "one", "held_out") == [1]
    assert sorted(values(tmp_path / "one", "train")) == [1, 2]


def test_a_file_alone_is_train_unless_named_for_another_split(tmp_path: Path, suffix: str) -> None:
    file = sets.write(tmp_path / f"rows{suffix}", [{"a": 1}])
    assert values(file) == [1]
    assert values(file, "test", own_file=True) == [1]
    with pytest.raises(DataError, match="a single file is read.*set a path for the split 'test'"):
        values(file, "test")


def test_a_json_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"a": 1}, {"a": 2}]))
    assert values(tmp_path) == [1, 2]
    (tmp_path / "a.json").write_text("[{")
    with pytest.raises(DataError, match="not JSON"):
        values(tmp_path)


def test_bad_lines_are_told_with_file_and_number_and_reading_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"a"\n[1]\n{"a": 2}\n')
    found = list(read(str(file), "train", COLUMNS))
    assert [row.values["a"] for row in found if isinstance(row, Row)] == [1, 2]
    wrong = [problem for problem in found if isinstance(problem, Problem)]
    assert [(p.line, p.unit, p.file) for p in wrong] == [(3, "line", str(file)), (4, "line", str(file))]
    assert str(wrong[1]).startswith(f"{file}, line 4: must be a JSON object; got [1]")
    assert "not JSON" in str(wrong[0]) and '{"a"' in str(wrong[0])


def test_only_the_columns_asked_for_are_read_and_a_missing_one_is_told_once(tmp_path: Path) -> None:
    file = sets.write(tmp_path / "a.parquet", [{"b": 1, "c": 2}] * 3)
    [problem] = read(str(file), "train", COLUMNS)
    assert isinstance(problem, Problem)
    assert (problem.kind, problem.message) == ("bad file", "no column 'a'; its columns: b, c")
    file = sets.write(tmp_path / "a.parquet", [{"a": 1, "c": 2}])
    [row] = read(str(file), "train", COLUMNS)
    assert isinstance(row, Row) and row.values == {"a": 1}


def test_what_is_no_parquet_or_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"a\.parquet: can't be read as parquet"):
        values(tmp_path)
    (tmp_path / "b.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"b\.jsonl: not UTF-8"):
        values(tmp_path / "b.jsonl")


def test_the_hub_out_of_reach_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError) as error:
        values(Path("owner/name"))
    assert str(error.value).splitlines() == [
        "owner/name: no such file or folder, and loading split 'train' of the hub dataset failed (Couldn't reach "
        "'owner/name' on the Hub); pass the path of a local copy (parquet or JSONL) instead"
    ]
    with pytest.raises(DataError, match="no such file or folder, and not a hub id"):
        values(Path("no/such/folder"))


def test_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{"a": 5, "c": 1}])
    monkeypatch.setattr(datasets, "load_dataset", lambda place, split: {("o/n", "test"): table}[place, split])
    assert list(read("o/n", "test", COLUMNS)) == [Row("o/n:test", "row", 1, {"a": 5})]


@pytest.mark.parametrize("package", ["pyarrow", "datasets"])
def test_without_the_reader_the_message_says_what_to_install(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = sets.write(tmp_path / "a.parquet", [{"a": 1}]) if package == "pyarrow" else Path("owner/name")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"needs {package}; pip install 'popi\[train\]'"):
        values(place)
