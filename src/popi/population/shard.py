"""Write the summaries of a shard's users, and check that each user has exactly one summary or one reason for none.

A shard is written by one call on one worker and then renamed, so a worker that dies leaves nothing behind, and the next
one starts the shard again. Since the batches of a model depend on the shard alone, the result does not depend on how
many workers there are or which of them died.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import popi
from popi.errors import DataError, PopiError, RunError, UpstreamError
from popi.inference_model import InferenceModel
from popi.models.remote.usage import metered
from popi.population.layout import Folder, read_json, read_rows, replacing, write_json
from popi.population.staging import staged
from popi.runs.summary_file import summary_row
from popi.signals.types import User

MAX_ATTEMPTS = 20
"""Attempts to write one shard, after which its users, and not the machines, are to blame for the deaths of workers."""
Row = dict[str, Any]


class ShardWriter:
    """What a worker holds: the model, loaded once.

    Args:
        folder: the output folder.
        sources: names of the input files.
        make: loads the model.
        version: version of popi that started the run.

    An error that would fail every shard is in each receipt (`error`), where it reaches the command line.
    """

    def __init__(
        self, folder: Folder, sources: list[str], make: Callable[[], InferenceModel], version: str = popi.__version__
    ) -> None:
        self.folder, self.sources, self.error, self._model = folder, sources, "", None
        try:
            folder.refuse_older()
            if version != popi.__version__:
                raise RunError(f"this worker has popi {popi.__version__}, but {version} started the run; install that")
            self._model = make()
        except PopiError as error:
            self.error = str(error)

    def __call__(self, name: str) -> Row:
        """Write a shard.

        Returns:
            its receipt: the counts `written`, `rejected` and `retryable`; for this attempt its number, `requests` and
            tokens; `down` if the model API failed for all users, with the reason.
        """
        if self._model is None:
            return {"name": name, "error": self.error}
        try:
            if self.folder.done(name).is_file() and not _retryable(self.folder, name):
                return read_json(self.folder.done(name))  # written by a worker that died before it could say so
            attempt = self._count(name)
            return write_shard(self.folder, name, self._model, self.sources) | {"attempt": attempt}
        except PopiError as error:
            return {"name": name, "error": str(error)}
        except OSError as error:
            return {"name": name, "error": f"{self.folder.path}: can't be written ({error.strerror or error})"}

    def _count(self, name: str) -> int:
        """Number this attempt on disk, where it survives the worker.

        Raises:
            RunError: if there have been too many.
        """
        with self.folder.attempts(name).open("ab") as file:
            file.write(b".")
        attempt = self.folder.attempts(name).stat().st_size
        if attempt > MAX_ATTEMPTS:
            raise RunError(
                f"{self.folder.users(name)}: {MAX_ATTEMPTS} workers died while they summarised these users, perhaps "
                "for lack of memory; give workers more, or make shards smaller (--shard-users, with --force)"
            )
        return attempt


def _retryable(folder: Folder, name: str) -> bool:
    return bool(read_json(folder.done(name))["retryable"])


def write_shard(folder: Folder, name: str, model: InferenceModel, sources: list[str]) -> Row:
    """Summarise the users of a shard who have no summary yet. Returns the receipt, as `ShardWriter`.

    Raises:
        RunError: if there is a later start.
    """
    source = sources[int(name.split("-")[0])]
    rejects, users = _sorted_out(folder, name, source, sources)
    rows = {row["user_id"]: row for row in read_part(folder, name)}
    waiting = {line: user for line, user in users.items() if user.user_id not in rows}
    with metered() as usage:
        results = model.summarize_each([user.signals for user in waiting.values()])
    failed: list[PopiError] = []
    for (line, user), result in zip(waiting.items(), results, strict=True):
        if isinstance(result, PopiError):
            failed.append(result)
            where = {"user_id": user.user_id, "file": source, "line": line}
            rejects[line] = where | {"error": str(result), "retry": True}
        else:
            rows[user.user_id] = summary_row(user.user_id, result) | {"model": model.name}
    receipt: Row = {
        "name": name,
        "written": len(rows),
        "rejected": len(rejects),
        "retryable": len(failed),
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "down": _outage(failed, len(waiting)),
    }
    folder.refuse_older()
    with replacing(folder.rejects(name)) as partial:
        _write_lines(partial, (rejects[line] for line in sorted(rejects)))
    if rows:
        with replacing(folder.part(name)) as partial:
            _write_part(folder, partial, [rows[user.user_id] for user in users.values() if user.user_id in rows])
    write_json(folder.done(name), receipt)
    return receipt


def _sorted_out(folder: Folder, name: str, source: str, sources: list[str]) -> tuple[dict[int, Row], dict[int, User]]:
    """The rejects of a shard and its users, by line."""
    repeats = {row["line"]: row for row in read_rows(folder.repeats(name))}
    rejects: dict[int, Row] = {}
    users: dict[int, User] = {}
    for line in staged(folder, name):
        where = {"file": source, "line": line.line}
        if line.user is None:
            rejects[line.line] = where | {"field": line.field, "error": line.error, "retry": False}
        elif line.line in repeats:
            first = repeats[line.line]
            at = f"line {first['first_line']} of {sources[first['first_file']]}"
            message = f"user {line.user.user_id!r} already appears on {at}; put all signals on one line"
            field = {"user_id": line.user.user_id, "field": "user_id"}
            rejects[line.line] = field | where | {"error": message, "retry": False}
        else:
            users[line.line] = line.user
    return rejects, users


def _outage(failed: list[PopiError], asked: int) -> str:
    """The reason if an API failed for everyone, and will for others."""
    last = failed[-1] if failed else None
    down = len(failed) == asked and isinstance(last, UpstreamError) and (last.affects_all or last.transient)
    return str(last) if down else ""


# -- files ------------------------------------------------------------------------------------------------------------


def read_part(folder: Folder, name: str) -> list[Row]:
    """The summaries of a shard; empty if none have been written."""
    path = folder.part(name)
    if folder.form == "jsonl" or not path.is_file():
        return list(read_rows(path))
    import pyarrow.parquet

    rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _write_part(folder: Folder, path: Path, rows: list[Row]) -> None:
    if folder.form == "jsonl":
        _write_lines(path, iter(rows))
        return
    import pyarrow
    import pyarrow.parquet

    text, texts = pyarrow.string(), pyarrow.list_(pyarrow.string())
    fields = {"user_id": text, "summary": text, "tokens": pyarrow.int64(), "signals_used": pyarrow.int64()}
    fields |= {"signals_dropped": texts, "abstained": pyarrow.bool_(), "removed_content": texts, "model": text}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, pyarrow.schema(list(fields.items()))), path)


def _write_lines(path: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# -- check ------------------------------------------------------------------------------------------------------------


def check_shard(folder: Folder, name: str) -> Iterator[Row]:
    """Count the shard's lines, summaries and rejects on disk; `error` if a user has none or several of the two."""
    try:
        lines = {line.line: line.user and line.user.user_id for line in staged(folder, name)}
        rejects = [row["line"] for row in read_rows(folder.rejects(name))]
        written = [row["user_id"] for row in read_part(folder, name)]
        rejected = set(rejects)
        due = sorted(str(user_id) for line, user_id in lines.items() if line not in rejected)
        if len(rejected) < len(rejects) or not rejected <= lines.keys() or sorted(written) != due:
            raise DataError(
                f"{folder.part(name)}: {len(written)} summaries and {len(rejects)} rejects do not match the "
                f"{len(lines)} users; delete {folder.done(name)} and this file, and run the command with --resume"
            )
        yield {"lines": len(lines), "written": len(written), "rejected": len(rejects)}
    except PopiError as error:
        yield {"error": str(error)}
    except (OSError, ValueError) as error:
        yield {"error": f"{folder.part(name)}: can't be read ({error})"}
