"""What a restored backup brings back, and what `popi replay` takes away again: real backups, made as docs say."""

import json
import logging
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from serving_client import ADMIN, STORES, empty_store
from starlette.testclient import TestClient

from popi.serving.app import Gateway
from popi.serving.keys import create
from popi.serving.proxy.logs import LOGGER, JsonLines
from popi.serving.settings import read
from popi.serving.store.database import Database

WORD = "hush-hush"


@contextmanager
def gateway(url: str) -> Iterator[TestClient]:
    settings = read(None, upstream="http://127.0.0.1:9")
    with TestClient(
        Gateway(Database.open(url), settings, None, ADMIN), headers={"authorization": f"Bearer {ADMIN}"}
    ) as client:
        yield client


class Log(logging.Handler):
    """The gateway's log, as it stands on stderr."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self.setFormatter(JsonLines())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log(gateway_log: None) -> Log:  # which puts the log back
    handler = Log()
    LOGGER.handlers[:] = [handler]  # alone: a process may log to stderr already
    LOGGER.setLevel(logging.INFO)
    return handler


def backup(url: str, file: Path) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as store, closing(sqlite3.connect(file)) as copy:
            store.backup(copy)  # what sqlite3's .backup does
    else:
        subprocess.run([tool("pg_dump"), "--format=custom", f"--file={file}", url], check=True)


@contextmanager
def restored(url: str, file: Path, folder: Path) -> Iterator[str]:
    if url.startswith("sqlite"):
        (folder / "restored").mkdir()
        shutil.copy(file, folder / "restored" / "popi.db")
        yield f"sqlite:///{folder}/restored/popi.db"
        return
    with empty_store("postgresql", folder, schema=False) as new:
        subprocess.run([tool("pg_restore"), f"--dbname={new}", "--no-owner", str(file)], check=True)
        yield new


def tool(name: str) -> str:
    found = shutil.which(name) or next((str(one) for one in Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_store(request.param, tmp_path) as made:
        yield made


def say(client: TestClient, user: str, text: str) -> None:
    sent = {"signals": [{"type": "statement", "text": text}]}
    assert client.post(f"/users/{user}/signals", json=sent).status_code == 200


def status(client: TestClient, key: str) -> int:
    return client.get("/users", headers={"authorization": f"Bearer {key}"}).status_code


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def test_a_restored_backup_and_what_is_done_again(run: Any, url: str, log: Log, tmp_path: Path) -> None:
    everyone = ["ada", "ben", "bob", "cat", "cy", "dee", "eve", "fay"]
    with gateway(url) as client:
        good, leaked = (create(client.app.store.database, "app", "default")[0] for _ in range(2))
        for user in everyone:
            say(client, user, f"{WORD} of {user}")
        assert client.delete("/users/eve").json()["removed"]["signals"] == 1
        say(client, "eve", "I came again.")
        client.put("/users/dee/summary", json={"text": "Likes tea."})

        begun = time.time()
        backup(url, tmp_path / "backup")

        client.delete("/users/ada")
        client.post("/users/nea/merge", json={"source": "ben"})  # who is not in the backup ...
        client.delete("/users/nea")  # ... and with her what was ben's
        client.post("/users/cat/merge", json={"source": "bob"})
        client.put("/users/cy/controls", json={"use": False})
        client.put("/users/gil/controls", json={"learn": False})  # of whom nothing is known
        client.put("/users/dee/summary", json={"text": "Likes coffee."}, headers={"if-match": '"1"'})
        say(client, "zoe", "I am new.")
        client.delete(f"/keys/{leaked.split('_')[1]}")
    collected = [f"2026-11-30T00:00:00Z stderr F {line}" for line in log.lines]
    _, _, err = run("users", "erase", "fay", "--store", url)
    [by_hand] = [line for line in err.splitlines() if '"erased"' in line]
    file = tmp_path / "gateway.log"
    file.write_text("\n".join([*collected, by_hand]))
    assert not any(f'"{user}"' in file.read_text() for user in everyone)
    with restored(url, tmp_path / "backup", tmp_path) as again:
        with gateway(again) as client:  # what a backup brings back
            assert client.get("/users").json()["items"] == everyone
            assert status(client, good) == status(client, leaked) == 200
            assert client.get("/users/cy/controls").json() == {"use": True, "learn": True}
            assert client.get("/users/dee/summary").json()["text"] == "Likes tea."
            say(client, "ada", "A signal that an app sent too soon.")

        code, out, err = run("replay", file, "--since", moment(begun), "--store", again)
        assert code == 0, err
        done = json.loads(out)
        assert done.pop("data_on_disk") == ("overwritten" if again.startswith("sqlite") else "left_to_postgresql")
        assert done == {
            "lines": 8,
            "erased": 3,  # ada, ben, fay
            "merged": 1,
            "switched": 2,
            "revoked": 1,
            "sessions": 0,
            "not_merged": 1,
            "other_stores": 0,
        }
        with gateway(again) as client:
            assert client.get("/users").json()["items"] == ["cat", "cy", "dee", "eve"]
            assert client.get("/users/cat").json()["signals"] == 2
            assert (status(client, good), status(client, leaked)) == (200, 401)
            assert client.get("/users/cy").json()["controls"] == {"use": False, "learn": True}
            assert client.get("/users/gil/controls").json() == {"use": True, "learn": False}
            assert client.get("/users/dee/summary").json()["text"] == "Likes tea."  # an edit is gone for good
        if again.startswith("sqlite"):
            held = b"".join(one.read_bytes() for one in (tmp_path / "restored").iterdir())
            assert WORD.encode() in held and not any(f"{WORD} of {user}".encode() in held for user in ("ada", "ben"))

        # Again, with lines from before the backup: eve, who came again after her erasure, stays.
        code, out, _ = run("replay", file, "--since", "1970-01-01T00:00:00Z", "--store", again)
        done = json.loads(out)
        assert (done["lines"], done["erased"], done["merged"], done["switched"], done["revoked"]) == (9, 0, 0, 1, 0)


def test_lines_that_can_not_be_read_are_not_passed_over(run: Any, log: Log, tmp_path: Path) -> None:
    first, second = (f"sqlite:///{tmp_path}/{name}.db" for name in ("first", "second"))
    with gateway(first) as client:
        client.delete("/users/ada")
    [line] = [one for one in log.lines if '"erased"' in one]
    file = tmp_path / "gateway.log"

    def replayed(text: str, store: str = first, since: str = "1970-01-01T00:00:00Z") -> tuple[int, str, str]:
        file.write_text(text)
        return run("replay", file, "--since", since, "--store", store)

    assert json.loads(replayed(f"starting up\n{line}\n")[1])["lines"] == 1
    for text, word in (
        (line[:-20], "line 1: the line is truncated"),
        (json.dumps({"log": line}), "wrapped in another JSON line"),
        (json.dumps({name: value for name, value in json.loads(line).items() if name != "user"}), "without user"),
    ):
        code, _, err = replayed(text)
        assert code == 2 and word in err
    code, _, err = replayed(line, second)
    assert code == 2 and "of other stores" in err
    both = f"{line}\n{json.dumps(json.loads(line) | {'store': 'another'})}"
    assert json.loads(replayed(both)[1])["other_stores"] == 1
    for since, word in (("2026-11-30", "needs a time zone"), ("yesterday", "must be a time such as")):
        code, _, err = replayed(line, since=since)
        assert code == 2 and word in err
