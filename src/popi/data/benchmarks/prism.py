"""PRISM: conversations of 1,500 people from 75 countries with LLMs, and which of up to four answers they preferred.

Dataset: `conversations.jsonl` of HannahRoseKirk/prism-alignment (arXiv 2404.16019; people's texts CC BY 4.0, models'
CC BY-NC 4.0). Columns as in the repository HannahKirk/prism-alignment and loaders that group turns: `user_id`,
`conversation_history` of {`turn`, `role` user or model, `content`, `score` 1 to 100, `if_chosen`}.

Each conversation yields one pair: its opening prompt, the answer that the person continued with, and the answer that
they scored lowest. Later turns are not used: their prompts contain the chosen answer, which a target would repeat.
Users are split by a seeded hash, and their conversations stay in order.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import Loaded, Options
from popi.data.benchmarks.rows import PairRow, good_rows
from popi.data.benchmarks.splits import hash_splits
from popi.signals.types import TargetPair, Text

VERSION = "prism/1"
FILE = "conversations.jsonl"
COLUMNS = Columns(("user_id", "conversation_history"))
UNCLEAR = "no single answer of the first turn was chosen, or none was scored lower"


class Utterance(BaseModel):
    """A message of the person or of one of the models."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    turn: int
    role: str
    content: str
    score: int | float | None = None
    if_chosen: bool | None = None


class Conversation(BaseModel):
    """One row."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    user_id: Text
    conversation_history: list[Utterance] = Field(min_length=1)

    def pair(self) -> TargetPair | None:
        """The first turn's chosen answer against the lowest-scored one."""
        opening = [message for message in self.conversation_history if message.turn == 0 and message.content.strip()]
        prompts = [message.content for message in opening if message.role == "user"]
        answers = [message for message in opening if message.role == "model"]
        chosen = [answer for answer in answers if answer.if_chosen]
        if len(prompts) != 1 or len(chosen) != 1 or chosen[0].score is None:
            return None
        lower = [answer for answer in answers if answer.score is not None and answer.score < chosen[0].score]
        if not lower:
            return None
        worst = min(lower, key=lambda answer: (answer.score or 0, answer.content))
        return TargetPair(prompt=prompts[0], chosen=chosen[0].content, rejected=worst.content)


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`, with no person in both."""
    place = Path(options.path or "")
    file = place / FILE if (place / FILE).is_file() else place

    def rows() -> Iterator[PairRow]:
        for row in good_rows(
            str(file), options.train_split, Conversation, COLUMNS, loaded.train, options, loaded.problems
        ):
            if pair := row.pair():
                yield PairRow(row.user_id, pair)
            else:
                loaded.train.dropped[UNCLEAR] += 1

    hash_splits(loaded, options, rows(), by_prompt=False, seed=None)
