"""HiCUPID: fictional people who tell an assistant about themselves; personalised against general answers.

Dataset: a folder with local copies of the two tables of 12kimih/HiCUPID (ACL 2025, arXiv 2506.01262), as JSONL or
parquet: `qa` with `user_id`, `question`, `personalized_answer`, `general_answer`; `dialogue` with `user_id`, `user`,
`assistant`. Columns follow its code (repository anonymsubmission-arr/HiCUPID: README, src/utils/inference.py).
`metadata`, from which the answers were generated, is never read.

Signals are the person's messages in the dialogues, `signals_per_user` of them, chosen by a hash; targets are questions
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
SILENT = "its user has no messages in the dialogues"


class Question(BaseModel):
    """One row of `qa`."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    user_id: Text | int
    question: Text
    personalized_answer: Text
    general_answer: Text


class Dialogue(BaseModel):
    """One row of `dialogue`, a turn."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    user_id: Text | int
    user: Text


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`, with different people."""
    folder, train = Path(options.path or ""), loaded.train
    messages: dict[str, list[str]] = defaultdict(list)
    turns = good_rows(
        _table(folder, "dialogue"), "train", Dialogue, DIALOGUES, Split("turns"), options, loaded.problems
    )
    for turn in turns:
        messages[str(turn.user_id)].append(turn.user)
    questions: dict[str, list[Question]] = defaultdict(list)
    for row in good_rows(_table(folder, "qa"), "train", Question, QUESTIONS, train, options, loaded.problems):
        questions[str(row.user_id)].append(row)
    for user in in_hash_order(questions, options.seed, str):
        held_out = share(options.seed, "user", user) < options.test_share
        split = loaded.others["test"] if held_out else train
        train.rows -= len(questions[user]) * held_out
        split.rows += len(questions[user]) * held_out
        _add(user, questions[user], messages.get(user, []), split, options)


def _add(user: str, questions: list[Question], messages: list[str], split: Split, options: Options) -> None:
    posts = in_hash_order(dict.fromkeys(messages), options.seed, str)[: options.signals_per_user]
    usable = [row for row in questions if row.personalized_answer.casefold() != row.general_answer.casefold()]
    split.dropped[EQUAL] += len(questions) - len(usable)
    if not posts:
        split.dropped[SILENT] += len(usable)
        return
    usable = in_hash_order(usable, options.seed, lambda row: row.model_dump_json())
    n = options.targets_per_user
    split.left_over += max(0, len(usable) - n) if len(usable) >= n else len(usable)
    if len(usable) >= n:
        pairs = [
            TargetPair(prompt=row.question, chosen=row.personalized_answer, rejected=row.general_answer)
            for row in usable[:n]
        ]
        signals: list[Signal] = [PostSignal(text=text) for text in posts]
        split.add(user, signals, pairs, None, rows=n)


def _table(folder: Path, name: str) -> str:
    places = [folder / name, *(folder / f"{name}{suffix}" for suffix in SUFFIXES)]
    for place in places:
        if place.exists():
            return str(place)
    names = ", ".join(f"{name}{suffix}" for suffix in SUFFIXES)
    raise DataError(f"{folder}: has no table {name!r} ({names}, or a folder {name}); copy qa and dialogue there")
