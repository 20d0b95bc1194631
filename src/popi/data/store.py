"""Users on disk, decoded on access, so that memory does not grow with their number.

A store is one SQLite file. SQLite can group preference rows by user and find duplicates without holding users in
memory, reads without mapping the file, and ships with Python, so `popi data check` and `popi infer --api` have no
further dependencies. A store is written once and never modified.

    people  n, user_id, line                    everyone in the source, in order of first appearance
    users   n, person, signals, targets, body   the users, or windows of users, in order; `body` is JSON

Held in memory: SQLite's cache (`CACHE_BYTES`), the users decoded last (`RECENT_USERS`), and 4 bytes per user of a view
that is not contiguous.
"""

import os
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import compress, groupby
from pathlib import Path
from typing import Any, overload

from popi.data.windows import PreferenceRow, cut_windows
from popi.errors import DataError
from popi.signals.types import User

VERSION = 1
"""Version of the file format and of the checks that its users have passed; part of the names of cached stores."""
CACHE_BYTES = 4 << 20
"""Size of SQLite's page cache."""
RECENT_USERS = 64
"""Number of decoded users held in memory."""
SCHEMA = """
CREATE TABLE people (n INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE, line INTEGER NOT NULL);
CREATE TABLE users (n INTEGER PRIMARY KEY, person INTEGER NOT NULL, signals INTEGER NOT NULL, targets INTEGER NOT NULL,
                    body TEXT NOT NULL);
"""
SCRATCH = """
CREATE TABLE scratch.other_splits (user_id TEXT PRIMARY KEY, place INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE scratch.rows (person INTEGER, line INTEGER, body TEXT, PRIMARY KEY (person, line)) WITHOUT ROWID;
"""
FROM = "FROM users JOIN people ON people.n = users.person"
Progress = Callable[[str, int, int], None]
"""Callback for progress: description of the task, items done, items in total."""


@contextmanager
def _errors(place: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(
            f"{place}: can't store users on disk ({error}); is it full? Temporary files go to $TMPDIR, or /var/tmp"
        ) from None


class StoredUsers(Sequence[User]):
    """All users of a store, or a selection in some order. Items are decoded on access; a slice is a view."""

    def __init__(self, connection: sqlite3.Connection, place: str, index: "range | array[int]") -> None:
        self._connection, self._place, self._index = connection, place, index
        self._recent: dict[int, User] = {}

    @classmethod
    def open(cls, path: Path) -> "StoredUsers":
        """Open a file written by a `StoreWriter`.

        Raises:
            DataError: if the file is damaged.
        """
        # immutable avoids locks, which are unreliable on network file systems; finished stores are never written to
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        try:
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            return cls.of(connection, str(path))
        except sqlite3.Error as error:
            raise DataError(f"{path}: damaged ({error}); delete it, and it will be rebuilt") from None

    @classmethod
    def of(cls, connection: sqlite3.Connection, place: str) -> "StoredUsers":
        """All users of an open store."""
        connection.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
        [(last,)] = connection.execute("SELECT max(n) FROM users")
        return cls(connection, place, range(0 if last is None else last + 1))

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, key: int) -> User: ...

    @overload
    def __getitem__(self, key: slice) -> "StoredUsers": ...

    def __getitem__(self, key: int | slice) -> "User | StoredUsers":
        if isinstance(key, slice):
            return self._view(self._index[key])
        n = self._index[key]
        if (user := self._recent.get(n)) is None:
            [[body]] = self._select("body", [n])
            user = _decoded(body)
            self._recent[n] = user
            if len(self._recent) > RECENT_USERS:
                del self._recent[next(iter(self._recent))]
        return user

    def __iter__(self) -> Iterator[User]:
        return (_decoded(body) for [body] in self._select("body", self._index))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(user == twin for user, twin in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} users of {self._place}>"

    def pick(self, positions: Iterable[int]) -> "StoredUsers":
        """A view of the users at these positions, in the given order."""
        return self._view(array("I", (self._index[position] for position in positions)))

    def keep(self, flags: Iterable[bool]) -> "StoredUsers":
        """A view of the users whose flag is set; `flags` has one per user."""
        index = array("I", compress(self._index, flags))
        return self if len(index) == len(self) else self._view(index)

    def ids(self) -> Iterator[str]:
        """The `user_id` of each user, without decoding the users."""
        return (row[0] for row in self._select("people.user_id", self._index))

    def sizes(self) -> Iterator[tuple[int, int]]:
        """The number of signals and targets of each user."""
        return (row for row in self._select("signals, targets", self._index))

    def people(self) -> Iterator[int]:
        """Number the people behind the users: 0 for the first, 1 for the next. A person's windows share a number.
        Assumes that they are adjacent, as they are in every store and in every view that preserves its order.
        """
        groups = groupby(row[0] for row in self._select("person", self._index))
        return (n for n, (_, windows) in enumerate(groups) for _ in windows)

    def find(self, user_id: str) -> int | None:
        """Position of a user, or None. Requires a view of the whole store with one window per user."""
        with _errors(self._place):
            row = self._connection.execute(f"SELECT users.n {FROM} WHERE user_id = ?", (user_id,)).fetchone()
        return None if row is None or row[0] >= len(self) else int(row[0])

    def _view(self, index: "range | array[int]") -> "StoredUsers":
        return StoredUsers(self._connection, self._place, index)

    def _select(self, columns: str, index: "range | array[int] | list[int]") -> Iterator[Any]:
        source = FROM if "people." in columns else "FROM users"
        with _errors(self._place):
            if isinstance(index, range) and index.step == 1:
                query = f"SELECT {columns} {source} WHERE users.n >= ? AND users.n < ? ORDER BY users.n"
                yield from self._connection.execute(query, (index.start, index.stop))
                return
            query = f"SELECT {columns} {source} WHERE users.n = ?"
            for n in index:
                yield self._connection.execute(query, (n,)).fetchone()


