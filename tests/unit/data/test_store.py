import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from popi.config import resolve
from popi.data.check import check, load_users
from popi.data.jsonl import open_users, write_users
from popi.data.leaks import refuse_leaks
from popi.data.store import StoredUsers, finder, keep, people_of, pick, sizes, user_ids
from popi.data.users import users_of
from popi.errors import DataError
from popi.signals.types import User

GROWTH = 2500
"""Bytes that a user may add to the process's peak: SQLite's caches, which fill up once.
A user of the test takes several times as much in a list."""


def pair(n: int) -> dict[str, Any]:
    return {"prompt": f"prompt {n}", "chosen": f"good {n} é\u2028 x", "rejected": f"bad {n}"}


def user(n: int, signals: int = 1) -> dict[str, Any]:
    kinds = [
        {"type": "pair", "id": "p", "time": "2026-01-31T08:00:00Z", **pair(1000 + n)},
        {"type": "interaction", "prompt": [{"role": "user", "content": "hi"}], "response": "no", "rating": 0.1},
        {"type": "post", "text": "post", "context": "other", "time": 1.1},
    ]
    return {"user_id": f"user {n}", "signals": kinds[:signals], "targets": [pair(n)]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_users(tmp_path / "users.jsonl", [User.model_validate(user(n, n % 3 + 1)) for n in range(100)])
    return tmp_path / "users.jsonl"


def in_memory(file: Path) -> list[User]:
    return [User.model_validate_json(line) for line in file.read_text().split("\n") if line]


def test_users_on_disk_are_the_users_of_the_file(file: Path) -> None:
    stored, users = load_users(file), in_memory(file)
    assert stored == users and stored != users[1:] and len(stored) == 100
    assert list(stored) == users and list(stored[90:]) == users[90:]
    assert stored[-1] == users[-1] and stored[7] == users[7] and stored[5:50][::9] == users[5:50:9]
    assert [one.model_dump() for one in stored[:3]] == [one.model_dump() for one in users[:3]]
    with pytest.raises(IndexError):
        stored[100]


def test_parts_are_the_same_on_disk_and_in_memory(file: Path) -> None:
    stored, users = load_users(file), in_memory(file)
    odd = [n % 2 == 1 for n in range(100)]
    assert keep(stored, odd) == keep(users, odd) == users[1::2]
    assert pick(keep(stored, odd), [3, 0, 3]) == [users[7], users[1], users[7]]
    for part in (stored, stored[10:20], keep(stored, odd), stored[::-3]):
        same = [users[int(one.user_id.split()[1])] for one in part]
        assert list(user_ids(part)) == [one.user_id for one in same]
        assert list(sizes(part)) == list(sizes(same))
        assert list(people_of(part)) == list(people_of(same)) == list(range(len(part)))
    assert finder(stored)("user 42") == finder(users)("user 42") == 42  # type: ignore[misc]
    assert finder(stored)("stranger") is finder(users)("stranger") is None  # type: ignore[misc]


def test_windows_of_a_user_are_one_person(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"user_id": "ab"[n % 2], **pair(n)} for n in range(9)]  # the users' rows lie between each other
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stored = load_users(path, signals_per_user=1, targets_per_user=1)
    assert list(user_ids(stored)) == ["a", "a", "b", "b"] and list(people_of(stored)) == [0, 0, 1, 1]
    assert [one.targets[0].prompt for one in stored] == ["prompt 2", "prompt 6", "prompt 3", "prompt 7"]
    assert finder(stored) is None and finder(list(stored)) is None
    assert open_users(path, signals_per_user=1, targets_per_user=1) == stored


def test_a_limit_cuts_what_is_kept_and_not_what_is_checked(file: Path) -> None:
    assert load_users(file, limit=3) == in_memory(file)[:3]
    with file.open("a") as more:
        more.write(json.dumps(user(5)) + "\n")
    with pytest.raises(DataError, match="'user 5' already appears on line 6"):
        load_users(file, limit=3)


