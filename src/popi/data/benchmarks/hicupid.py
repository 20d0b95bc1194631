"""HiCUPID: made-up people who tell an assistant about themselves; an answer made for one of them, or for anybody.

Set: a folder with local copies of the two tables of 12kimih/HiCUPID (ACL 2025, arXiv 2506.01262), as JSONL or parquet:
`qa` of `user_id`, `question`, `personalized_answer`, `general_answer`; `dialogue` of `user_id`, `user`, `assistant`.
Columns as read from its code (repository anonymsubmission-arr/HiCUPID: README, src/utils/inference.py). `metadata`,
which says what the answer was made from, is never read.

Signals are what the person said in the dialogues, drawn by a hash, `signals_per_user` of them; targets are questions
with the personalised answer against the general one. Users are split by a seeded hash.
"""

from collections import defaultdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import EQUAL, Loaded, Options, Split, in_hash_order, share
from popi.data.benchmarks.rows import good_rows
from popi.data.places import SUFFIXES
from popi.errors import DataError
from popi.signals.types import PostSignal, Signal, TargetPair, Text

VERSION = "hicupid/1"
QUESTIONS = Columns(("user_id", "question", "personalized_answer", "general_answer"))
DIALOGUES = Columns(("user_id", "user"))
SILENT = "its user said nothing in the dialogues"


class Question(BaseModel):
    """One row of `qa`."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    user_id: Text | int
    question: Text
    personalized_answer: Text
    general_answer: Text


class Dialogue(BaseModel):
    """One row of `dialogue`: a turn."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    user_id: Text | int
    user: Text


def load(options: Options, loaded: Loaded) -> None:
    """The splits `train` and `test`: people of their own."""
    folder, train = Path(options.path or ""), loaded.train
    said: dict[str, list[str]] = defaultdict(list)
    turns = good_rows(
        _table(folder, "dialogue"), "train", Dialogue, DIALOGUES, Split("turns"), options, loaded.problems
    )
    for turn in turns:
        said[str(turn.user_id)].append(turn.user)
    asked: dict[str, list[Question]] = defaultdict(list)
    for row in good_rows(_table(folder, "qa"), "train", Question, QUESTIONS, train, options, loaded.problems):
        asked[str(row.user_id)].append(row)
    for user in in_hash_order(asked, options.seed, str):
        held_out = share(options.seed, "user", user) < options.test_share
        split = loaded.others["test"] if held_out else train
        train.rows -= len(asked[user]) * held_out
        split.rows += len(asked[user]) * held_out
        _add(user, asked[user], said.get(user, []), split, options)


def _add(user: str, asked: list[Question], said: list[str], split: Split, options: Options) -> None:
    posts = in_hash_order(dict.fromkeys(said), options.seed, str)[: options.signals_per_user]
    usable = [row for row in asked if row.personalized_answer.casefold() != row.general_answer.casefold()]
    split.dropped[EQUAL] += len(asked) - len(usable)
    if not posts:
        split.dropped[SILENT] += len(usable)
        return
    usable = in_hash_order(usable, options.seed, lambda row: row.model_dump_json())
    most = options.targets_per_user
    split.left_over += max(0, len(usable) - most) if len(usable) >= most else len(usable)
    if len(usable) >= most:
        pairs = [
            TargetPair(prompt=row.question, chosen=row.personalized_answer, rejected=row.general_answer)
            for row in usable[:most]
        ]
        signals: list[Signal] = [PostSignal(text=text) for text in posts]
        split.add(user, signals, pairs, None, rows=most)


def _table(folder: Path, name: str) -> str:
    places = [folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES)]
    for place in places:
        if place.exists():
            return str(place)
    names = ", ".join(f"{name}{suffix}" for suffix in SUFFIXES)
    raise DataError(f"{folder}: holds no table {name!r} ({names}, or a folder {name}); copy qa and dialogue there")