def _decoded(body: str) -> User:
    return User.model_validate_json(body, strict=True)


class StoreWriter:
    """Writes a store. Intermediate data is on disk as well: the user ids seen, and rows not yet cut into windows.

    Args:
        path: the file; None creates a temporary one, deleted together with the users that `finish` returns.
        limit: maximum users to store; further users are only registered.

    Attributes:
        count: number of users (or windows) stored so far.
        people: number of people registered so far.
    """

    def __init__(self, path: Path | None = None, limit: int | None = None) -> None:
        self._path, self._limit, self.count = path, limit, 0
        self._place = "a temporary file" if path is None else str(path)
        with _errors(self._place):
            # "" makes SQLite create a temporary file that is deleted with the connection
            self._connection = sqlite3.connect(str(path or ""), isolation_level=None, check_same_thread=False)
            self._execute = self._connection.execute
            for schema in ("main", "scratch"):
                if schema == "scratch":
                    self._execute("ATTACH '' AS scratch")
                self._execute(f"PRAGMA {schema}.journal_mode = OFF")
                self._execute(f"PRAGMA {schema}.synchronous = OFF")
                self._execute(f"PRAGMA {schema}.cache_size = -{CACHE_BYTES >> 10}")
            self._connection.executescript(SCHEMA + SCRATCH)
            self._execute("BEGIN")
        self.people = 0

    def register(self, user_id: str, line: int) -> tuple[int, int]:
        """Register a user id found on a line. Returns the person's number and the line where it was first found."""
        with _errors(self._place):
            new = self._execute("INSERT OR IGNORE INTO people VALUES (?, ?, ?)", (self.people, user_id, line))
            if new.rowcount:
                self.people += 1
                return self.people - 1, line
            number, first = self._execute("SELECT n, line FROM people WHERE user_id = ?", (user_id,)).fetchone()
            return int(number), int(first)

    def add(self, user: User, person: int) -> None:
        """Append a user, or one window of a user; does nothing once the limit is reached."""
        if self._limit is not None and self.count >= self._limit:
            return
        body = user.model_dump_json(exclude_none=True)
        with _errors(self._place):
            row = (self.count, person, len(user.signals), len(user.targets), body)
            self._execute("INSERT INTO users VALUES (?, ?, ?, ?, ?)", row)
        self.count += 1

    def note_other_split(self, user_id: str, place: int) -> None:
        """Record that a user appears in another source; the last one recorded wins."""
        with _errors(self._place):
            self._execute("INSERT OR REPLACE INTO scratch.other_splits VALUES (?, ?)", (user_id, place))

    def other_split(self, user_id: str) -> int | None:
        """The other source in which a user appears, or None."""
        with _errors(self._place):
            row = self._execute("SELECT place FROM scratch.other_splits WHERE user_id = ?", (user_id,)).fetchone()
        return None if row is None else int(row[0])

    def add_row(self, row: PreferenceRow, person: int, line: int) -> None:
        """Store a preference row for `windows`."""
        with _errors(self._place):
            body = row.model_dump_json(exclude_none=True)
            self._execute("INSERT INTO scratch.rows VALUES (?, ?, ?)", (person, line, body))

    def windows(self, signals: int, targets: int) -> Iterator[tuple[list[tuple[User, list[int], int]], int]]:
        """For each person with rows: their windows, each with its rows' lines and the person's number; and the number
        of rows left over.
        """
        with _errors(self._place):
            rows = self._execute("SELECT person, line, body FROM scratch.rows ORDER BY person, line")
            for person, group in groupby(rows, key=lambda row: row[0]):
                lines, parsed = [], []
                for _, line, body in group:
                    lines.append(line)
                    parsed.append(PreferenceRow.model_validate_json(body, strict=True))
                windows, left = cut_windows(parsed, signals, targets)
                size = signals + targets
                yield [(user, lines[n * size : (n + 1) * size], person) for n, user in enumerate(windows)], left

    def finish(self) -> StoredUsers:
        """Commit, and return all stored users."""
        with _errors(self._place):
            self._execute("COMMIT")
            self._execute("DETACH scratch")
            return StoredUsers.of(self._connection, self._place)

    def close(self) -> None:
        """Close the file, finished or not."""
        self._connection.close()


