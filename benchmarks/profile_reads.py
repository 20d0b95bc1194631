"""Time to read a summary with a million users in SQLite: `python benchmarks/profile_reads.py [--users N]`.

Users are chosen at random, so nearly every read misses the cache. The time is that of a look-up by the proxy: from the
event loop to a thread, through SQLAlchemy, and back. The result goes to runs/bench/profile_reads.json.
"""

import argparse
import json
import platform
import random
import sqlite3
import tempfile
import time
from pathlib import Path

import uvloop

from popi.serving.store import keys
from popi.serving.store.database import Database
from popi.serving.store.threads import Store
from popi.serving.summaries import SummaryCache

READS = 20_000
TEXT = "Prefers short, direct answers with numbers and a formal tone; no small talk. Likes examples in Python."


def fill(file: Path, users: int) -> None:
    """Insert users with one summary each, bypassing the API, since only reads are timed."""
    database = Database.open(f"sqlite:///{file}")
    database.write(keys.ensure_tenant, "t", 0.0)
    database.close()
    clauses = json.dumps([{"id": "c1", "text": TEXT, "locked": False, "signals": [], "author": "model"}])
    with sqlite3.connect(file) as connection:
        people = "INSERT INTO users (tenant, user_id, created_at, next_position) VALUES ('t', ?, 0, 0)"
        connection.executemany(people, ((f"user-{n:08}",) for n in range(users)))
        columns = "tenant, user_id, version, text, clauses, author, model, created_at"
        summaries = f"INSERT INTO summaries ({columns}) VALUES ('t', ?, 1, ?, ?, 'model', 'm', 0)"
        connection.executemany(summaries, ((f"user-{n:08}", TEXT, clauses) for n in range(users)))
    connection.close()


async def read(database: Database, users: int) -> list[float]:
    """Milliseconds of each read, in ascending order."""
    cache, chance = SummaryCache(Store(database)), random.Random(0)
    taken = []
    for _ in range(READS):
        name = f"user-{chance.randrange(users):08}"
        began = time.perf_counter()
        summary = await cache.summary_of("t", name)
        taken.append((time.perf_counter() - began) * 1e3)
        assert summary is not None
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=1_000_000)
    users: int = parser.parse_args().users
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "popi.db"
        fill(file, users)
        database = Database.open(f"sqlite:///{file}")
        taken = uvloop.run(read(database, users))
        row = {
            "users": users,
            "reads": READS,
            "file_mb": round(file.stat().st_size / 1e6),
            "p50_ms": round(taken[READS // 2], 3),
            "p99_ms": round(taken[READS * 99 // 100], 3),
            "max_ms": round(taken[-1], 3),
            "machine": platform.processor() or platform.machine(),
        }
        database.close()
    print(row)
    out = Path("runs/bench/profile_reads.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
