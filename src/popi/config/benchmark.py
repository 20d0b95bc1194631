"""`[data.benchmark]`: which sources are benchmarks, where they are stored and how they are read."""

from typing import Literal, TypedDict

from pydantic import Field

from popi.config.section import Filled, Section


class WindowSizes(TypedDict):
    """How TRL preference rows are cut into windows; the keys are keyword arguments of the file readers."""

    signals_per_user: int
    targets_per_user: int


BENCHMARKS: dict[str, WindowSizes] = {
    "elix": {"signals_per_user": 4, "targets_per_user": 1},
    "review": {"signals_per_user": 4, "targets_per_user": 1},
    "roleplay": {"signals_per_user": 8, "targets_per_user": 1},
    "alignx": {"signals_per_user": 4, "targets_per_user": 1},
    "polis": {"signals_per_user": 4, "targets_per_user": 4},
    "mtbench": {"signals_per_user": 4, "targets_per_user": 1},
    "preferences": {"signals_per_user": 4, "targets_per_user": 4},
    "persona": {"signals_per_user": 8, "targets_per_user": 8},
    "movielens": {"signals_per_user": 16, "targets_per_user": 8},
    "prism": {"signals_per_user": 4, "targets_per_user": 1},
    "personamem": {"signals_per_user": 16, "targets_per_user": 3},
    "psoups": {"signals_per_user": 4, "targets_per_user": 1},
    "lamp": {"signals_per_user": 16, "targets_per_user": 1},
    "mind": {"signals_per_user": 16, "targets_per_user": 1},
    "amazon": {"signals_per_user": 4, "targets_per_user": 1},
    "hicupid": {"signals_per_user": 32, "targets_per_user": 4},
}
"""The sources that are benchmarks (docs/data.md), with their default window sizes."""
_OWN_SPLITS = ("elix", "review", "roleplay", "alignx", "preferences")
_HASH_SPLITS = (
    *("polis", "mtbench", "preferences", "persona", "movielens", "prism", "personamem", "psoups"),
    *("mind", "amazon", "hicupid"),
)
LOCAL = (*_HASH_SPLITS, "lamp")
"""Benchmarks with no hub dataset that popi can read directly: they need a path."""
APPLIES: dict[str, tuple[str, ...]] = {
    "test_path": _OWN_SPLITS,
    "test_split": (*_OWN_SPLITS, "lamp"),
    "test_share": _HASH_SPLITS,
    "unseen_prompts": ("elix", "review", "roleplay", "mtbench", "preferences"),
    "unseen_users": ("roleplay", "preferences"),
    "choice_column": ("elix",),
    "scorer_match": ("elix",),
    "interpolated": ("review", "persona"),
    "alignx_signals": ("alignx",),
    "user_column": ("preferences",),
}
"""Benchmark setting → the sources that use it. Settings not listed here apply to every benchmark."""


class BenchmarkConfig(Section):
    path: str | None = Field(default=None, min_length=1)
    """Location of the dataset: a folder of parquet or JSONL files, a single such file, or a hub id; docs/data.md lists
    what each benchmark reads. Unset: the hub dataset of `elix`, `review`, `roleplay` or `alignx`; the others need a
    path."""
    test_path: str | None = Field(default=None, min_length=1)
    """Location of the test split, if it isn't in `path` (AlignX has a separate hub dataset for it, used when `path` is
    unset)."""
    train_split: Filled = "train"
    """The split to train on: a split of the hub dataset, or the word that a folder's file names contain."""
    test_split: str | None = Field(default=None, min_length=1)
    """The split to test on, such as `validation`. Unset: `test`; `preferences` splits users by a seeded hash unless
    `test_path` is set."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of users to hold out when the dataset has no test split (with `unseen_prompts`, of prompts too; `psoups`:
    of prompts only). `persona`: share of the statements that only test users have."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of that hash and of the order in which rows are cut into windows; for `persona`, of the users too. Separate
    from the run's `seed`, so that runs with different seeds are tested on the same users."""
    unseen_prompts: bool | None = None
    """Require test targets to have prompts that no training user saw; conflicting rows are dropped and counted. Unset:
    true for `elix`, `review` and `mtbench`, false otherwise."""
    unseen_users: bool = True
    """`roleplay`, and `preferences` with a separate test split: drop and count the test rows of users who also appear
    in train."""
    on_bad_rows: Literal["refuse", "drop"] = "refuse"
    """What to do with rows that do not fit the benchmark's columns: `refuse` stops and lists them, `drop` drops and
    counts them."""
    choice_column: Literal["label", "det_choice"] = "label"
    """`elix`: the column that holds the preferred response (0: `response_x`)."""
    scorer_match: bool = True
    """`elix`: drop and count rows whose `scorer_level` is neither `level_x` nor `level_y`."""
    interpolated: bool = False
    """Evaluate on kinds of users that were never trained on: `review` on the four combined levels instead of the four
    single ones, `persona` on users with the six held-out traits."""
    alignx_signals: Literal["ugc", "pair", "demo", "arbitrary"] = "arbitrary"
    """`alignx`: the kind of signals per user: comments (`ugc`), choices (`pair`), the demographic description (`demo`),
    or a mix (`arbitrary`)."""
    user_column: Filled = "user_id"
    """`preferences`: the column with the user's id (text or integers)."""
