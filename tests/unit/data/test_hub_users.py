"""Files of users in data sets on the hub, from a cache made here: read, checked and refused like local files."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from popi.config import resolve
from popi.data.jsonl import read_users
from popi.data.places import hub_files, on_hub
from popi.data.users import users_of
from popi.errors import DataError

hub = pytest.importorskip("huggingface_hub")
PAIR = {"prompt": "Which pan?", "chosen": "Iron.", "rejected": "There are many."}


def line(user_id: str, **more: Any) -> str:
    signals = [{"type": "statement", "text": f"{user_id} likes iron"}]
    return json.dumps({"user_id": user_id, "signals": signals, "targets": [PAIR], **more}) + "\n"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the data set `owner/people` in the hub's cache, with two files of training users."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder, commit = tmp_path / "datasets--owner--people", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    data = folder / "snapshots" / commit / "data"
    data.mkdir(parents=True)
    (data / "train-00000-of-00002.jsonl").write_text(line("ada") + line("ben"))
    (data / "train-00001-of-00002.jsonl").write_text(line("cleo"))
    (data / "test.jsonl").write_text(line("dan"))
    return data


def test_users_of_a_config_come_from_the_hub(snapshot: Path) -> None:
    config = resolve({"data": {"source": "owner/people", "test": "owner/people:test"}})
    assert [user.user_id for user in users_of(config, "train").users] == ["ada", "ben", "cleo"]
    assert [user.user_id for user in users_of(config, "test").users] == ["dan"]
    with (snapshot / "test.jsonl").open("a") as file:
        file.write(line("ben"))
    with pytest.raises(DataError, match="'ben'.*owner/people"):
        users_of(config, "test")


def test_bad_lines_are_listed_as_those_of_files(snapshot: Path, run: Any) -> None:
    (snapshot / "train-00001-of-00002.jsonl").write_text("{\n" + line("ada"))
    code, out, _ = run("data", "check", "owner/people")
    assert (
        code == 2 and "owner/people: line 3" in out and "line 4, user_id: user 'ada' already appears on line 1" in out
    )
    with pytest.raises(DataError, match="owner/people: 2 problems"):
        read_users("owner/people")


def test_what_is_not_there_is_one_message(snapshot: Path) -> None:
    with pytest.raises(
        DataError, match=r"owner/people:dev: this dataset has no parquet .* of split 'dev'.*holds: test, train"
    ):
        read_users("owner/people:dev")
    with pytest.raises(DataError) as error:
        read_users("owner/nobody")
    assert str(error.value).startswith("owner/nobody: no such file, and loading it as a hub dataset failed")
    assert "\n" not in str(error.value)
    (snapshot / "train-00000-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match="lacks shard 00000 of 00002"):
        read_users("owner/people")


def test_a_failed_download_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub\nmore")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(DataError, match=r"failed \(no route to the hub\); pass a file"):
        read_users("owner/people")


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"owner/people: .* needs huggingface_hub; pip install 'popi\[train\]'"):
        read_users("owner/people")


def test_files_are_never_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "users.jsonl",
        "data/users.jsonl",
        "data/users.parquet",
        "data/users.jsonl.gz",
        "a/b/c",
        "/a/b",
        "C:/x",
    ):
        assert on_hub(name) is None, name
    assert on_hub("owner/name") == ("owner/name", "train") and on_hub("owner/name:dev") == ("owner/name", "dev")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").write_bytes(line("eve").encode())
    assert [user.user_id for user in read_users("owner/name")] == ["eve"]
    with pytest.raises(DataError, match="not a hub dataset"):
        hub_files("users.jsonl")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(line("fay").encode()))
    assert [user.user_id for user in read_users("packed.jsonl.gz")] == ["fay"]


def test_the_dry_run_measures_what_is_downloaded(snapshot: Path) -> None:
    from popi.training.planning.shapes import unavailable

    assert unavailable(resolve({"data": {"source": "owner/people"}})) is None
    assert unavailable(resolve({"data": {"source": "owner/nobody"}})) == "owner/nobody is not here"
