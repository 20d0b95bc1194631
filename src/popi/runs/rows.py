"""Stores of resumable rows: JSON lines, written immediately, so that an interruption loses none.

`RowFile` is the file. `ResumableRows` adds the settings that produced the rows, and access by key. A run's reference
log-probs and `popi infer`'s summaries use `RowFile` directly, since their keys and sizes differ.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from popi.errors import RunError
from popi.runs import formats
from popi.runs.files import write_jsonl
from popi.runs.run_directory import differences

Row = dict[str, Any]


class RowFile:
    """An append-only file of JSON lines.

    If an interruption leaves an incomplete last line, it is ignored, and the next row replaces it.

    Attributes:
        end: byte offset of the next row; known once `read` is exhausted.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.end = path, 0
        self._file: IO[bytes] | None = None

    def read(self) -> Iterator[tuple[int, Row]]:
        """Yield each row with its byte offset; nothing if there is no file.

        Raises:
            ValueError: if a line is not a JSON object. Appending then overwrites this line and all that follow.
        """
        self.end = 0
        if not self.path.is_file():
            return
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {number}: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"line {number}: not a JSON object")
                start, self.end = self.end, self.end + len(line)
                yield start, row

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows in a single write and flush them to the operating system."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if self.path.exists() else "wb")
            self._file.truncate(self.end)
            self._file.seek(self.end)
        text = b"".join((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)
        self._file.write(text)
        self._file.flush()
        self.end += len(text)

    def close(self) -> None:
        """Close the file; appending reopens it."""
        if self._file is not None:
            self._file.close()
            self._file = None


class ResumableRows:
    """A file whose first line holds settings and whose other lines are rows, identified by some of their fields.

    Added rows are in the file immediately, so an interruption loses none; an incomplete last line is ignored.

    Args:
        path: the file.
        settings: everything that rows depend on, as JSON.
        key: the fields that identify a row.
        resume: resume the file if it exists.
        again: which of the existing rows to recompute.
        advice: what the user can do if the file can't be resumed.

    Raises:
        RunError: if the file exists and `resume` is not set, is damaged, or has other settings (which the message
            lists).
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        key: Sequence[str],
        *,
        resume: bool,
        again: Callable[[Row], bool] = lambda row: False,
        advice: str = "name another --out",
    ) -> None:
        self.path, self.settings, self.key, self.advice = path, dict(settings), tuple(key), advice
        self.rows: dict[tuple[Any, ...], Row] = {}
        self._file = RowFile(path)
        self._started = False  # whether the file holds these settings and rows
        if not path.exists():
            return
        if not resume:
            raise RunError(f"{path}: already exists; resume it with --resume, or {advice}")
        for row in self._read():
            if not again(row):
                self.rows[self._key(row)] = row

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[field] for field in self.key)

    def _read(self) -> list[Row]:
        try:
            first, *rows = [row for _, row in self._file.read()] or [{"settings": self.settings}]
            settings, version = formats.current_names(dict(first["settings"])), first.get("format", 1)
            keys = [self._key(row) for row in rows]
            if len(set(keys)) < len(keys):
                raise ValueError("duplicate row")
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path}: damaged ({error!r}); move it away, or {self.advice}") from None
        formats.refuse_newer(self.path, version, formats.ROWS)
        if changed := differences(settings, self.settings):
            raise RunError(
                f"{self.path} was made with other settings:\n  " + "\n  ".join(changed) + "\n"
                f"use those settings again, or {self.advice}"
            )
        return rows

    def add(self, *rows: Row) -> None:
        """Add rows, writing them to the file immediately."""
        self.extend(rows)

    def extend(self, rows: Iterable[Row]) -> None:
        """Add rows that belong together in a single write, so that an interruption rarely separates them."""
        if not self._started:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            first = {"settings": self.settings, "format": formats.ROWS}
            write_jsonl(self.path, [first, *self.rows.values()])  # without the rows to recompute
            self._file.end, self._started = self.path.stat().st_size, True
        added = list(rows)
        self.rows |= {self._key(row): row for row in added}
        self._file.append(added)

    def close(self) -> None:
        """Close the file; adding rows reopens it."""
        self._file.close()


def settings_of(path: Path) -> dict[str, Any] | None:
    """The settings in a file of rows; None if there is no such file, or its first line is incomplete."""
    try:
        with path.open(encoding="utf-8") as lines:
            return dict(formats.current_names(json.loads(lines.readline())["settings"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
