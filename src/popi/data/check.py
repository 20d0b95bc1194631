"""Check a file of users and report every problem at once; training refuses a file with problems.

Checks for bad lines; duplicate user ids; duplicate signals, signal ids or targets of a user; pairs of two equal
responses; targets that also appear among the same user's signals, exactly, swapped or nearly (defined in
popi.signals.similarity); and users that appear in two splits. A bad line does not stop the check.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from popi.data.jsonl import MIXED, Problem, duplicate_user, listing, read_lines
from popi.data.places import hub_files, on_hub
from popi.data.store import VERSION, Progress, StoredUsers, StoreWriter, replace_store
from popi.data.windows import PreferenceRow
from popi.errors import DataError
from popi.signals.similarity import leak
from popi.signals.types import PairSignal, User


@dataclass
class Report:
    """The contents of a file, and its problems."""

    path: Path
    users: int = 0
    windows: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    targets: int = 0
    rows: int = 0
    rows_left_over: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def summary(self) -> list[str]:
        """Lines for a terminal: the file's contents, then the number of problems of each kind."""
        counts = ", ".join(f"{number} {kind}" for kind, number in self.signals.most_common()) or "none"
        lines = [f"{self.path}: {self.users} users, {self.targets} targets; signals: {counts}"]
        if self.rows:
            lines.append(f"  cut from {self.rows} preference rows: {self.windows} windows, {self.rows_left_over} left")
        kinds = Counter(problem.kind for problem in self.problems)
        lines += [f"  {kind}: {number}" for kind, number in kinds.most_common()] or ["  no problems"]
        return lines


