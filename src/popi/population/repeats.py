"""Find users who appear more than once, in memory that does not grow with their number.

The hashes of all ids are distributed over `BUCKETS` files by their first bits, and each file is sorted on its own. A
user's first line, in the order of the files, is used; later ones are rejected.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from popi.population.layout import Folder
from popi.population.staging import ID, shard_name

BUCKETS = 256
"""Files of hashes; a bucket of a billion users has 160 MB."""
BUFFERED = 100_000
"""Hashes in memory before they are distributed."""
RECORD = np.dtype([*ID.descr, ("file", "<u4"), ("shard", "<u4")])


def mark_repeats(
    folder: Folder, shards: Iterable[tuple[int, int]], progress: Callable[[int], None] = lambda _: None
) -> int:
    """Write the lines of each shard whose user is on an earlier line, and delete the ids.

    Args:
        folder: the output folder.
        shards: the numbers of each file and of each of its shards.
        progress: called with the number of hashes added.

    Returns:
        The number of such lines.
    """
    buckets = folder.state / "buckets"
    shutil.rmtree(buckets, ignore_errors=True)
    buckets.mkdir()
    pending: list[np.ndarray] = []
    for file, shard in shards:
        ids = np.fromfile(folder.ids(shard_name(file, shard)), ID)
        records = np.empty(len(ids), RECORD)
        for field in ID.names or ():
            records[field] = ids[field]
        records["file"], records["shard"] = file, shard
        pending.append(records)
        if sum(map(len, pending)) >= BUFFERED:
            progress(_distribute(buckets, pending))
            pending = []
    progress(_distribute(buckets, pending))
    total = sum(_mark(folder, bucket) for bucket in sorted(buckets.iterdir()))
    shutil.rmtree(buckets)
    shutil.rmtree(folder.state / "ids")
    return total


def _distribute(buckets: Path, pending: list[np.ndarray]) -> int:
    if not pending:
        return 0
    records = np.concatenate(pending)
    of = (records["high"] >> np.uint64(56)).astype(np.uint8)
    order = np.argsort(of, kind="stable")
    bounds = np.searchsorted(of[order], np.arange(BUCKETS + 1))
    for bucket in range(BUCKETS):
        chosen = records[order[bounds[bucket] : bounds[bucket + 1]]]
        if len(chosen):
            with (buckets / f"{bucket:03d}").open("ab") as file:
                file.write(chosen.tobytes())
    return len(records)


def _mark(folder: Folder, bucket: Path) -> int:
    records = np.fromfile(bucket, RECORD)
    records = records[np.lexsort([records[field] for field in ("line", "file", "low", "high")])]
    same = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
    starts = np.where(np.concatenate([[True], ~same]), np.arange(len(records)), 0)
    first = np.maximum.accumulate(starts)  # index of each user's first line
    repeated = np.flatnonzero(same) + 1
    for index in repeated.tolist():
        record, earlier = records[index], records[first[index]]
        row = {"line": int(record["line"]), "first_file": int(earlier["file"]), "first_line": int(earlier["line"])}
        with folder.repeats(shard_name(int(record["file"]), int(record["shard"]))).open("a") as file:
            file.write(json.dumps(row) + "\n")
    return len(repeated)
