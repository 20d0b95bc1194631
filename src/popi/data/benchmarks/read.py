"""Read the rows of one split: from a folder of files, a single file, or a Hugging Face dataset.

JSON Lines and CSV have no dependencies; parquet needs pyarrow and the hub needs datasets (both part of popi[train]).
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from popi.data.jsonl import Problem, explain
from popi.data.places import HUB_ID, files_of, splits_in
from popi.errors import DataError

Model = TypeVar("Model", bound=BaseModel)
DELIMITERS = (".csv", ".tsv")
"""File types that are only read if a loader names the file; folders are searched for `popi.data.places.SUFFIXES`."""


@dataclass(frozen=True)
class Row:
    """An unvalidated row.

    Attributes:
        file: path, or `hub id:split`.
        unit: what `number` counts, from 1: a `line` of text or a `row` of a table.
        values: column → value.
        typed: whether values have types; in CSV, all are text.
    """

    file: str
    unit: str
    number: int
    values: dict[str, Any]
    typed: bool = True


def parse(row: Row, model: type[Model]) -> Model | list[Problem]:
    """The row as a `model`, validated strictly if it is typed; or its problems, one per field."""
    try:
        return model.model_validate(row.values, strict=row.typed)
    except ValidationError as error:
        problems = explain(error, row.number, b"", row.values, model)
        return [replace(problem, kind="bad row", file=row.file, unit=row.unit) for problem in problems]


def has_split(place: str, split: str) -> bool:
    """Whether a local folder or file holds a split; assumed true for the hub."""
    path = Path(place)
    return not path.exists() or (path.is_file() and split == "train") or bool(path.is_dir() and files_of(path, split))


@dataclass(frozen=True)
class Columns:
    """The columns to read from a table."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def of(self, file: str, names: list[str]) -> list[str] | Problem:
        """The columns present in a table with these `names`; a problem if a needed one is missing."""
        if missing := [name for name in self.needed if name not in names]:
            message = f"no column {', '.join(map(repr, missing))}; its columns: {', '.join(names)}"
            return Problem(0, "bad file", "", message, file=file)
        return [name for name in (*self.needed, *self.optional) if name in names]


def read(place: str, split: str, columns: Columns, *, own_file: bool = False) -> Iterator[Row | Problem]:
    """Yield every row of a split; lines that are not JSON objects, and tables without a needed column, are problems.

    Args:
        place: a folder, a file, or a hub id (`owner/name`).
        split: selects the files of a folder whose name or parent folder contains this word
            (`test-00000-of-00001.parquet`, `test.jsonl`, `test/0.parquet`); if no file names a split, all are `train`.
        columns: the columns to read from a table. JSON rows are returned with all fields.
        own_file: `place` was configured for this split, so a single file is the whole split.

    Raises:
        DataError: if `place` does not exist, a shard is missing, a file can't be read, or the hub can't be reached.
    """
    path = Path(place)
    if path.is_file():
        if split != "train" and not own_file:
            raise DataError(f"{place}: a single file is read as the train split; set a path for the split {split!r}")
        files = [path]
    elif path.is_dir():
        files = files_of(path, split)
        if not files:
            raise DataError(
                f"{place}: this folder has no parquet or JSONL file of split {split!r}; it holds: {splits_in(path)}"
            )
    else:
        yield from _hub(place, split, columns)
        return
    for file in files:
        if file.suffix in DELIMITERS:
            yield from _delimited(file, columns)
        else:
            yield from (_parquet(file, columns) if file.suffix == ".parquet" else _json(file))


# -- file types -----------------------------------------------------------------------------------------------------


def _json(file: Path) -> Iterator[Row | Problem]:
    """JSON Lines, or a single list of objects."""
    try:
        with open(file, encoding="utf-8-sig") as lines:
            if file.suffix == ".json" and lines.read(1) == "[":
                lines.seek(0)
                yield from _rows(str(file), "row", json.load(lines))
                return
            lines.seek(0)
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield from _rows(str(file), "line", [json.loads(line)], number)
                except (ValueError, RecursionError) as error:
                    reason = str(error).replace("line 1 ", "")
                    yield Problem(number, "bad row", "", f"not JSON: {reason}", repr(line.strip()[:80]), str(file))
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from None


def _delimited(file: Path, columns: Columns) -> Iterator[Row | Problem]:
    """CSV with a header, or TSV without one, whose columns are `columns.needed` in that order."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".tsv":
                table = csv.DictReader(lines, columns.needed, delimiter="\t", quoting=csv.QUOTE_NONE)
            else:
                table = csv.DictReader(lines)
                if isinstance(selected := columns.of(str(file), list(table.fieldnames or [])), Problem):
                    yield selected
                    return
            for values in table:
                present = {name: value for name, value in values.items() if name is not None and value is not None}
                yield Row(str(file), "line", table.line_num, present, typed=False)
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{file}: can't be read as {file.suffix[1:].upper()} ({error})") from None


def _rows(file: str, unit: str, values: Iterable[Any], start: int = 1) -> Iterator[Row | Problem]:
    for number, value in enumerate(values, start):
        if isinstance(value, dict):
            yield Row(file, unit, number, value)
        else:
            yield Problem(number, "bad row", "", "must be a JSON object", repr(value)[:80], file, unit)


def _parquet(file: Path, columns: Columns) -> Iterator[Row | Problem]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{file}: reading parquet needs pyarrow; pip install 'popi[train]', or pass JSONL") from None
    try:
        table = pyarrow.parquet.ParquetFile(file)
        selected = columns.of(str(file), table.schema_arrow.names)
        if isinstance(selected, Problem):
            yield selected
            return
        number = 1
        for batch in table.iter_batches(batch_size=1024, columns=selected):
            yield from _rows(str(file), "row", batch.to_pylist(), number)
            number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: can't be read as parquet ({str(error).splitlines()[0]})") from None


def _hub(place: str, split: str, columns: Columns) -> Iterator[Row | Problem]:
    if not HUB_ID.fullmatch(place):
        raise DataError(f"{place}: no such file or folder, and not a hub id (owner/name)")
    try:
        import datasets
    except ImportError:
        raise DataError(f"{place}: reading from the hub needs datasets; pip install 'popi[train]'") from None
    try:
        table = datasets.load_dataset(place, split=split)
    except Exception as error:  # the hub client raises exceptions of many libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{place}: no such file or folder, and loading split {split!r} of the hub dataset failed ({reason}); pass "
            "the path of a local copy (parquet or JSONL) instead"
        ) from None
    selected = columns.of(f"{place}:{split}", table.column_names)
    if isinstance(selected, Problem):
        yield selected
    else:
        yield from _rows(f"{place}:{split}", "row", table.select_columns(selected))
