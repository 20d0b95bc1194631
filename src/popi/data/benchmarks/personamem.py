"""PersonaMem: fictional people in long chats; which of four answers suits their current self.

Dataset: a folder with `questions_32k.csv` and `shared_contexts_32k.jsonl` (or `_128k`, `_1M`;
bowen-upenn/PersonaMem-v1, arXiv 2504.14225). Columns follow the repository bowen-upenn/PersonaMem and loaders of its
two files: `persona_id`, `user_question_or_message`, `correct_answer` ("(c)"), `all_options` (a JSON or Python list),
`shared_context_id`, `end_index_in_shared_context`; and one JSON object per context, `{id: messages}`.

Each question becomes a user: the signals are the person's last `signals_per_user` messages before it, the targets its
right answer against each wrong one, at most `targets_per_user`. System messages, which describe the persona, and
messages after the question are never read. Personas are split by a seeded hash.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from popi.data.benchmarks.read import Columns, Row, read
from popi.data.benchmarks.result import Loaded, Options, Split, in_hash_order, share
from popi.data.benchmarks.rows import good_rows
from popi.errors import DataError
from popi.signals.types import PostSignal, Signal, TargetPair, Text

VERSION = "personamem/1"
COLUMNS = Columns(
    (
        "persona_id",
        "user_question_or_message",
        "correct_answer",
        "all_options",
        "shared_context_id",
        "end_index_in_shared_context",
    )
)
NO_CONTEXT = "its context is not in the file, or the person wrote nothing before the question"
FEW_OPTIONS = "the right answer is not among its options, or is the only one"


class Question(BaseModel):
    """One row."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    persona_id: Text
    question: Text = Field(alias="user_question_or_message")
    correct_answer: Text
    all_options: list[str]
    shared_context_id: Text
    end_index_in_shared_context: int

    @field_validator("all_options", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        try:
            return json.loads(value)
        except (TypeError, ValueError):
            try:
                return ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError):
                raise ValueError("must be a list of options, in JSON or Python syntax") from None

    def answers(self) -> tuple[str, list[str]] | None:
        """The right answer and the wrong ones, without their letters."""
        by_letter = {m[1].lower(): m[2].strip() for option in self.all_options if (m := _OPTION.match(option))}
        right = by_letter.pop(self.correct_answer.strip("() ").lower(), None)
        wrong = [text for text in by_letter.values() if text and text != right]
        return (right, wrong) if right and wrong else None


_OPTION = re.compile(r"\s*\(?([a-zA-Z])\)\s*(.*)", re.DOTALL)


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`, with no persona in both and one user per question."""
    questions, contexts = _files(Path(options.path or ""))
    rows = list(good_rows(str(questions), "train", Question, COLUMNS, loaded.train, options, loaded.problems))
    messages = _user_messages(contexts, {row.shared_context_id for row in rows})
    for row in in_hash_order(rows, options.seed, lambda row: row.model_dump_json()):
        held_out = share(options.seed, "user", row.persona_id) < options.test_share
        split = loaded.others["test"] if held_out else loaded.train
        loaded.train.rows -= held_out
        split.rows += held_out
        _add(row, messages.get(row.shared_context_id, []), split, options)


def _add(row: Question, messages: list[tuple[int, str]], split: Split, options: Options) -> None:
    before = [text for index, text in messages if index < row.end_index_in_shared_context]
    signals: list[Signal] = [PostSignal(text=text) for text in before[-options.signals_per_user :]]
    answers = row.answers()
    if not signals:
        split.dropped[NO_CONTEXT] += 1
    elif answers is None:
        split.dropped[FEW_OPTIONS] += 1
    else:
        right, wrong = answers
        wrong = in_hash_order(wrong, options.seed, str)[: options.targets_per_user]
        targets = [TargetPair(prompt=row.question, chosen=right, rejected=other) for other in wrong]
        split.add(row.persona_id, signals, targets, None, rows=1)


def _files(place: Path) -> tuple[Path, Path]:
    """questions_SIZE.csv and the contexts of that size; `place` is that file, or a folder with one such file."""
    files = [place] if place.is_file() else sorted(place.glob("questions_*.csv"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(
            f"{place}: must be a folder with one questions_SIZE.csv (32k, 128k or 1M), or the file itself; "
            f"found: {names}"
        )
    contexts = files[0].with_name(files[0].name.replace("questions", "shared_contexts")).with_suffix(".jsonl")
    if not contexts.is_file():
        raise DataError(f"{contexts}: no such file; copy the contexts of {files[0].name} there")
    return files[0], contexts


def _user_messages(file: Path, context_ids: set[str]) -> dict[str, list[tuple[int, str]]]:
    """Context id → (index, text) of its user messages."""
    by_context: dict[str, list[tuple[int, str]]] = {}
    for row in read(str(file), "train", Columns(())):
        if not isinstance(row, Row):
            raise DataError(f"{row}")
        for name, messages in row.values.items():
            if name in context_ids and isinstance(messages, list):
                turns = [(i, turn) for i, turn in enumerate(messages) if isinstance(turn, dict)]
                turns = [(i, turn) for i, turn in turns if turn.get("role") == "user"]
                texts = [(i, re.sub(r"^User:\s*", "", str(turn.get("content") or "")).strip()) for i, turn in turns]
                by_context[name] = [(i, text) for i, text in texts if text]
    return by_context
