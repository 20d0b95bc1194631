"""Any TRL preference dataset with a user column.

`prompt`, `chosen` and `rejected` as in TRL: text, or chat messages with or without `prompt`
(`popi.data.windows.PreferenceRow`). A user's rows stay in order, so signals are older than targets. The dataset's own
test split is used if configured (`test_split` or `test_path`); otherwise a seeded hash splits the users.
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
    """Load the splits `train` and `test`."""
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
        all_rows = rows(loaded.train, place, options.train_split, False)
        hash_splits(loaded, options, all_rows, by_prompt=by_prompt, seed=None)


class OwnedRow(BaseModel):
    """One row; `owner` is the user column."""

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
    """The `rows` function for `own_splits`; the user is the text or integer in `options.user_column`."""
    column = options.user_column
    # Created here because the column's name is a setting, and error messages should show the actual name.
    model = create_model("OwnedRow", __base__=OwnedRow, owner=(Text | int, Field(alias=column)))
    columns = Columns((column, "chosen", "rejected"), ("prompt",))

    def rows(split: Split, place: str, name: str, own_file: bool) -> Iterator[PairRow]:
        for row in good_rows(place, name, model, columns, split, options, loaded.problems, own_file=own_file):
            yield PairRow(str(row.owner), row.pair())

    return rows
