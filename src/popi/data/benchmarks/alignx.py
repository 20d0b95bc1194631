"""AlignX: forum posts, 90 preference dimensions; every row is a user of one target.

Sets: `JinaLeejnl/AlignX` and `JinaLeejnl/AlignX-test` (columns as in the README of the repository JinaLeejnl/AlignX;
lists may be empty or of other lengths than 4). Kinds of signals: `ugc` the user's comments, `pair` their choices,
`demo` the demographic description, `arbitrary` a mix: zero to `signals_per_user` comments and as many choices, as in
that repository's train/format_data.py, and, added here, the description half of the time.

`Preference Direction` is what the target's label was made from: it is never read, neither of the row nor of its
lists. A row has no user id, so its id is a hash of its texts; two rows of one person can't be told as such.
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
NOTHING = "no signal of the kind asked for (alignx_signals)"
IN_TRAIN = "the same row stands in train"


class Comment(BaseModel):
    """What the user wrote below a post."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    prompt: Text
    comment: Text


class Choice(BaseModel):
    """Which comment below a post the user preferred."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    prompt: Text
    chosen: Text
    rejected: Text


class AlignXRow(BaseModel):
    """One row, without its directions."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    prompt: Text
    chosen: Text
    rejected: Text
    demographic: str | None = Field(None, alias="Demographic Information")
    comments: list[Comment] | None = Field(None, alias="User-Generated Content")
    choices: list[Choice] | None = Field(None, alias="Pair-wise Comparative Feedback")


def load(options: Options, loaded: Loaded) -> None:
    """The splits `train` and `test`; reading stops at a split's limit unless all is to be read."""
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
    """The signals of the kind asked for, oldest first as the row has them; a choice between equals says nothing."""
    posts: list[Signal] = [PostSignal(text=one.comment, context=one.prompt) for one in row.comments or []]
    pairs: list[Signal] = []
    for one in row.choices or []:
        if one.chosen.casefold() == one.rejected.casefold():
            split.left_out[EQUAL] += 1
        else:
            pairs.append(PairSignal(prompt=one.prompt, chosen=one.chosen, rejected=one.rejected))
    facts: list[Signal] = []
    if row.demographic and row.demographic.strip():
        facts.append(DemographicSignal(text=row.demographic))
    most = options.signals_per_user
    if options.alignx_signals == "ugc":
        return posts[:most]
    if options.alignx_signals == "pair":
        return pairs[:most]
    if options.alignx_signals == "demo":
        return facts
    draw = Random(digest("popi-alignx", options.seed, user_id))
    drawn = [
        *draw.sample(posts, min(draw.randint(0, most), len(posts))),
        *draw.sample(pairs, min(draw.randint(0, most), len(pairs))),
        *(facts if draw.random() < 0.5 else []),
    ]
    return drawn or [*posts[:most], *pairs[:most], *facts]
