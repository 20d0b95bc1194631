"""A file of summaries that is written as they come: what was computed or paid for is kept if the command is killed."""

import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from popi.data.jsonl import refuse_existing
from popi.data.store import finder
from popi.errors import DataError, PopiError, UpstreamError
from popi.inference_model import InferenceModel
from popi.runs.rows import RowFile
from popi.signals.types import User
from popi.summary import Summary

WINDOW = 1024
"""Users in memory at a time; as many as a local model encodes at a time."""
NOWHERE = 2**64 - 1
"""Where the line of a user without a summary starts."""


def summary_row(user_id: str, summary: Summary) -> dict[str, Any]:
    """A user's summary as one JSON object; `left_out` is there where something was."""
    left_out = {"left_out": list(summary.left_out)} if summary.left_out else {}
    return left_out | {
        "user_id": user_id,
        "summary": summary.text,
        "tokens": summary.tokens,
        "signals_used": summary.signals_used,
        "signals_dropped": list(summary.signals_dropped),
        "abstained": summary.abstained,
    }


class Rows(Sequence[dict[str, Any]]):
    """The rows of a file, read when they are asked for.

    Args:
        path: the file.
        starts: where each row starts in it, in bytes.
    """

    def __init__(self, path: Path, starts: "array[int]") -> None:
        self.path, self._starts = path, starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return Rows(self.path, self._starts[key])
        with self.path.open("rb") as file:
            file.seek(self._starts[key])
            return json.loads(file.readline())


