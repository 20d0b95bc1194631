"""Read an input file, and cut it into shards: files of a fixed number of lines, each read in one go by a worker.

Shards are copies, as in `popi.data.store`: a gzipped file or a large row group of parquet can't be read from the
middle. A line of a shard is a `Line`. The hashes of its users' ids go to another file, for `popi.population.repeats`.
"""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from popi.data.jsonl import read_lines
from popi.data.windows import PreferenceRow
from popi.errors import DataError, PopiError
from popi.population.layout import Folder, replacing
from popi.signals.types import User

ID = np.dtype([("high", "<u8"), ("low", "<u8"), ("line", "<u8")])
"""128 bits of the hash of a user's id, and the user's line."""


class Line(BaseModel):
    """A line of an input file: a user, or why there is none.

    Attributes:
        line: its number in the input file, from 1.
        user: the user, if the line is valid.
        field: otherwise, the first field that is not.
        error: all that is wrong with it.
    """

    line: int
    user: User | None = None
    field: str = ""
    error: str = ""


def shard_name(file: int, shard: int) -> str:
    """The name of a shard of the `file`-th input file."""
    return f"{file:05d}-{shard:06d}"


def stage(folder: Folder, source: Path, number: int, size: int) -> Iterator[dict[str, Any]]:
    """Write the shards of an input file, `size` lines in each. Repeating it writes the same files.

    Yields the name and number of lines of each shard; `error` if the file as a whole can't be used.
    """
    try:
        lines, shard = _lines(source), 0
        while chunk := list(islice(lines, size)):
            name = shard_name(number, shard)
            _write(folder, name, chunk)
            yield {"file": number, "shard": shard, "lines": len(chunk)}
            shard += 1
    except PopiError as error:
        yield {"error": str(error)}
    except OSError as error:
        yield {"error": f"{folder.path}: can't be written ({error.strerror or error})"}


def _lines(source: Path) -> Iterator[Line]:
    for number, parsed in read_lines(source):
        if isinstance(parsed, User):
            yield Line(line=number, user=parsed)
        elif isinstance(parsed, PreferenceRow):
            raise DataError(
                f"{source}: line {number} is a preference row, and --engine ray reads one user per line; group the "
                "rows of each user first (docs/data.md), or use --engine own"
            )
        else:
            messages = [f"{one.message}; got {one.arrived}" if one.arrived else one.message for one in parsed]
            fields = [f"{one.field}: {text}" if one.field else text for one, text in zip(parsed, messages, strict=True)]
            yield Line(line=number, field=parsed[0].field, error="; ".join([messages[0], *fields[1:]]))


def _write(folder: Folder, name: str, lines: list[Line]) -> None:
    users = [(line.line, line.user.user_id) for line in lines if line.user is not None]
    digests = b"".join(hashlib.blake2b(user_id.encode(), digest_size=16).digest() for _, user_id in users)
    ids = np.empty(len(users), ID)
    halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
    ids["high"], ids["low"], ids["line"] = halves[:, 0], halves[:, 1], [line for line, _ in users]
    with replacing(folder.ids(name)) as partial:
        ids.tofile(partial)
    with replacing(folder.users(name)) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(line.model_dump_json(exclude_none=True) + "\n" for line in lines)


def staged(folder: Folder, name: str) -> Iterator[Line]:
    """The lines of a shard."""
    with folder.users(name).open("rb") as file:
        for line in file:
            yield Line.model_validate_json(line)
