"""Time to erase one user from a large SQLite file: `python benchmarks/erasure.py [--megabytes N] [--times N]`.

Most of it is rewriting the file so that no deleted bytes remain. Another connection's write, started during the
rewrite, is timed as well. The result goes to runs/bench/erasure.json; --folder needs space for the file and a copy.
"""

import argparse
import json
import platform
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

from popi.serving.api.commands import erase_now
from popi.serving.store import keys
from popi.serving.store.database import Database

TEXT = "Prefers short, direct answers with numbers and a formal tone; no small talk. Likes examples in Python. " * 10
SIGNALS = 20
"""Signals per user, of about 1 kB each."""


def fill(file: Path, megabytes: int) -> int:
    """Insert users with signals and a summary, bypassing the API. Returns their number."""
    database = Database.open(f"sqlite:///{file}")
    database.write(keys.ensure_tenant, "t", 0.0)
    database.close()
    users = megabytes * 1_000_000 // (SIGNALS * (len(TEXT) + 150))
    signal = json.dumps({"type": "statement", "text": TEXT})
    names = [f"user-{n:08}" for n in range(users)]
    with sqlite3.connect(file) as connection:
        people = "INSERT INTO users (tenant, user_id, created_at, next_position) VALUES ('t', ?, 0, ?)"
        connection.executemany(people, ((name, SIGNALS) for name in names))
        rows = ((name, f"{n:032x}", n, signal) for name in names for n in range(SIGNALS))
        connection.executemany("INSERT INTO signals VALUES ('t', ?, ?, ?, 0, ?)", rows)
        columns = "tenant, user_id, version, text, clauses, author, model, created_at"
        summaries = f"INSERT INTO summaries ({columns}) VALUES ('t', ?, 1, ?, '[]', 'model', 'm', 0)"
        connection.executemany(summaries, ((name, TEXT) for name in names))
    connection.close()
    return users


def erase(file: Path, name: str) -> tuple[float, float]:
    """Seconds for an erasure, and for a write that another connection starts during it."""
    eraser, other = Database.open(f"sqlite:///{file}"), Database.open(f"sqlite:///{file}")
    waited: list[float] = []

    def write() -> None:
        time.sleep(0.1)
        began = time.perf_counter()
        other.write(keys.ensure_tenant, f"beside-{name}", 0.0)
        waited.append(time.perf_counter() - began)

    writer = threading.Thread(target=write)
    writer.start()
    began = time.perf_counter()
    receipt = erase_now(eraser, "t", name)
    taken = time.perf_counter() - began
    writer.join()
    assert receipt.data_on_disk == "overwritten" and receipt.removed.signals == SIGNALS, receipt
    eraser.close()
    other.close()
    return taken, waited[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--folder", help="folder for the file; default: the system's temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "popi.db"
        users = fill(file, options.megabytes)
        size = file.stat().st_size / 1e6
        runs = [erase(file, f"user-{n * (users // options.times):08}") for n in range(options.times)]
    taken, waited = (sorted(column) for column in zip(*runs, strict=True))
    row = {
        "megabytes": round(size),
        "users": users,
        "seconds": [round(seconds, 2) for seconds in taken],
        "median_seconds_per_100_mb": round(taken[len(taken) // 2] / size * 100, 2),
        "most_that_another_write_waited_s": round(waited[-1], 2),
        "machine": platform.processor() or platform.machine(),
    }
    print(row)
    out = Path("runs/bench/erasure.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
