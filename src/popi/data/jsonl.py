"""Read and write users as JSON Lines, with strict validation that explains each bad line.

A line is a user (`popi.signals.types.User`) or a TRL preference row with a `user_id`
(`popi.data.windows.PreferenceRow`); a file holds only one kind. A file may be gzipped (`.gz`) or parquet, where each
row counts as a line, or a split of a Hugging Face dataset (`owner/name`, `owner/name:test`), whose lines are numbered
continuously across its files.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from popi.data.places import hub_files, on_hub
from popi.data.windows import PreferenceRow
from popi.errors import DataError
from popi.signals.types import KINDS, InteractionSignal, PairSignal, TargetPair, User, wrong_roles

if TYPE_CHECKING:
    from popi.data.store import Progress, StoredUsers

MAX_LISTED = 20
"""Maximum problems listed in an error message."""
PROGRESS_EVERY = 1_000
"""Lines between progress reports."""
MAX_NAME_LENGTH = 80
"""Maximum characters of an unknown field's name to quote in a message."""
MAX_EXPLAINED = 1_000
"""Maximum validation errors explained per line."""


@dataclass(frozen=True)
class Problem:
    """A problem in a file.

    Attributes:
        line: line number, from 1; 0 for the file as a whole.
        kind: `bad line`, `bad row`, or a kind from popi.data.check.
        field: where in the line (``signals[2].prompt``); empty for the line as a whole.
        message: what is wrong, and what is expected.
        arrived: the offending value, shortened.
        file: the file's name, if there are several.
        unit: what `line` counts: `line` of text or `row` of a table.
    """

    line: int
    kind: str
    field: str
    message: str
    arrived: str = ""
    file: str = ""
    unit: str = "line"

    def __str__(self) -> str:
        parts = (self.file, f"{self.unit} {self.line}" if self.line else "", self.field)
        where = ", ".join(part for part in parts if part)
        text = f"{where}: {self.message}" if where else self.message
        return text + (f"; got {self.arrived}" if self.arrived else "")