def test_the_cache_is_read_until_a_file_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, other = file.parent / "cache", file.parent / "other.jsonl"
    other.write_text(json.dumps(user(200)) + "\n")
    file.chmod(0o640)
    users = list(load_users(file, [other], cache=cache))
    [made] = cache.glob("*.sqlite")
    assert made.stat().st_mode & 0o777 == 0o640

    def never(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patched:
        patched.setattr("popi.data.check._examine", never)
        assert load_users(file, [other], cache=cache) == users
        with pytest.raises(AssertionError, match="read again"):
            load_users(file, cache=cache)  # not checked against the other file
    assert load_users(file, [other], cache=cache, limit=2) == users[:2]
    opened = load_users(file, [other], cache=cache)
    other.write_text(json.dumps(user(3)) + "\n")
    with pytest.raises(DataError, match="'user 3' also appears in"):
        load_users(file, [other], cache=cache)
    assert made.exists() and not list(cache.glob("*.partial"))  # what is faulty is not kept
    other.write_text(json.dumps(user(201)) + "\n")
    assert load_users(file, [other], cache=cache) == users
    assert not made.exists() and len(list(cache.glob("*.sqlite"))) == 2
    assert list(opened) == users  # a process that has the old file open reads on


def test_a_damaged_cache_is_said_to_be(file: Path) -> None:
    cache = file.parent / "cache"
    load_users(file, cache=cache)
    [made] = cache.glob("*.sqlite")
    made.write_bytes(b"precious")
    with pytest.raises(DataError, match="delete"):
        load_users(file, cache=cache)


def test_progress_is_told_in_hundredths(file: Path) -> None:
    with file.open("w") as lines:
        lines.writelines(json.dumps(user(n)) + "\n" for n in range(3001))
    told: list[tuple[str, int, int]] = []
    users = load_users(file, report=lambda *one: told.append(one))
    assert told[-1] == ("reading users.jsonl", 100, 100) and len(told) >= 3
    assert all(done <= later for (_, done, _), (_, later, _) in zip(told, told[1:], strict=False))
    told.clear()
    refuse_leaks(users[:1], "x", users[1:], lambda *one: told.append(one))
    assert [done for _, done, _ in told] == [1000, 2000, 3000]


def test_a_config_takes_users_of_files_from_disk(file: Path) -> None:
    config = resolve({"data": {"source": str(file), "train_users": 40}})
    people = users_of(config, "train", cache=file.parent / "cache")
    assert isinstance(people.users, StoredUsers) and people.users == in_memory(file)[:40]
    assert [one.user for one in people.people[38:]] == in_memory(file)[38:40] and people.people[0].oracle is None


PEAK = """
import sys
from pathlib import Path
from popi.data.check import load_users
from popi.data.jsonl import open_users
from popi.data.leaks import refuse_leaks
from popi.data.store import keep, people_of, sizes

def peak(file):
    users = load_users(file)
    users = keep(users, (targets > 0 for _, targets in sizes(users)))
    held, train = (keep(users, ((n % 100 == 0) is held for n in people_of(users))) for held in (True, False))
    assert [train[i].signals for i in range(0, len(train), 50)]
    refuse_leaks(held[:5], "held", train)
    assert sum(1 for one in open_users(file)) == len(users)
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

print(*map(peak, sys.argv[1:]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_users(tmp_path: Path) -> None:
    few, many = 2_000, 6_000
    for size in (few, many):
        with (tmp_path / f"{size}.jsonl").open("w") as lines:
            for n in range(size):
                posts = [{"type": "post", "text": f"{n} {k} " + "x" * 1000} for k in range(5)]
                lines.write(json.dumps({**user(n), "signals": posts}) + "\n")
    files = [str(tmp_path / f"{size}.jsonl") for size in (few, many)]
    done = subprocess.run([sys.executable, "-c", PEAK, *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    assert (second - first) / (many - few) < GROWTH, (first, second)


def test_a_check_of_many_lines_holds_no_users(file: Path) -> None:
    assert check(file).users == 100
