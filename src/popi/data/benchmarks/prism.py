"""PRISM: conversations of 1,500 people from 75 countries with LLMs; which of up to four answers each preferred.

Set: `conversations.jsonl` of HannahRoseKirk/prism-alignment (arXiv 2404.16019; people's texts CC BY 4.0, models'
CC BY-NC 4.0). Columns as in the repository HannahKirk/prism-alignment and loaders that group turns: `user_id`,
`conversation_history` of {`turn`, `role` user or model, `content`, `score` 1 to 100, `if_chosen`}.

A conversation gives one pair: its opening prompt, the answer that the person went on with, and the one that they
scored lowest. Later turns are not used: their prompts hold the chosen answer, which a target would repeat. Users are
split by a seeded hash and keep the order of their conversations.
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
UNCLEAR = "no one answer of the first turn was chosen, or none was scored lower"


class Utterance(BaseModel):
    """What the person or one of the models said."""

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
        """The chosen answer against the lowest scored one, of the first turn."""
        opening = [one for one in self.conversation_history if one.turn == 0 and one.content.strip()]
        prompts = [one.content for one in opening if one.role == "user"]
        answers = [one for one in opening if one.role == "model"]
        chosen = [one for one in answers if one.if_chosen]
        if len(prompts) != 1 or len(chosen) != 1 or chosen[0].score is None:
            return None
        lower = [one for one in answers if one.score is not None and one.score < chosen[0].score]
        if not lower:
            return None
        worst = min(lower, key=lambda one: (one.score or 0, one.content))
        return TargetPair(prompt=prompts[0], chosen=chosen[0].content, rejected=worst.content)


def load(options: Options, loaded: Loaded) -> None:
    """The splits `train` and `test`: people of their own."""
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
