"""Users on disk, decoded when they are asked for, so that memory does not grow with their number.

A store is one SQLite file: it can group preference rows by user and find users who stand twice without holding them,
reads without mapping the file into memory, and ships with Python, so that `popi data check` and `popi infer --api` need
nothing else. It is written once and never changed.

    people  n, user_id, line                    whoever stands in the source, in order of first appearance
    users   n, person, signals, targets, body   the users, or windows of users, in order; `body` is JSON

What is held in memory: SQLite's cache (`CACHE`), the last users decoded (`RECENT`), and 4 bytes per user of a part that
is not a contiguous one.
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
"""Of the file and of the checks that users in it have passed; a change makes other files."""
CACHE = 4 << 20
"""Bytes of a file that SQLite holds in memory."""
RECENT = 64
"""Users held as they were decoded last."""
SCHEMA = """
CREATE TABLE people (n INTEGER PRIMARY KEY, user_id TEXT NOT NULL UNIQUE, line INTEGER NOT NULL);
CREATE TABLE users (n INTEGER PRIMARY KEY, person INTEGER NOT NULL, signals INTEGER NOT NULL, targets INTEGER NOT NULL,
                    body TEXT NOT NULL);
"""
SCRATCH = """
CREATE TABLE scratch.elsewhere (user_id TEXT PRIMARY KEY, place INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE scratch.rows (person INTEGER, line INTEGER, body TEXT, PRIMARY KEY (person, line)) WITHOUT ROWID;
"""
FROM = "FROM users JOIN people ON people.n = users.person"
Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""


@contextmanager
def _errors(place: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(
            f"{place}: users can't be kept on disk ({error}); is it full? Temporary files go to $TMPDIR, or /var/tmp"
        ) from None


class StoredUsers(Sequence[User]):
    """Users of a store, or some of them in some order. An item is decoded when it is asked for; a slice is a view."""

    def __init__(self, connection: sqlite3.Connection, place: str, index: "range | array[int]") -> None:
        self._connection, self._place, self._index = connection, place, index
        self._recent: dict[int, User] = {}

    @classmethod
    def open(cls, path: Path) -> "StoredUsers":
        """The users of a file that a `StoreWriter` wrote.

        Raises:
            DataError: it is damaged.
        """
        # immutable: no locks, which network file systems are bad at; nobody writes a store that is there
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        try:
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
            return cls.of(connection, str(path))
        except sqlite3.Error as error:
            raise DataError(f"{path}: damaged ({error}); delete it, and it is written again") from None

    @classmethod
    def of(cls, connection: sqlite3.Connection, place: str) -> "StoredUsers":
        """All users of an open store."""
        connection.execute(f"PRAGMA cache_size = -{CACHE >> 10}")
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
            if len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]
        return user

    def __iter__(self) -> Iterator[User]:
        return (_decoded(body) for [body] in self._select("body", self._index))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} users of {self._place}>"

    def pick(self, positions: Iterable[int]) -> "StoredUsers":
        """Those at these positions, in the order given."""
        return self._view(array("I", (self._index[position] for position in positions)))

    def keep(self, flags: Iterable[bool]) -> "StoredUsers":
        """Those whose flag is set, one for each user."""
        kept = array("I", compress(self._index, flags))
        return self if len(kept) == len(self) else self._view(kept)

    def ids(self) -> Iterator[str]:
        """The `user_id` of each, without decoding users."""
        return (row[0] for row in self._select("people.user_id", self._index))

    def sizes(self) -> Iterator[tuple[int, int]]:
        """How many signals and targets each has."""
        return (row for row in self._select("signals, targets", self._index))

    def people(self) -> Iterator[int]:
        """A number for each: 0 for the first person, 1 for the next. Windows of one person stand together and share it,
        as in every store and every part of one in its order.
        """
        groups = groupby(row[0] for row in self._select("person", self._index))
        return (n for n, (_, windows) in enumerate(groups) for _ in windows)

    def find(self, user_id: str) -> int | None:
        """Position of a user. Only for a view of the whole store in which each user has one window."""
        with _errors(self._place):
            found = self._connection.execute(f"SELECT users.n {FROM} WHERE user_id = ?", (user_id,)).fetchone()
        return None if found is None or found[0] >= len(self) else int(found[0])

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
    """Writes a store, and holds on disk what must be known meanwhile: who was seen, and rows until they are windows.

    Args:
        path: the file; None makes a temporary one, which is gone with the users that `finish` returns.
        limit: users to keep; those behind are seen and not kept.
    """

    def __init__(self, path: Path | None = None, limit: int | None = None) -> None:
        self._path, self._limit, self.kept = path, limit, 0
        self._place = "a temporary file" if path is None else str(path)
        with _errors(self._place):
            # "" is SQLite's own temporary file, deleted with the connection
            self._connection = sqlite3.connect(str(path or ""), isolation_level=None, check_same_thread=False)
            self._execute = self._connection.execute
            for schema in ("main", "scratch"):
                if schema == "scratch":
                    self._execute("ATTACH '' AS scratch")
                self._execute(f"PRAGMA {schema}.journal_mode = OFF")
                self._execute(f"PRAGMA {schema}.synchronous = OFF")
                self._execute(f"PRAGMA {schema}.cache_size = -{CACHE >> 10}")
            self._connection.executescript(SCHEMA + SCRATCH)
            self._execute("BEGIN")
        self.people = 0

    def seen(self, user_id: str, line: int) -> tuple[int, int]:
        """(number of the person, line on which they were seen first); the line given, if that was never before."""
        with _errors(self._place):
            new = self._execute("INSERT OR IGNORE INTO people VALUES (?, ?, ?)", (self.people, user_id, line))
            if new.rowcount:
                self.people += 1
                return self.people - 1, line
            number, first = self._execute("SELECT n, line FROM people WHERE user_id = ?", (user_id,)).fetchone()
            return int(number), int(first)

    def add(self, user: User, person: int) -> None:
        """Keep a user, or a window of one, behind those before; beyond the limit do nothing."""
        if self._limit is not None and self.kept >= self._limit:
            return
        body = user.model_dump_json(exclude_none=True)
        with _errors(self._place):
            row = (self.kept, person, len(user.signals), len(user.targets), body)
            self._execute("INSERT INTO users VALUES (?, ?, ?, ?, ?)", row)
        self.kept += 1

    def note_elsewhere(self, user_id: str, place: int) -> None:
        """Note who stands in another source; of several, the last counts."""
        with _errors(self._place):
            self._execute("INSERT OR REPLACE INTO scratch.elsewhere VALUES (?, ?)", (user_id, place))

    def elsewhere(self, user_id: str) -> int | None:
        """The other source in which a user was noted."""
        with _errors(self._place):
            found = self._execute("SELECT place FROM scratch.elsewhere WHERE user_id = ?", (user_id,)).fetchone()
        return None if found is None else int(found[0])

    def hold(self, row: PreferenceRow, person: int, line: int) -> None:
        """Hold a preference row until `windows` asks for it."""
        with _errors(self._place):
            body = row.model_dump_json(exclude_none=True)
            self._execute("INSERT INTO scratch.rows VALUES (?, ?, ?)", (person, line, body))

    def windows(self, signals: int, targets: int) -> Iterator[tuple[list[tuple[User, list[int], int]], int]]:
        """Of each person with rows: windows with the lines of their rows and the person's number; rows left over."""
        with _errors(self._place):
            rows = self._execute("SELECT person, line, body FROM scratch.rows ORDER BY person, line")
            for person, held in groupby(rows, key=lambda row: row[0]):
                lines, mine = [], []
                for _, line, body in held:
                    lines.append(line)
                    mine.append(PreferenceRow.model_validate_json(body, strict=True))
                found, left = cut_windows(mine, signals, targets)
                size = signals + targets
                yield [(user, lines[n * size : (n + 1) * size], person) for n, user in enumerate(found)], left

    def finish(self) -> StoredUsers:
        """Close what was written; all users kept."""
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
    """The file of a store in `folder`, written if it is not there; one process writes, others wait for it.

    Args:
        folder: made if it is not there.
        name: of the source and the settings it is read by. Stores of the same name and other content are deleted.
        content: a hash of the content.
        write: adds the users; what it raises leaves no file.
        limit: as of `StoreWriter`.
        source: the file that it is a copy of; whoever may read that may read the copy.

    Raises:
        DataError: the folder or the file can't be written.
    """
    from filelock import FileLock  # comes with popi[train], and so do the folders that runs share

    path = folder / f"{name}-{content}.sqlite"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if path.exists():
                return path
            partial = folder / f"{name}.partial"  # what a kill left is written over: this is the only writer
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


# -- the same of users in memory ------------------------------------------------------------------------------------


def pick(users: Sequence[User], positions: Iterable[int]) -> Sequence[User]:
    """The users at these positions, in the order given."""
    return users.pick(positions) if isinstance(users, StoredUsers) else [users[position] for position in positions]


def keep(users: Sequence[User], flags: Iterable[bool]) -> Sequence[User]:
    """The users whose flag is set."""
    return users.keep(flags) if isinstance(users, StoredUsers) else list(compress(users, flags))


def user_ids(users: Sequence[User]) -> Iterator[str]:
    """The `user_id` of each user."""
    return users.ids() if isinstance(users, StoredUsers) else (user.user_id for user in users)


def sizes(users: Sequence[User]) -> Iterator[tuple[int, int]]:
    """How many signals and targets each user has."""
    return users.sizes() if isinstance(users, StoredUsers) else ((len(u.signals), len(u.targets)) for u in users)


def people_of(users: Sequence[User]) -> Iterator[int]:
    """A number for each user or window: 0 for the first person, 1 for the next; windows of one person share it."""
    if isinstance(users, StoredUsers):
        return users.people()
    numbers: dict[str, int] = {}
    return (numbers.setdefault(user.user_id, len(numbers)) for user in users)


def finder(users: Sequence[User]) -> Callable[[str], int | None] | None:
    """Position of a user by id, None of a stranger; None in place of it all where ids repeat."""
    if max(people_of(users), default=-1) + 1 < len(users):
        return None
    if isinstance(users, StoredUsers):
        return users.find
    return {user.user_id: position for position, user in enumerate(users)}.get