def replace_store(
    folder: Path, name: str, content: str, write: Callable[[StoreWriter], None], limit: int | None, source: Path
) -> Path:
    """Path of a cached store in `folder`, written first if it does not exist. One process writes while others wait.

    Args:
        folder: created if missing.
        name: identifies the source and the settings it is read with. Stores with this name but other content are
            deleted.
        content: a hash of the content.
        write: adds the users; if it raises, no file is left behind.
        limit: as for `StoreWriter`.
        source: the file that the store is a copy of; the store gets its permissions.

    Raises:
        DataError: if the folder or the file can't be written.
    """
    from filelock import FileLock  # part of popi[train], which everything that uses a cache folder requires

    path = folder / f"{name}-{content}.sqlite"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if path.exists():
                return path
            partial = folder / f"{name}.partial"  # the lock is held, so a leftover of a killed process can go
            partial.unlink(missing_ok=True)
            partial.touch(mode=0o600)
            writer = StoreWriter(partial, limit)
            try:
                write(writer)
                writer.finish()
                writer.close()
                if source.is_file():
                    partial.chmod(source.stat().st_mode & 0o666)
                os.replace(partial, path)
            finally:
                writer.close()
                partial.unlink(missing_ok=True)
            for old in folder.glob(f"{name}-*.sqlite"):
                if old != path:
                    old.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: can't be written to ({error.strerror or error})") from None
    return path


# -- the same for users in memory -----------------------------------------------------------------------------------


def pick(users: Sequence[User], positions: Iterable[int]) -> Sequence[User]:
    """The users at these positions, in the given order."""
    return users.pick(positions) if isinstance(users, StoredUsers) else [users[position] for position in positions]


def keep(users: Sequence[User], flags: Iterable[bool]) -> Sequence[User]:
    """The users whose flag is set."""
    return users.keep(flags) if isinstance(users, StoredUsers) else list(compress(users, flags))


def user_ids(users: Sequence[User]) -> Iterator[str]:
    """The `user_id` of each user."""
    return users.ids() if isinstance(users, StoredUsers) else (user.user_id for user in users)


def sizes(users: Sequence[User]) -> Iterator[tuple[int, int]]:
    """The number of signals and targets of each user."""
    return users.sizes() if isinstance(users, StoredUsers) else ((len(u.signals), len(u.targets)) for u in users)


def people_of(users: Sequence[User]) -> Iterator[int]:
    """The person's number for each user or window: 0 for the first person, 1 for the next; a person's windows share
    it.
    """
    if isinstance(users, StoredUsers):
        return users.people()
    numbers: dict[str, int] = {}
    return (numbers.setdefault(user.user_id, len(numbers)) for user in users)


def finder(users: Sequence[User]) -> Callable[[str], int | None] | None:
    """A function from user id to position (None for unknown ids); None instead of a function if ids repeat."""
    if max(people_of(users), default=-1) + 1 < len(users):
        return None
    if isinstance(users, StoredUsers):
        return users.find
    return {user.user_id: position for position, user in enumerate(users)}.get