def read_lines(
    path: str | Path, report: "Progress | None" = None
) -> Iterator[tuple[int, User | PreferenceRow | list[Problem]]]:
    """Yield the number of each non-blank line and its user or row, or its problems.

    `report` is called with the percentage of the file read.

    Raises:
        DataError: if the file can't be read at all.
    """
    try:
        for number, line in enumerate(_lines(Path(path), report), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, _parse(line.rstrip(), number)
    except (OSError, EOFError, zlib.error) as error:  # the latter two: an invalid or truncated .gz file
        raise DataError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def _lines(path: Path, report: "Progress | None") -> Iterator[bytes]:
    """The lines of a JSONL file (possibly .gz), the rows of a parquet file as JSON lines, or the lines of all files of
    a hub split.
    """
    if on_hub(path):
        for part in hub_files(path):
            yield from _lines(part, report)
        return

    def update(done: int, total: int) -> None:
        if report is not None:
            report(f"reading {path.name}", 100 * done // max(total, 1), 100)

    if path.suffix == ".parquet":
        yield from _parquet_lines(path, update)
        return
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        opened: Any = gzip.open(file) if path.suffix == ".gz" else file
        for number, line in enumerate(opened):
            yield line
            if number % PROGRESS_EVERY == 0:
                update(file.tell(), size)
        update(size, size)


def _parquet_lines(path: Path, update: Callable[[int, int], None]) -> Iterator[bytes]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: reading parquet needs pyarrow; pip install 'popi[train]', or pass JSONL") from None
    try:
        file, done = pyarrow.parquet.ParquetFile(path), 0
        for batch in file.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                yield json.dumps(_without_nulls(row), ensure_ascii=False, default=_as_text).encode()
            done += batch.num_rows
            update(done, file.metadata.num_rows)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: can't be read as parquet ({str(error).splitlines()[0]})") from None


def _without_nulls(value: Any) -> Any:
    """A parquet value without null fields: all structs in a column have the same fields, so unset ones are null."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _as_text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def read_users(path: str | Path, *, signals_per_user: int = 4, targets_per_user: int = 4) -> list[User]:
    """Read users; preference rows are cut into windows of `signals_per_user` signals and `targets_per_user` targets.

    Does not check the users' contents: `popi.data.check.load_users` also refuses duplicate signals and leaks.

    Raises:
        DataError: if the file can't be read, is empty, or has bad lines or duplicate users; the message lists them.
    """
    return list(open_users(path, signals_per_user=signals_per_user, targets_per_user=targets_per_user))


def open_users(
    path: str | Path, *, signals_per_user: int = 4, targets_per_user: int = 4, report: "Progress | None" = None
) -> "StoredUsers":
    """Like `read_users`, but the users are in a temporary file, so memory does not grow with their number."""
    from popi.data.store import StoreWriter  # imported here because serving uses `explain` but no store

    writer = StoreWriter()
    users, rows, left = 0, 0, 0
    problems: list[Problem] = []
    for number, parsed in read_lines(path, report):
        if isinstance(parsed, list):
            problems.extend(parsed)
            continue
        person, first = writer.register(parsed.user_id, number)
        if isinstance(parsed, User):
            users += 1
            if first != number:
                problems.append(duplicate_user(parsed.user_id, number, first))
            writer.add(parsed, person)
        else:
            rows += 1
            writer.add_row(parsed, person, number)
        if users and rows:
            raise DataError(f"{path}: line {number}: {MIXED}")
    if problems:
        raise DataError(listing(path, problems))
    for windows, rest in writer.windows(signals_per_user, targets_per_user):
        left += rest
        for user, _, person in windows:
            writer.add(user, person)
    if rows and not writer.count:
        need = signals_per_user + targets_per_user
        raise DataError(f"{path}: {left} preference rows, but no user has the {need} rows needed for a window")
    if not writer.count:
        raise DataError(f"{path}: no users in this file")
    return writer.finish()


def duplicate_user(user_id: str, line: int, first: int) -> Problem:
    """The problem of a user who appears on two lines."""
    message = f"user {user_id!r} already appears on line {first}; put all signals on one line"
    return Problem(line, "duplicate user", "user_id", message)


MIXED = "users and preference rows in one file; put each kind in a separate file"


def listing(path: str | Path, problems: list[Problem]) -> str:
    """The problems of a file as one message, with the first ones listed."""
    lines = [f"{path}: {len(problems)} problem{'s' if len(problems) != 1 else ''}"]
    lines += [f"  {problem}" for problem in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"  … and {len(problems) - MAX_LISTED} more; `popi data check` lists them all")
    return "\n".join(lines)


def write_users(path: str | Path, users: Iterable[User], *, force: bool = False) -> None:
    """Write one user per line, omitting fields that are None.

    Raises:
        DataError: if the file exists and `force` is not set, or it can't be written.
    """
    write_rows(path, (user.model_dump(exclude_none=True) for user in users), force=force)


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]], *, force: bool = False) -> None:
    """Write one JSON object per line, atomically.

    Raises:
        DataError: if the file exists and `force` is not set, or it can't be written.
    """
    path = Path(path)
    refuse_existing(path, force)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with open(partial, "w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: can't be written ({error.strerror or error})") from None


def refuse_existing(path: str | Path, force: bool = False) -> None:
    """Raise DataError if `path` can't be written, or exists and `force` is not set."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; choose a file name")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; create it first, or choose another file")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"{path}: the folder {path.parent} can't be written to; choose another file")
    if path.exists() and not force:
        raise DataError(f"{path}: already exists; choose another file, or overwrite it with --force")


# -- one line -----------------------------------------------------------------------------------------------------


def _parse(line: bytes, number: int) -> User | PreferenceRow | list[Problem]:
    try:
        user = User.model_validate_json(line, strict=True)
        return _bad_roles(user, number) or user
    except ValidationError as error:
        wrong = error
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    is_row = isinstance(value, dict) and "signals" not in value and ("chosen" in value or "rejected" in value)
    if is_row:
        try:
            row = PreferenceRow.model_validate_json(line, strict=True)
            row.pair()
            return row
        except ValidationError as error:
            wrong = error
        except DataError as error:
            return [Problem(number, "bad line", "", str(error))]
    return explain(wrong, number, line, value, PreferenceRow if is_row else User)


def _bad_roles(user: User, number: int) -> list[Problem]:
    """Conversations that a chat template would later refuse or misread, in the middle of a run."""
    prompts = [
        (f"{part}[{i}].prompt", item.prompt)
        for part, items in (("signals", user.signals), ("targets", user.targets))
        for i, item in enumerate(items)
        if isinstance(item, PairSignal | InteractionSignal | TargetPair)
    ]
    return [
        Problem(number, "bad roles", field, wrong, _short(", ".join(message.role for message in prompt)))
        for field, prompt in prompts
        if not isinstance(prompt, str) and (wrong := wrong_roles(prompt))
    ]


def explain(error: ValidationError, number: int, line: bytes, value: Any, model: type[BaseModel]) -> list[Problem]:
    """Convert the first `MAX_EXPLAINED` pydantic errors to problems, one per field.

    For a union, only the error of the branch that matches the value's type is reported.

    Args:
        error: the error of validating `model`.
        number: the line's number.
        line: the raw line, for errors in the JSON itself.
        value: the parsed line.
        model: the expected model.
    """
    problems: dict[str, Problem] = {}
    lists: set[str] = set()  # fields with a problem in one of their items
    for item in error.errors(include_url=False)[:MAX_EXPLAINED]:
        kind, arrived = item["type"], item["input"]
        if kind == "json_invalid":
            text = re.sub(r"line 1 column", "column", item["msg"])
            try:
                line.decode()
            except UnicodeDecodeError as broken:
                text = f"not UTF-8 text ({broken.reason} at byte {broken.start + 1}); save the file as UTF-8"
            return [Problem(number, "bad line", "", text, _short(line.decode("utf-8", "replace").strip()))]
        field = _field(item["loc"], value)
        name = field.rpartition(".")[2]
        is_union = item["loc"][-1:] != (name,)  # otherwise the field only accepts text
        if kind in ("string_type", "list_type") and name in ("prompt", "chosen", "rejected") and is_union:
            # Of "text or messages", both branches report an error; keep the one that matches the value's type.
            expected = str if kind == "string_type" else list
            if isinstance(arrived, (str, list)) and not isinstance(arrived, expected):
                continue
            message = "must be text or a list of chat messages"
        elif kind == "missing":
            message, arrived = "required, but missing", None
        elif kind == "extra_forbidden":
            message = "no such field"
        elif kind in ("model_type", "dict_type", "model_attributes_type"):
            fields = ", ".join(model.model_fields)
            message = "must be a JSON object" + ("" if field else f" with {fields}")
        elif kind == "union_tag_invalid":
            message = f"no such signal type; allowed: {item['ctx']['expected_tags']}"
            field, arrived = f"{field}.type", arrived.get("type") if isinstance(arrived, dict) else arrived
        elif kind == "union_tag_not_found":
            message = "has no type; allowed: pair, interaction, post, statement, demographic"
        elif kind.startswith("string_type"):
            message = "must be text"
        elif kind in ("string_too_short", "string_pattern_mismatch", "too_short"):
            message = "must not be empty"
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        if field in problems or (field in lists and kind in ("string_type", "list_type")):
            continue
        lists.update(_field(item["loc"][:n], value) for n, part in enumerate(item["loc"]) if isinstance(part, int))
        problems[field] = Problem(number, "bad line", field, message, "" if kind == "missing" else _short(arrived))
    return list(problems.values())


def _field(loc: tuple[str | int, ...], value: Any) -> str:
    """``('signals', 0, 'pair', 'prompt', 'constrained-str')`` → ``signals[0].prompt``: only keys of the line itself."""
    name = ""
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            name += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif part in KINDS or (depth == 2 and loc[0] == "signals"):
            continue  # the tags of the unions of messages and of signals
        elif isinstance(value, dict):
            name += ("." if name else "") + part[:MAX_NAME_LENGTH]
            value = value.get(part)
    return name


def _short(value: Any, limit: int = 80) -> str:
    text = value if isinstance(value, str) else ""
    if not isinstance(value, str):
        for piece in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
            text += piece[: limit + 1]
            if len(text) > limit:
                break
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return repr(text) if isinstance(value, str) else text
