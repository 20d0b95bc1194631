"""Rows of one split of a set: a folder of files, one file, or a set on the Hugging Face hub.

JSON Lines and CSV need nothing but Python; parquet needs pyarrow, the hub needs datasets (both come with popi[train]).
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
"""Files that are read where a loader names them; a folder's are found by the suffixes of `popi.data.places`."""


@dataclass(frozen=True)
class Row:
    """One row as it arrived.

    Attributes:
        file: path, or `hub id:split`.
        unit: what `number` counts, from 1: a `line` of text or a `row` of a table.
        values: column → value.
        typed: values have types; those of CSV are text, whatever they say.
    """

    file: str
    unit: str
    number: int
    values: dict[str, Any]
    typed: bool = True


def parse(row: Row, model: type[Model]) -> Model | list[Problem]:
    """The row as a `model`, strictly where it has types; or what is wrong with it, one problem a field."""
    try:
        return model.model_validate(row.values, strict=row.typed)
    except ValidationError as error:
        found = explain(error, row.number, b"", row.values, model)
        return [replace(problem, kind="bad row", file=row.file, unit=row.unit) for problem in found]


def has_split(place: str, split: str) -> bool:
    """Whether a local folder or file holds a split; of the hub it is assumed."""
    path = Path(place)
    return not path.exists() or (path.is_file() and split == "train") or bool(path.is_dir() and files_of(path, split))


@dataclass(frozen=True)
class Columns:
    """What is read of a table; no other column is."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def of(self, file: str, names: list[str]) -> list[str] | Problem:
        """Those that a table has; a problem where it lacks a needed one."""
        if lacking := [name for name in self.needed if name not in names]:
            message = f"no column {', '.join(map(repr, lacking))}; its columns: {', '.join(names)}"
            return Problem(0, "bad file", "", message, file=file)
        return [name for name in (*self.needed, *self.optional) if name in names]


def read(place: str, split: str, columns: Columns, *, own_file: bool = False) -> Iterator[Row | Problem]:
    """Every row of a split; lines that are not JSON objects, and tables that lack a column, as problems.

    Args:
        place: a folder, a file, or a hub id (`owner/name`).
        split: in a folder the files that carry this word in their name or folder (`test-00000-of-00001.parquet`,
            `test.jsonl`, `test/0.parquet`); where no file names a split, all are `train`.
        columns: what is read of a table. Rows of JSON come whole.
        own_file: `place` was named for this split, so that one file alone is it.

    Raises:
        DataError: nothing is there, a shard is missing, a file can't be read, or the hub can't be reached.
    """
    path = Path(place)
    if path.is_file():
        if split != "train" and not own_file:
            raise DataError(f"{place}: is one file, read as the train split; say where the split {split!r} lies")
        files = [path]
    elif path.is_dir():
        files = files_of(path, split)
        if not files:
            raise DataError(
                f"{place}: no parquet or JSONL file of split {split!r} in this folder; it holds: {splits_in(path)}"
            )
    else:
        yield from _hub(place, split, columns)
        return
    for file in files:
        if file.suffix in DELIMITERS:
            yield from _delimited(file, columns)
        else:
            yield from (_parquet(file, columns) if file.suffix == ".parquet" else _json(file))


# -- kinds of file --------------------------------------------------------------------------------------------------


def _json(file: Path) -> Iterator[Row | Problem]:
    """JSON Lines; or a file that is one list of objects."""
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
                    told = str(error).replace("line 1 ", "")
                    yield Problem(number, "bad row", "", f"not JSON: {told}", repr(line.strip()[:80]), str(file))
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from None


def _delimited(file: Path, columns: Columns) -> Iterator[Row | Problem]:
    """CSV with a header; or TSV without one, whose columns are `columns.needed` in their order."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".tsv":
                table = csv.DictReader(lines, columns.needed, delimiter="\t", quoting=csv.QUOTE_NONE)
            else:
                table = csv.DictReader(lines)
                if isinstance(wanted := columns.of(str(file), list(table.fieldnames or [])), Problem):
                    yield wanted
                    return
            for values in table:
                given = {name: value for name, value in values.items() if name is not None and value is not None}
                yield Row(str(file), "line", table.line_num, given, typed=False)
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
        wanted = columns.of(str(file), table.schema_arrow.names)
        if isinstance(wanted, Problem):
            yield wanted
            return
        number = 1
        for batch in table.iter_batches(batch_size=1024, columns=wanted):
            yield from _rows(str(file), "row", batch.to_pylist(), number)
            number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: can't be read as parquet ({str(error).splitlines()[0]})") from None


def _hub(place: str, split: str, columns: Columns) -> Iterator[Row | Problem]:
    if not HUB_ID.fullmatch(place):
        raise DataError(f"{place}: there is no such file or folder, and it is no hub id (owner/name)")
    try:
        import datasets
    except ImportError:
        raise DataError(f"{place}: reading from the hub needs datasets; pip install 'popi[train]'") from None
    try:
        table = datasets.load_dataset(place, split=split)
    except Exception as error:  # the hub's client raises errors of many libraries, none of them the user's fault
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{place}: not a file or folder here, and as a hub set its split {split!r} can't be loaded ({told}); "
            "pass the path of a local copy (parquet or JSONL) instead"
        ) from None
    wanted = columns.of(f"{place}:{split}", table.column_names)
    if isinstance(wanted, Problem):
        yield wanted
    else:
        yield from _rows(f"{place}:{split}", "row", table.select_columns(wanted))
