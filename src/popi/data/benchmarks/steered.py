"""Shared by ELIX and Review: two responses steered to two levels, judged by a user with a level.

Columns and labels follow FSPO's loaders (arXiv 2502.19312): `label` 0 means that `response_x` is preferred, 1
`response_y`; the user is the `scorer_level`; every text is stripped.
"""

from collections.abc import Callable, Iterator

from pydantic import BaseModel, ConfigDict, Field

from popi.data.benchmarks.read import Columns
from popi.data.benchmarks.result import Loaded, Options, Split
from popi.data.benchmarks.rows import PairRow, good_rows
from popi.signals.types import TargetPair, Text


class SteeredRow(BaseModel):
    """One row; `choice` is the column with the preferred response."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    prompt: Text
    level_x: Text
    level_y: Text
    response_x: Text
    response_y: Text
    scorer_level: Text
    choice: int = Field(alias="label", ge=0, le=1)

    def pair(self) -> TargetPair:
        chosen, rejected = self.response_x, self.response_y
        if self.choice == 1:
            chosen, rejected = rejected, chosen
        return TargetPair(prompt=self.prompt, chosen=chosen, rejected=rejected)


class DetRow(SteeredRow):
    """A row with `det_choice`, the deterministic judgement included in one public variant."""

    choice: int = Field(alias="det_choice", ge=0, le=1)


MODELS: dict[str, type[SteeredRow]] = {"label": SteeredRow, "det_choice": DetRow}
TEXTS = ("prompt", "level_x", "level_y", "response_x", "response_y", "scorer_level")


def steered_rows(
    loaded: Loaded,
    options: Options,
    oracle: Callable[[str], str | None],
    reason_to_drop: Callable[[SteeredRow], str | None],
) -> Callable[[Split, str, str, bool], Iterator[PairRow]]:
    """The `rows` function for `own_splits`.

    Args:
        loaded: receives the problems of bad rows.
        options: the loader's options.
        oracle: level → a description of its preference.
        reason_to_drop: row → the reason for dropping it, or None.
    """
    model = MODELS[options.choice_column]
    columns = Columns((*TEXTS, options.choice_column))

    def rows(split: Split, place: str, name: str, own_file: bool) -> Iterator[PairRow]:
        for row in good_rows(place, name, model, columns, split, options, loaded.problems, own_file=own_file):
            if reason := reason_to_drop(row):
                split.dropped[reason] += 1
            else:
                yield PairRow(row.scorer_level, row.pair(), oracle(row.scorer_level))

    return rows