def check(
    path: str | Path,
    against: Iterable[str | Path] = (),
    *,
    signals_per_user: int = 4,
    targets_per_user: int = 4,
    require_targets: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Read all of `path` and report its problems.

    Args:
        path: a JSONL file of users, or of preference rows with a `user_id`.
        against: files of other splits, which must not share users with `path`.
        signals_per_user: for preference rows: signals per window.
        targets_per_user: for preference rows: targets per window.
        require_targets: report users without targets as problems (for training).
        progress: called with the progress so far.

    Raises:
        DataError: if a file can't be read at all.
    """
    writer = StoreWriter(limit=0)
    return _examine(path, against, signals_per_user, targets_per_user, require_targets, writer, progress, compared=True)


def load_users(
    path: str | Path,
    against: Iterable[str | Path] = (),
    *,
    signals_per_user: int = 4,
    targets_per_user: int = 4,
    require_targets: bool = True,
    limit: int | None = None,
    cache: Path | None = None,
    report: Progress | None = None,
) -> StoredUsers:
    """Check a file and return its users as a store on disk. The other arguments are those of `check`.

    Args:
        limit: maximum users to return; all are checked.
        cache: a folder in which to cache the store until one of the files changes. Without it the store is a
            temporary file.
        report: called with the progress so far.

    Raises:
        DataError: if the file can't be read, has no users, or has problems, which the message lists.
    """
    path, others = Path(path), [Path(other) for other in against]

    def write(writer: StoreWriter) -> None:
        checked = _examine(path, others, signals_per_user, targets_per_user, require_targets, writer, report)
        if not checked.ok:
            raise DataError(listing(path, checked.problems))

    if cache is None:
        writer = StoreWriter(limit=limit)
        write(writer)
        return writer.finish()
    settings = [VERSION, signals_per_user, targets_per_user, require_targets, limit]
    name = f"{path.stem}-{_hash(json.dumps([settings, *(str(file.resolve()) for file in (path, *others))]).encode())}"
    try:
        files = [file for place in (path, *others) for file in (hub_files(place) if on_hub(place) else [place])]
        content = _hash(b"".join(map(_file_hash, files)))
    except OSError as error:
        raise DataError(f"{error.filename}: can't be read ({error.strerror or error})") from None
    return StoredUsers.open(replace_store(cache, name, content, write, limit, path))


def _file_hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _examine(
    path: str | Path,
    against: Iterable[str | Path],
    signals_per_user: int,
    targets_per_user: int,
    require_targets: bool,
    writer: StoreWriter,
    progress: Progress | None = None,
    compared: bool = False,
) -> Report:
    report = Report(Path(path))
    others = list(against)
    for place, other in enumerate(others):
        bad = _note_other_split(other, place, writer, progress)
        if bad and compared:  # `load_users` need not report these: its callers load the other file, too
            message = f"{bad} bad lines of {other} can't be compared and may hold the same users; fix that file"
            report.problems.append(Problem(0, "lines not compared", "", message))
    for row_number, parsed in read_lines(path, progress):
        if isinstance(parsed, list):
            report.problems.extend(parsed)
            continue
        person, first_line = writer.register(parsed.user_id, row_number)
        if others and first_line == row_number and (other_place := writer.other_split(parsed.user_id)) is not None:
            message = f"user {parsed.user_id!r} also appears in {others[other_place]}"
            report.problems.append(Problem(row_number, "user in two splits", "user_id", message))
        if bool(report.rows if isinstance(parsed, User) else report.users):
            report.problems.append(Problem(row_number, "bad line", "", MIXED))
        elif isinstance(parsed, PreferenceRow):
            report.rows += 1
            writer.add_row(parsed, person, row_number)
        else:
            if first_line != row_number:
                report.problems.append(duplicate_user(parsed.user_id, row_number, first_line))
            report.users += 1
            _examine_user(parsed, [row_number], report, require_targets)
            writer.add(parsed, person)
    if report.rows:
        for windows, left in writer.windows(signals_per_user, targets_per_user):
            report.users += 1
            report.windows += len(windows)
            report.rows_left_over += left
            for window, lines, person in windows:
                _examine_user(window, lines, report, require_targets)
                writer.add(window, person)
        if not report.windows:
            need = signals_per_user + targets_per_user
            report.problems.append(Problem(0, "nothing to use", "", f"no user has the {need} rows needed for a window"))
    if not report.users and not report.problems:
        report.problems.append(Problem(0, "nothing to use", "", "no users in this file"))
    report.problems.sort(key=lambda problem: problem.line)
    return report


def _examine_user(user: User, lines: Sequence[int], report: Report, require_targets: bool) -> None:
    """Add a user to the report. `lines`: the user's line, or for a window one line per signal and target."""
    window = len(lines) > 1

    def add(kind: str, part: str, index: int, message: str) -> None:
        line = lines[index + (len(user.signals) if part == "targets" else 0)] if window else lines[0]
        report.problems.append(Problem(line, kind, "" if window else f"{part}[{index}]", message))

    def name(index: int) -> str:
        return f"line {lines[index]}" if window else f"signals[{index}]"

    ids: dict[str, int] = {}
    contents: dict[str, int] = {}
    for index, signal in enumerate(user.signals):
        report.signals[signal.type] += 1
        if signal.id is not None and ids.setdefault(signal.id, index) != index:
            add("duplicate signal id", "signals", index, f"id {signal.id!r} is already used by {name(ids[signal.id])}")
        content = repr([value for key, value in signal if key not in ("id", "time")]) + signal.type
        if contents.setdefault(content, index) != index:
            add("duplicate signal", "signals", index, f"the same {signal.type} as {name(contents[content])}")
        if isinstance(signal, PairSignal) and signal.chosen.casefold() == signal.rejected.casefold():
            add("equal responses", "signals", index, "chosen and rejected are the same text")
    report.targets += len(user.targets)
    if require_targets and not user.targets:
        message = f"user {user.user_id!r} has no targets to train or test on"
        report.problems.append(Problem(lines[0], "no targets", "targets", message))
    pairs: dict[str, int] = {}
    for index, target in enumerate(user.targets):
        if (first := pairs.setdefault(target.model_dump_json(), index)) != index:
            original = f"line {lines[first + len(user.signals)]}" if window else f"targets[{first}]"
            add("duplicate target", "targets", index, f"the same target as {original}")
        if target.chosen.casefold() == target.rejected.casefold():
            add("equal responses", "targets", index, "chosen and rejected are the same text")
        for position, signal in enumerate(user.signals):
            if how := leak(target, signal):
                add("target among signals", "targets", index, f"{how} {name(position)}")
                break


def _note_other_split(path: str | Path, place: int, writer: StoreWriter, progress: Progress | None) -> int:
    """Record the users of another split. Returns the number of its bad lines, whose users are unknown."""
    bad = 0
    for _, parsed in read_lines(path, progress):
        if isinstance(parsed, list):
            bad += 1
        else:
            writer.note_other_split(parsed.user_id, place)
    return bad
