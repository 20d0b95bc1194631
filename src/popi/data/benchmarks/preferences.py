"""Any TRL preference set with a column that says whose preference a row is.

`prompt`, `chosen`, `rejected` as TRL has them: text, or chat messages, then with or without `prompt`
(`popi.data.windows.PreferenceRow`). Rows keep their order within a user: signals are older than targets. A set
with a test split of its own (`test_split` or `test_path`) is taken as split; of any other the users are split by a
seeded hash.
"""

from collections.abc import Callable, Iterator
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import Loaded, Options, Split
from popi.data.benchmarks.rows import PairRow, good_rows
from popi.data.benchmarks.splits import hash_splits, own_splits
from popi.data.windows import PreferenceRow
from popi.errors import DataError
from popi.signals.types import Prompt, TargetPair, Text, Turn

VERSION = "preferences/1"


def load(options: Options, loaded: Loaded) -> None:
    """The splits `train` and `test`."""
    rows, place = preference_rows(loaded, options), options.path or ""
    by_prompt = bool(options.unseen_prompts)
    if options.test_path or options.test_split:
        own_splits(
            loaded,
            options,
            rows,
            place,
            unseen_prompts=by_prompt,
            unseen_users=options.unseen_users,
            seed=None,
            apart=by_prompt,
        )
    else:
        found = rows(loaded.train, place, options.train_split, False)
        hash_splits(loaded, options, found, by_prompt=by_prompt, seed=None)


class OwnedRow(BaseModel):
    """One row; `owner` stands for the column that says whose it is."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    owner: Text | int
    prompt: Prompt | None = None
    chosen: Text | list[Turn]
    rejected: Text | list[Turn]

    def pair(self) -> TargetPair:
        return PreferenceRow(
            user_id=str(self.owner), prompt=self.prompt, chosen=self.chosen, rejected=self.rejected
        ).pair()

    @model_validator(mode="after")
    def _makes_a_pair(self) -> Self:
        try:
            self.pair()
        except DataError as error:
            raise ValueError(str(error)) from None
        return self


def preference_rows(loaded: Loaded, options: Options) -> Callable[[Split, str, str, bool], Iterator[PairRow]]:
    """The reader that `own_splits` asks for; the user is the text or whole number in `options.user_column`."""
    column = options.user_column
    # Made here, since the column's name is a setting: messages should name the column that was read.
    model = create_model("OwnedRow", __base__=OwnedRow, owner=(Text | int, Field(alias=column)))
    columns = Columns((column, "chosen", "rejected"), ("prompt",))

    def rows(split: Split, place: str, name: str, own_file: bool) -> Iterator[PairRow]:
        for row in good_rows(place, name, model, columns, split, options, loaded.problems, own_file=own_file):
            yield PairRow(str(row.owner), row.pair())

    return rows