class SummaryFile:
    """JSON lines of summaries by one model: added to in any order, at the end put into the users' order. Held in memory
    is where each line starts: 8 bytes per user.

    Args:
        path: the file; None writes none.
        model: the model that writes them; a row names it, so that two models' rows are never mixed by a resume.
        force: overwrite a file that exists. That happens with the first summary: a run without one leaves it.
        resume: go on with the file, if it exists.
        show: without a path, told each row in the users' order, as soon as those before it are there.

    Raises:
        DataError: the file exists and neither `force` nor `resume` is set; or it holds something else than
            summaries by this model.
    """

    def __init__(
        self,
        path: Path | None,
        model: str,
        *,
        force: bool = False,
        resume: bool = False,
        show: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.path, self.model, self.show = path, model, show if path is None else None
        self._next, self._pending = 0, dict[int, dict[str, Any] | None]()
        self._starts = array("Q")  # of each user's line, as far as it is known
        self._before = self._added = False  # rows that were there, and rows of this run
        if path is not None:
            self._file = RowFile(path)
            refuse_existing(path, force or resume)
            if resume and path.exists():
                self._read()
                self._before = self._file.end > 0

    def missing(self, users: Sequence[User]) -> list[int]:
        """Indices of the users who have no summary yet.

        Raises:
            DataError: a row is of a user who is not among them, or user ids repeat, so that rows can't be told apart.
        """
        self.expect(users)
        return list(self.waiting(users))

    def expect(self, users: Sequence[User]) -> None:
        """Find whose the rows are that the file holds; raises as `missing`."""
        if not self._before or self.path is None:
            return
        find = finder(users)
        if find is None:
            raise DataError(f"{self.path}: can't be resumed: user ids repeat among the users, as windows of rows do")
        self._reach(len(users) - 1)
        for start, row in self._file.read():
            user_id = row["user_id"]
            if (index := find(user_id)) is None:
                raise DataError(
                    f"{self.path}: can't be resumed: holds user {user_id!r}, who is not among these users; "
                    "name another file with --out"
                )
            self._starts[index] = start

    def waiting(self, users: Sequence[User]) -> Iterator[int]:
        """Indices of the users who have no summary yet, once `expect` was asked."""
        return (index for index in range(len(users)) if not self._has(index))

    def add(self, index: int, user: User, summary: Summary) -> None:
        """Keep the summary of `users[index]`; in the file at once."""
        row = summary_row(user.user_id, summary) | {"model": self.model}
        if self.path is None:
            self._reach(index)
            self._starts[index] = 0
            self._show(index, row)
            return
        self._reach(index)
        self._starts[index] = self._file.end
        try:
            self._file.append([row])
        except OSError as error:
            self._starts[index] = NOWHERE
            raise DataError(f"{self.path}: can't be written ({error.strerror or error})") from None
        self._added = True

    def skip(self, index: int) -> None:
        """There will be no summary of `users[index]`."""
        self._show(index, None)

    def finish(self) -> Sequence[dict[str, Any]]:
        """Put the rows into the users' order, in the file too, and return them as they stand in the file."""
        if self.path is None:
            return []
        if self._added:
            self._file.close()
            self._sort(self.path)
            self._added = False
        starts = array("Q", (start for start in self._starts if start != NOWHERE))
        return Rows(self.path, starts) if starts else []

    @property
    def written(self) -> int:
        """How many users have a summary."""
        return sum(start != NOWHERE for start in self._starts)

    def _has(self, index: int) -> bool:
        return index < len(self._starts) and self._starts[index] != NOWHERE

    def _reach(self, index: int) -> None:
        self._starts.extend([NOWHERE] * (index + 1 - len(self._starts)))

    def _show(self, index: int, row: dict[str, Any] | None) -> None:
        if not self.show:
            return
        self._pending[index] = row
        while self._next in self._pending:
            if (shown := self._pending.pop(self._next)) is not None:
                self.show(shown)
            self._next += 1

    def _sort(self, path: Path) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        end = 0
        try:
            with path.open("rb") as file, partial.open("wb") as ordered:
                for index, start in enumerate(self._starts):
                    if start == NOWHERE:
                        continue
                    file.seek(start)
                    line = file.readline()
                    ordered.write(line)
                    self._starts[index] = end
                    end += len(line)
            os.replace(partial, path)
        except OSError as error:
            raise DataError(f"{path}: can't be written ({error.strerror or error})") from None
        finally:
            partial.unlink(missing_ok=True)

    def _read(self) -> None:
        """See that the file holds summaries by this model; what stands behind is a line that a kill broke off."""
        number = 0
        try:
            for number, (_, row) in enumerate(self._file.read(), start=1):
                if not {"model", "user_id", "summary"} <= row.keys():
                    raise ValueError
                if row["model"] != self.model:
                    raise DataError(
                        f"{self.path}: line {number} was written by {row['model']!r}, not by {self.model!r}; "
                        "name another file with --out"
                    )
        except ValueError as error:
            line = number if not str(error) else number + 1
            raise DataError(
                f"{self.path}: line {line} is no summary that says by which model; name another file with --out"
            ) from None
        except OSError as error:
            raise DataError(f"{self.path}: can't be read ({error.strerror or error})") from None


def write_summaries(
    model: InferenceModel,
    users: Sequence[User],
    file: SummaryFile,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> tuple[int, dict[str, list[str]]]:
    """Have the model summarise the users that the file lacks, `WINDOW` of them in memory at a time.

    Args:
        model: what is asked. Once it is an API of which all of a window failed, the users behind get its last error
            without being sent.
        users: all users, those that the file has among them.
        file: gets each summary as it comes, and all in order at the end, however that came.
        progress: told how many of how many users are done.

    Returns:
        How many users have a summary; and for each reason of failure the ids of the users who have none for it.
    """
    file.expect(users)
    of = sum(1 for _ in file.waiting(users))
    waiting, done = file.waiting(users), 0
    reasons: dict[str, list[str]] = {}
    down: PopiError | None = None

    def tell() -> None:
        nonlocal done
        done += 1
        progress(done, of)

    try:
        while window := list(islice(waiting, WINDOW)):
            people = [users[index] for index in window]
            failed = _ask(down or model, window, people, file, tell)
            for position in sorted(failed):
                reasons.setdefault(str(failed[position]), []).append(people[position].user_id)
            last = failed.get(len(people) - 1)
            if len(failed) == len(people) and isinstance(last, UpstreamError) and (last.for_all or last.passing):
                down = last
    finally:
        file.finish()
    return file.written, reasons


def _ask(
    model: InferenceModel | PopiError,
    window: Sequence[int],
    people: Sequence[User],
    file: SummaryFile,
    tell: Callable[[], None],
) -> dict[int, PopiError]:
    """Summaries of the users at `window` into the file; an error in place of a model goes to each. Returns those that
    failed, by their place in the window.
    """
    failed: dict[int, PopiError] = {}

    def keep(position: int, result: Summary | PopiError) -> None:
        if isinstance(result, PopiError):
            failed[position] = result
            file.skip(window[position])
        else:
            file.add(window[position], people[position], result)
        tell()

    if isinstance(model, PopiError):
        for position in range(len(people)):
            keep(position, model)
    else:
        model.summarize_each([user.signals for user in people], on_result=keep)
    return failed
