"""JSON lines that are kept as they come, under the settings that made them."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from popi.errors import RunError
from popi.runs.run_directory import differences, write_jsonl

Row = dict[str, Any]


class KeptRows:
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
        self._file: IO[str] | None = None
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
            *lines, _broken_off = self.path.read_text(encoding="utf-8").split("\n")
            kept, *rows = [json.loads(line) for line in lines] or [{"settings": self.settings}]
            settings, keys = dict(kept["settings"]), [self._key(row) for row in rows]
            if len(set(keys)) < len(keys):
                raise ValueError("a row stands there twice")
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path}: damaged ({error!r}); move it away, or {self.advice}") from None
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
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(self.path, [{"settings": self.settings}, *self.rows.values()])
            self._file = self.path.open("a", encoding="utf-8")
        found = list(rows)
        self.rows |= {self._key(row): row for row in found}
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
        self._file.flush()

    def close(self) -> None:
        """Close the file; a row that is added later opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def settings_of(path: Path) -> dict[str, Any] | None:
    """The settings that rows were kept under; None where there is no such file, or a kill broke off its first line."""
    try:
        with path.open(encoding="utf-8") as lines:
            return dict(json.loads(lines.readline())["settings"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
