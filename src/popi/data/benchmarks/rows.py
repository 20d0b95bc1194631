"""Turn rows of preference pairs into users: drop unusable rows and cut the others into windows.

In a window, `signals_per_user` rows become pair signals and another `targets_per_user` rows become targets. Windows do
not overlap, so each row of a test set counts once. They are ordered in rounds (every user's first window, then every
user's second, ...), with users in hash order, so that the first n windows cover as many users as possible.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from popi.data.benchmarks.read import Columns, parse, read
from popi.data.benchmarks.result import (
    BAD,
    EQUAL,
    REPEATED,
    Options,
    Split,
    digest,
    in_hash_order,
    prompt_key,
)
from popi.data.jsonl import Problem
from popi.signals.types import PairSignal, TargetPair

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class PairRow:
    """One row: a user's preference pair, and the oracle's description of the user."""

    user_id: str
    pair: TargetPair
    oracle: str | None = None

    @property
    def prompt(self) -> str:
        return prompt_key(self.pair)

    @property
    def content(self) -> str:
        return digest(self.user_id, self.pair.model_dump_json())


def good_rows(
    place: str,
    split_name: str,
    model: type[Model],
    columns: Columns,
    split: Split,
    options: Options,
    problems: list[Problem],
    *,
    own_file: bool = False,
) -> Iterator[Model]:
    """The rows of a split that fit `model`; others become problems, or are dropped and counted if so configured."""
    for row in read(place, split_name, columns, own_file=own_file):
        parsed = [row] if isinstance(row, Problem) else parse(row, model)
        if isinstance(parsed, list) and parsed[0].kind == "bad file":
            problems.extend(parsed)  # `drop_bad_rows` never drops a whole file
            continue
        split.rows += 1
        if not isinstance(parsed, list):
            yield parsed
        elif options.drop_bad_rows:
            split.dropped[BAD] += 1
        else:
            split.bad += 1
            problems.extend(parsed)


def usable(rows: Iterable[PairRow], split: Split) -> list[PairRow]:
    """Rows with different responses, without duplicates; dropped rows are counted."""
    unique: dict[str, PairRow] = {}
    for row in rows:
        if row.pair.chosen.casefold() == row.pair.rejected.casefold():
            split.dropped[EQUAL] += 1
        elif unique.setdefault(row.content, row) is not row:
            split.dropped[REPEATED] += 1
    return list(unique.values())


def without(rows: Iterable[PairRow], drop: Callable[[PairRow], bool], reason: str, split: Split) -> list[PairRow]:
    """Rows for which `drop` is false; the others are counted under `reason`."""
    remaining = []
    for row in rows:
        if drop(row):
            split.dropped[reason] += 1
        else:
            remaining.append(row)
    return remaining


def by_user(rows: Iterable[PairRow], seed: int | None) -> dict[str, list[PairRow]]:
    """User → rows, with users in hash order. Each user's rows are in hash order too, or in original order without a
    seed.
    """
    users: dict[str, list[PairRow]] = {}
    for row in rows:
        users.setdefault(row.user_id, []).append(row)
    order = in_hash_order(users, seed or 0, str)
    if seed is None:
        return {user: users[user] for user in order}
    return {user: in_hash_order(users[user], seed, lambda row: row.content) for user in order}


def fill(split: Split, users: dict[str, list[PairRow]], options: Options, *, apart: bool) -> None:
    """Cut every user's rows into windows and add them to the split.

    `apart`: no two rows of a window have the same prompt. Otherwise, where a user judged several responses to one
    prompt, a target's response could appear among the signals.
    """
    signals, targets = options.signals_per_user, options.targets_per_user
    cut: dict[str, list[tuple[Sequence[PairRow], Sequence[PairRow]]]] = {}
    for user, rows in users.items():
        windows, left = _windows(rows, signals + targets, apart)
        split.left_over += left
        cut[user] = [(window[:signals], window[signals:]) for window in windows]
    _in_turn(split, cut)


def fill_two(split: Split, shown: dict[str, list[PairRow]], asked: dict[str, list[PairRow]], options: Options) -> None:
    """Like `fill`, for users whose signals and targets come from different rows (with seen and unseen prompts)."""
    signals, targets = options.signals_per_user, options.targets_per_user
    cut: dict[str, list[tuple[Sequence[PairRow], Sequence[PairRow]]]] = {}
    for user in shown | asked:
        s, t = shown.get(user, []), asked.get(user, [])
        n = min(len(s) // signals, len(t) // targets)
        split.left_over += len(s) + len(t) - n * (signals + targets)
        cut[user] = [(s[i * signals : (i + 1) * signals], t[i * targets : (i + 1) * targets]) for i in range(n)]
    _in_turn(split, cut)


def _windows(rows: Sequence[PairRow], size: int, apart: bool) -> tuple[list[list[PairRow]], int]:
    waiting = deque(rows)
    windows: list[list[PairRow]] = []
    while True:
        window: list[PairRow] = []
        skipped: list[PairRow] = []
        prompts: set[str] = set()
        while waiting and len(window) < size:
            row = waiting.popleft()
            if apart and row.prompt in prompts:
                skipped.append(row)
            else:
                window.append(row)
                prompts.add(row.prompt)
        waiting.extendleft(reversed(skipped))  # first in line for the next window
        if len(window) < size:
            return windows, len(window) + len(waiting)
        windows.append(window)


def _in_turn(split: Split, cut: dict[str, list[tuple[Sequence[PairRow], Sequence[PairRow]]]]) -> None:
    for turn in range(max(map(len, cut.values()), default=0)):
        for user, windows in cut.items():
            if turn < len(windows):
                shown, asked = windows[turn]
                signals = [PairSignal(**dict(row.pair)) for row in shown]
                split.add(user, signals, [row.pair for row in asked], asked[0].oracle, len(shown) + len(asked))
