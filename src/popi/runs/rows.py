"""The one store of resumable rows: JSON lines, written as they come, so that a kill loses none.

`RowFile` is the file. `ResumableRows` holds its rows under the settings that made them, by their key. The run's
reference log-probs and `popi infer`'s summaries stand on `RowFile` themselves: they have keys and sizes of their own.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from popi.errors import RunError
from popi.runs import formats
from popi.runs.run_directory import differences, write_jsonl

Row = dict[str, Any]


class RowFile:
    """JSON lines that are appended to.

    A kill may break off the last line: it is not read, and the next row replaces it.

    Attributes:
        end: where the next row will start, in bytes; known once `read` is through.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.end = path, 0
        self._file: IO[bytes] | None = None

    def read(self) -> Iterator[tuple[int, Row]]:
        """Where each row starts, and the row; nothing if there is no file.

        Raises:
            ValueError: a line is no JSON object. What is appended then replaces it and all that follows.
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
        """Append rows in one piece and hand them to the operating system."""
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
        """Close the file; a row that is appended later opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class ResumableRows:
    """A file whose first line holds settings, and each further line one row, told apart by some of its fields.

    A row that is added is in the file at once. A kill loses none; of the line that it broke off nothing is read.

    Args:
        path: the file.
        settings: everything that rows depend on, as JSON.
        key: the fields that tell rows apart.
        resume: go on with the file, if it exists.
        again: which of the rows there should be made again.
        advice: what the user can do about a file that can't be gone on with.

    Raises:
        RunError: the file exists and is not to be resumed, is damaged, or was made under other settings (the message
            says which).
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
        self._begun = False  # whether the file holds these settings and rows
        if not path.exists():
            return
        if not resume:
            raise RunError(f"{path}: exists and is left as it is; go on with it (--resume), or {advice}")
        for row in self._read():
            if not again(row):
                self.rows[self._key(row)] = row

    def _key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[field] for field in self.key)

    def _read(self) -> list[Row]:
        try:
            first, *rows = [row for _, row in self._file.read()] or [{"settings": self.settings}]
            settings, version = dict(first["settings"]), first.get("format", 1)
            keys = [self._key(row) for row in rows]
            if len(set(keys)) < len(keys):
                raise ValueError("a row stands there twice")
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path}: damaged ({error!r}); move it away, or {self.advice}") from None
        formats.refuse_newer(self.path, version, formats.ROWS)
        if changed := differences(settings, self.settings):
            raise RunError(
                f"{self.path} was made under other settings:\n  " + "\n  ".join(changed) + "\n"
                f"go on with those, or {self.advice}"
            )
        return rows

    def add(self, *rows: Row) -> None:
        """Keep rows, in the file at once."""
        self.extend(rows)

    def extend(self, rows: Iterable[Row]) -> None:
        """Keep rows that came together: written in one piece, so that a kill hardly ever parts them."""
        if not self._begun:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            first = {"settings": self.settings, "format": formats.ROWS}
            write_jsonl(self.path, [first, *self.rows.values()])  # without those to make again
            self._file.end, self._begun = self.path.stat().st_size, True
        added = list(rows)
        self.rows |= {self._key(row): row for row in added}
        self._file.append(added)

    def close(self) -> None:
        """Close the file; a row that is added later opens it again."""
        self._file.close()


def settings_of(path: Path) -> dict[str, Any] | None:
    """The settings that rows were kept under; None where there is no such file, or a kill broke off its first line."""
    try:
        with path.open(encoding="utf-8") as lines:
            return dict(json.loads(lines.readline())["settings"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
