"""A file of summaries that is written as they come: what was computed or paid for is kept if the command is killed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from popi.data.jsonl import refuse_existing, write_rows
from popi.errors import DataError, PopiError
from popi.inference_model import ApiInferenceModel, InferenceModel
from popi.signals.types import User
from popi.summary import Summary


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


class SummaryFile:
    """JSON lines of summaries by one model: added to in any order, at the end put into the users' order.

    Args:
        path: the file; None keeps the rows in memory.
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
        self._next, self._skipped = 0, set[int]()
        self.rows: dict[int, dict[str, Any]] = {}
        self._file: IO[str] | None = None
        self._before: list[dict[str, Any]] = []
        if path is not None:
            refuse_existing(path, force or resume)
            if resume and path.exists():
                self._before = self._read(path)

    def missing(self, users: Sequence[User]) -> list[int]:
        """Indices of the users who have no summary yet.

        Raises:
            DataError: a row is of a user who is not among them, or user ids repeat, so that rows can't be told apart.
        """
        if not self._before:
            return list(range(len(users)))
        index = {user.user_id: i for i, user in enumerate(users)}
        if len(index) < len(users):
            raise DataError(f"{self.path}: can't be resumed: user ids repeat among the users, as windows of rows do")
        for row in self._before:
            if row["user_id"] not in index:
                raise DataError(
                    f"{self.path}: can't be resumed: holds user {row['user_id']!r}, who is not among these users; "
                    "name another file with --out"
                )
            self.rows[index[row["user_id"]]] = row
        return [i for i in range(len(users)) if i not in self.rows]

    def add(self, index: int, user: User, summary: Summary) -> None:
        """Keep the summary of `users[index]`; in the file at once."""
        self.rows[index] = row = summary_row(user.user_id, summary) | {"model": self.model}
        if self.path is None:
            self._show()
            return
        if self._file is None:
            write_rows(self.path, self._before, force=True)  # without a line that a kill broke off
            self._file = open(self.path, "a", encoding="utf-8")
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def skip(self, index: int) -> None:
        """There will be no summary of `users[index]`."""
        self._skipped.add(index)
        self._show()

    def _show(self) -> None:
        while self.show and (self._next in self.rows or self._next in self._skipped):
            if self._next in self.rows:
                self.show(self.rows[self._next])
            self._next += 1

    def finish(self) -> list[dict[str, Any]]:
        """Put the rows into the users' order, in the file too, and return them."""
        rows = [self.rows[index] for index in sorted(self.rows)]
        if self._file is not None and self.path is not None:
            self._file.close()
            write_rows(self.path, rows, force=True)
        return rows

    def _read(self, path: Path) -> list[dict[str, Any]]:
        try:
            *lines, _broken_off = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror or error})") from None
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                written_by = row["model"], row["user_id"], row["summary"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataError(
                    f"{path}: line {number} is no summary that says by which model; name another file with --out"
                ) from None
            if written_by[0] != self.model:
                raise DataError(
                    f"{path}: line {number} was written by {written_by[0]!r}, not by {self.model!r}; "
                    "name another file with --out"
                )
            rows.append(row)
        return rows


def write_summaries(
    model: InferenceModel | ApiInferenceModel,
    users: Sequence[User],
    file: SummaryFile,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Have the model summarise the users that the file lacks.

    Args:
        model: what is asked.
        users: all users, those that the file has among them.
        file: gets each summary as it comes, and all in order at the end, however that came.
        progress: told how many of how many users are done.

    Returns:
        All rows; and for each reason of failure the ids of the users who have no summary for it.
    """
    missing = file.missing(users)
    done = 0
    failures: dict[int, PopiError] = {}

    def keep(position: int, result: Summary | PopiError) -> None:
        nonlocal done
        done += 1
        index = missing[position]
        if isinstance(result, PopiError):
            failures[index] = result
            file.skip(index)
        else:
            file.add(index, users[index], result)
        progress(done, len(missing))

    try:
        model.summarize_each([users[index].signals for index in missing], on_result=keep)
    finally:
        rows = file.finish()
    reasons: dict[str, list[str]] = {}
    for index in sorted(failures):
        reasons.setdefault(str(failures[index]), []).append(users[index].user_id)
    return rows, reasons
