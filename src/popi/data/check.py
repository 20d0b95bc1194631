"""Everything wrong with a file of users, in one report; training refuses a file whose report is not empty.

Looks for: bad lines; user ids that come twice; signals, signals' ids, or targets that come twice for one user;
pairs of two equal responses; targets that also stand among the same user's signals, exactly, swapped or nearly
(popi.signals.similarity says when); users that stand in two splits. A bad line never stops the report.
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
    """What a file holds and what is wrong with it."""

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
        """What the file holds, in lines for a terminal; then the problems counted by kind."""
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
    """Read `path` to its end and report all that is wrong with it.

    Args:
        path: a JSONL file of users, or of preference rows with a `user_id`.
        against: files of other splits; no user of theirs may stand in `path`.
        signals_per_user: for preference rows: signals of a window.
        targets_per_user: for preference rows: targets of a window.
        require_targets: a user without targets is a problem (training).
        progress: told how far it is.

    Raises:
        DataError: a file can't be read at all.
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
    """The users of a file whose report is empty, on disk; arguments as in `check`, and:

    Args:
        limit: users to keep; all are checked.
        cache: a folder that keeps what was read for the next time, as long as none of the files changes. Without one
            the users lie in a temporary file.
        report: told how far it is.

    Raises:
        DataError: the file can't be read, holds no users, or has problems; the message is the report.
    """
    path, others = Path(path), [Path(other) for other in against]

    def write(writer: StoreWriter) -> None:
        found = _examine(path, others, signals_per_user, targets_per_user, require_targets, writer, report)
        if not found.ok:
            raise DataError(listing(path, found.problems))

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
        bad = _note_elsewhere(other, place, writer, progress)
        if bad and compared:  # who loads users reads the other file, too, and is told its bad lines
            message = f"{bad} bad lines of {other} are not compared, and their users may stand here too: mend that file"
            report.problems.append(Problem(0, "lines not compared", "", message))
    for row_number, parsed in read_lines(path, progress):
        if isinstance(parsed, list):
            report.problems.extend(parsed)
            continue
        person, seen = writer.seen(parsed.user_id, row_number)
        if others and seen == row_number and (place_of := writer.elsewhere(parsed.user_id)) is not None:
            message = f"user {parsed.user_id!r} also stands in {others[place_of]}"
            report.problems.append(Problem(row_number, "user in two splits", "user_id", message))
        if bool(report.rows if isinstance(parsed, User) else report.users):
            report.problems.append(Problem(row_number, "bad line", "", MIXED))
        elif isinstance(parsed, PreferenceRow):
            report.rows += 1
            writer.hold(parsed, person, row_number)
        else:
            if seen != row_number:
                report.problems.append(duplicate_user(parsed.user_id, row_number, seen))
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
            report.problems.append(
                Problem(0, "nothing to use", "", f"no user has the {need} rows that one window takes")
            )
    if not report.users and not report.problems:
        report.problems.append(Problem(0, "nothing to use", "", "no users in this file"))
    report.problems.sort(key=lambda problem: problem.line)
    return report


def _examine_user(user: User, lines: Sequence[int], report: Report, require_targets: bool) -> None:
    """Add to the report. `lines`: the user's one line, or one line a signal and target (a window)."""
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
            add("duplicate signal id", "signals", index, f"id {signal.id!r} is already that of {name(ids[signal.id])}")
        content = repr([value for key, value in signal if key not in ("id", "time")]) + signal.type
        if contents.setdefault(content, index) != index:
            add("duplicate signal", "signals", index, f"the same {signal.type} as {name(contents[content])}")
        if isinstance(signal, PairSignal) and signal.chosen.casefold() == signal.rejected.casefold():
            add("equal responses", "signals", index, "chosen and rejected are the same text")
    report.targets += len(user.targets)
    if require_targets and not user.targets:
        message = f"user {user.user_id!r} has no targets to be trained or tested on"
        report.problems.append(Problem(lines[0], "no targets", "targets", message))
    pairs: dict[str, int] = {}
    for index, target in enumerate(user.targets):
        if (first := pairs.setdefault(target.model_dump_json(), index)) != index:
            there = f"line {lines[first + len(user.signals)]}" if window else f"targets[{first}]"
            add("duplicate target", "targets", index, f"the same target as {there}")
        if target.chosen.casefold() == target.rejected.casefold():
            add("equal responses", "targets", index, "chosen and rejected are the same text")
        for position, signal in enumerate(user.signals):
            if how := leak(target, signal):
                add("target among signals", "targets", index, f"{how} {name(position)}")
                break


def _note_elsewhere(path: str | Path, place: int, writer: StoreWriter, progress: Progress | None) -> int:
    """Note the users of another split; how many of its lines do not say whose they are."""
    bad = 0
    for _, parsed in read_lines(path, progress):
        if isinstance(parsed, list):
            bad += 1
        else:
            writer.note_elsewhere(parsed.user_id, place)
    return bad
