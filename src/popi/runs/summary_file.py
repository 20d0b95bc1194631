"""A file of summaries, each written immediately, so that nothing computed or paid for is lost in an interruption."""

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
"""Maximum users in memory at a time, the number that a local model encodes at a time."""
NO_LINE = 2**64 - 1
"""Line offset of a user without a summary."""


def summary_row(user_id: str, summary: Summary) -> dict[str, Any]:
    """A user's summary as a JSON object; `removed_content` is only included if something was removed."""
    removed = {"removed_content": list(summary.removed_content)} if summary.removed_content else {}
    return removed | {
        "user_id": user_id,
        "summary": summary.text,
        "tokens": summary.tokens,
        "signals_used": summary.signals_used,
        "signals_dropped": list(summary.signals_dropped),
        "abstained": summary.abstained,
    }


class Rows(Sequence[dict[str, Any]]):
    """The rows of a file, read on access.

    Args:
        path: the file.
        starts: byte offset of each row.
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
    """JSON lines of one model's summaries, added in any order and finally sorted into the users' order. Memory holds
    the offset of each line: 8 bytes per user.

    Args:
        path: the file; None writes no file.
        model: the model that writes the summaries, recorded in each row so that resuming never mixes two models' rows.
        force: overwrite an existing file; this happens when the first summary is written.
        resume: resume the file if it exists.
        show: without a path, called with each row in the users' order, as soon as all previous ones are available.

    Raises:
        DataError: if the file exists and neither `force` nor `resume` is set, or it has anything other than summaries
        by
            this model.
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
        self._starts = array("Q")  # known offsets of users' lines
        self._before = self._added = False  # whether there are rows of an earlier run, and of this one
        if path is not None:
            self._file = RowFile(path)
            refuse_existing(path, force or resume)
            if resume and path.exists():
                self._read()
                self._before = self._file.end > 0

    def missing(self, users: Sequence[User]) -> list[int]:
        """Indices of the users who have no summary yet.

        Raises:
            DataError: if a row belongs to none of the users, or user ids repeat, so that rows are ambiguous.
        """
        self.expect(users)
        return list(self.waiting(users))

    def expect(self, users: Sequence[User]) -> None:
        """Match the file's rows to the users. Raises as `missing`."""
        if not self._before or self.path is None:
            return
        find = finder(users)
        if find is None:
            raise DataError(f"{self.path}: can't be resumed: the users' ids repeat, as those of windows do")
        self._reach(len(users) - 1)
        for start, row in self._file.read():
            user_id = row["user_id"]
            if (index := find(user_id)) is None:
                raise DataError(
                    f"{self.path}: can't be resumed: it has user {user_id!r}, who is not among these users; choose "
                    "another file with --out"
                )
            self._starts[index] = start

    def waiting(self, users: Sequence[User]) -> Iterator[int]:
        """Indices of the users who have no summary yet; call `expect` first."""
        return (index for index in range(len(users)) if not self._has(index))

    def add(self, index: int, user: User, summary: Summary) -> None:
        """Add the summary of `users[index]`, writing it to the file immediately."""
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
            self._starts[index] = NO_LINE
            raise DataError(f"{self.path}: can't be written ({error.strerror or error})") from None
        self._added = True

    def skip(self, index: int) -> None:
        """Record that there will be no summary of `users[index]`."""
        self._show(index, None)

    def finish(self) -> Sequence[dict[str, Any]]:
        """Sort the file into the users' order, and return its rows."""
        if self.path is None:
            return []
        if self._added:
            self._file.close()
            self._sort(self.path)
            self._added = False
        starts = array("Q", (start for start in self._starts if start != NO_LINE))
        return Rows(self.path, starts) if starts else []

    @property
    def written(self) -> int:
        """Number of users with a summary."""
        return sum(start != NO_LINE for start in self._starts)

    def _has(self, index: int) -> bool:
        return index < len(self._starts) and self._starts[index] != NO_LINE

    def _reach(self, index: int) -> None:
        self._starts.extend([NO_LINE] * (index + 1 - len(self._starts)))

    def _show(self, index: int, row: dict[str, Any] | None) -> None:
        if not self.show:
            return
        self._pending[index] = row
        while self._next in self._pending:
            if (pending := self._pending.pop(self._next)) is not None:
                self.show(pending)
            self._next += 1

    def _sort(self, path: Path) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        end = 0
        try:
            with path.open("rb") as file, partial.open("wb") as ordered:
                for index, start in enumerate(self._starts):
                    if start == NO_LINE:
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
        """Check that the file has only summaries by this model, apart from an incomplete last line."""
        number = 0
        try:
            for number, (_, row) in enumerate(self._file.read(), start=1):
                if not {"model", "user_id", "summary"} <= row.keys():
                    raise ValueError
                if row["model"] != self.model:
                    raise DataError(
                        f"{self.path}: line {number} was written by {row['model']!r}, not by {self.model!r}; "
                        "choose another file with --out"
                    )
        except ValueError as error:
            line = number if not str(error) else number + 1
            raise DataError(
                f"{self.path}: line {line} is not a summary with its model's name; choose another file with --out"
            ) from None
        except OSError as error:
            raise DataError(f"{self.path}: can't be read ({error.strerror or error})") from None


def write_summaries(
    model: InferenceModel,
    users: Sequence[User],
    file: SummaryFile,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[int, dict[str, list[str]]]:
    """Summarise the users that are missing in the file, with `WINDOW` of them in memory at a time.

    Args:
        model: the model. If it is an API and a whole window failed, all later users get its last error without being
            sent.
        users: all users, including those already in the file.
        file: receives each summary immediately, and is sorted at the end in any case.
        progress: called with the number of users done and their total.

    Returns:
        The number of users with a summary; and for each reason of failure, the ids of the users without one.
    """
    file.expect(users)
    total = sum(1 for _ in file.waiting(users))
    waiting, done = file.waiting(users), 0
    reasons: dict[str, list[str]] = {}
    down: PopiError | None = None

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    try:
        while window := list(islice(waiting, WINDOW)):
            people = [users[index] for index in window]
            failed = _summarize(down or model, window, people, file, advance)
            for position in sorted(failed):
                reasons.setdefault(str(failed[position]), []).append(people[position].user_id)
            last = failed.get(len(people) - 1)
            if len(failed) == len(people) and isinstance(last, UpstreamError) and (last.affects_all or last.transient):
                down = last
    finally:
        file.finish()
    return file.written, reasons


def _summarize(
    model: InferenceModel | PopiError,
    window: Sequence[int],
    people: Sequence[User],
    file: SummaryFile,
    advance: Callable[[], None],
) -> dict[int, PopiError]:
    """Write summaries of the users at `window` to the file; if `model` is an error, every user gets it. Returns the
    errors by position in the window.
    """
    failed: dict[int, PopiError] = {}

    def finish(position: int, result: Summary | PopiError) -> None:
        if isinstance(result, PopiError):
            failed[position] = result
            file.skip(window[position])
        else:
            file.add(window[position], people[position], result)
        advance()

    if isinstance(model, PopiError):
        for position in range(len(people)):
            finish(position, model)
    else:
        model.summarize_each([user.signals for user in people], on_result=finish)
    return failed
