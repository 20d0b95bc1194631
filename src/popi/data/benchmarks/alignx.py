"""AlignX: forum posts, 90 preference dimensions; every row is a user with one target.

Datasets: `JinaLeejnl/AlignX` and `JinaLeejnl/AlignX-test` (columns as in the README of the repository
JinaLeejnl/AlignX; lists may be empty or have lengths other than 4). Kinds of signals: `ugc` the user's comments, `pair`
their choices, `demo` the demographic description, `arbitrary` a mix: zero to `signals_per_user` comments and as many
choices, as in that repository's train/format_data.py, plus the description half of the time, which is popi's addition.

The target's label was derived from `Preference Direction`, so that field is never read, neither the row's nor that of
its lists. Rows have no user id; a hash of the texts is used instead, so two rows of one person count as two users.
"""

from random import Random

from pydantic import BaseModel, ConfigDict, Field

from popi.data.benchmarks.read import Columns, has_split
from popi.data.benchmarks.result import EQUAL, REPEATED, Loaded, Options, Split, digest
from popi.data.benchmarks.rows import good_rows
from popi.signals.types import DemographicSignal, PairSignal, PostSignal, Signal, TargetPair, Text

VERSION = "alignx/1"
HUB = "JinaLeejnl/AlignX"
HUB_TEST = "JinaLeejnl/AlignX-test"
COLUMNS = Columns(
    ("prompt", "chosen", "rejected"),
    ("Demographic Information", "User-Generated Content", "Pair-wise Comparative Feedback"),
)
NOTHING = "no signals of the requested kind (alignx_signals)"
IN_TRAIN = "the same row also appears in train"


class Comment(BaseModel):
    """The user's comment on a post."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    prompt: Text
    comment: Text


class Choice(BaseModel):
    """The user's choice between two comments on a post."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    prompt: Text
    chosen: Text
    rejected: Text


class AlignXRow(BaseModel):
    """One row, without its preference directions."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    prompt: Text
    chosen: Text
    rejected: Text
    demographic: str | None = Field(None, alias="Demographic Information")
    comments: list[Comment] | None = Field(None, alias="User-Generated Content")
    choices: list[Choice] | None = Field(None, alias="Pair-wise Comparative Feedback")


def load(options: Options, loaded: Loaded) -> None:
    """Load the splits `train` and `test`; reading stops at a split's limit unless `read_all` is set."""
    place = options.path or HUB
    test_place = options.test_path or (HUB_TEST if place == HUB else place)
    test_name = options.test_split or "test"
    seen: dict[str, Split] = {}
    for split, where, name in (
        (loaded.train, place, options.train_split),
        (loaded.others["test"], test_place, test_name),
    ):
        own_file = split is not loaded.train and bool(options.test_path)
        if split is not loaded.train and not options.need_test and not own_file and not has_split(where, name):
            continue
        for row in good_rows(where, name, AlignXRow, COLUMNS, split, options, loaded.problems, own_file=own_file):
            _add(row, split, options, seen)
            if split.full and not options.read_all:
                break


def _add(row: AlignXRow, split: Split, options: Options, seen: dict[str, Split]) -> None:
    user_id = f"alignx-{digest(row.model_dump_json())[:16]}"
    if row.chosen.casefold() == row.rejected.casefold():
        split.dropped[EQUAL] += 1
    elif seen.setdefault(user_id, split) is not split:
        split.dropped[IN_TRAIN] += 1
    elif user_id in split.user_ids:
        split.dropped[REPEATED] += 1
    elif signals := _signals(row, split, options, user_id):
        target = TargetPair(prompt=row.prompt, chosen=row.chosen, rejected=row.rejected)
        split.add(user_id, signals, [target], None, rows=1)
    else:
        split.dropped[NOTHING] += 1


def _signals(row: AlignXRow, split: Split, options: Options, user_id: str) -> list[Signal]:
    """The signals of the requested kind, in the row's order, oldest first. Choices between equal texts are dropped."""
    posts: list[Signal] = [PostSignal(text=comment.comment, context=comment.prompt) for comment in row.comments or []]
    pairs: list[Signal] = []
    for choice in row.choices or []:
        if choice.chosen.casefold() == choice.rejected.casefold():
            split.dropped_signals[EQUAL] += 1
        else:
            pairs.append(PairSignal(prompt=choice.prompt, chosen=choice.chosen, rejected=choice.rejected))
    facts: list[Signal] = []
    if row.demographic and row.demographic.strip():
        facts.append(DemographicSignal(text=row.demographic))
    limit = options.signals_per_user
    if options.alignx_signals == "ugc":
        return posts[:limit]
    if options.alignx_signals == "pair":
        return pairs[:limit]
    if options.alignx_signals == "demo":
        return facts
    draw = Random(digest("popi-alignx", options.seed, user_id))
    drawn = [
        *draw.sample(posts, min(draw.randint(0, limit), len(posts))),
        *draw.sample(pairs, min(draw.randint(0, limit), len(pairs))),
        *(facts if draw.random() < 0.5 else []),
    ]
    return drawn or [*posts[:limit], *pairs[:limit], *facts]
