"""From rows of preference pairs to users: which rows are dropped, how windows are cut.

A window is `signals_per_user` rows that become pair signals and `targets_per_user` more that become targets; no row
stands in two, so that each row of a test set counts once. Windows come in turn (every user's first, then every
user's second, ...), users in hash order: the first n of them are of as many users as can be.
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
    """One row: whose preference, which pair, and the oracle's words on that user."""

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
    """The rows of a split that fit `model`; the others become problems, or are dropped and counted if asked for."""
    for row in read(place, split_name, columns, own_file=own_file):
        found = [row] if isinstance(row, Problem) else parse(row, model)
        if isinstance(found, list) and found[0].kind == "bad file":
            problems.extend(found)  # no rule drops a whole file
            continue
        split.rows += 1
        if not isinstance(found, list):
            yield found
        elif options.drop_bad_rows:
            split.dropped[BAD] += 1
        else:
            split.bad += 1
            problems.extend(found)


def usable(rows: Iterable[PairRow], split: Split) -> list[PairRow]:
    """Rows that say something, once each; the others are counted."""
    kept: dict[str, PairRow] = {}
    for row in rows:
        if row.pair.chosen.casefold() == row.pair.rejected.casefold():
            split.dropped[EQUAL] += 1
        elif kept.setdefault(row.content, row) is not row:
            split.dropped[REPEATED] += 1
    return list(kept.values())


def without(rows: Iterable[PairRow], seen: Callable[[PairRow], bool], rule: str, split: Split) -> list[PairRow]:
    """Rows that the rule does not drop."""
    kept = []
    for row in rows:
        if seen(row):
            split.dropped[rule] += 1
        else:
            kept.append(row)
    return kept


def by_user(rows: Iterable[PairRow], seed: int | None) -> dict[str, list[PairRow]]:
    """User → rows, users in hash order; the rows too, or in their own order without a seed."""
    found: dict[str, list[PairRow]] = {}
    for row in rows:
        found.setdefault(row.user_id, []).append(row)
    order = in_hash_order(found, seed or 0, str)
    if seed is None:
        return {user: found[user] for user in order}
    return {user: in_hash_order(found[user], seed, lambda row: row.content) for user in order}


def fill(split: Split, users: dict[str, list[PairRow]], options: Options, *, apart: bool) -> None:
    """Cut every user's rows into windows and add them to the split.

    `apart`: no two rows of a window have the same prompt. Where a user judged several responses to one prompt, a
    target's response would else stand among the signals.
    """
    signals, targets = options.signals_per_user, options.targets_per_user
    cut: dict[str, list[tuple[Sequence[PairRow], Sequence[PairRow]]]] = {}
    for user, rows in users.items():
        windows, left = _windows(rows, signals + targets, apart)
        split.left_over += left
        cut[user] = [(window[:signals], window[signals:]) for window in windows]
    _in_turn(split, cut)


def fill_two(split: Split, shown: dict[str, list[PairRow]], asked: dict[str, list[PairRow]], options: Options) -> None:
    """As `fill`, for users whose signals and targets are rows of two kinds (of seen and of unseen prompts)."""
    signals, targets = options.signals_per_user, options.targets_per_user
    cut: dict[str, list[tuple[Sequence[PairRow], Sequence[PairRow]]]] = {}
    for user in shown | asked:
        mine, theirs = shown.get(user, []), asked.get(user, [])
        n = min(len(mine) // signals, len(theirs) // targets)
        split.left_over += len(mine) + len(theirs) - n * (signals + targets)
        cut[user] = [(mine[i * signals : (i + 1) * signals], theirs[i * targets : (i + 1) * targets]) for i in range(n)]
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
