"""`[data.benchmark]`: the sources that are benchmarks, where one lies and how it is read."""

from typing import Literal, TypedDict

from pydantic import Field

from popi.config.section import Filled, Section


class WindowSizes(TypedDict):
    """How TRL preference rows are cut, by the names that the readers of files take."""

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
"""The sources that are benchmarks (docs/data.md), with each one's own window sizes."""
_OWN_SPLITS = ("elix", "review", "roleplay", "alignx", "preferences")
_HASH_SPLITS = (
    *("polis", "mtbench", "preferences", "persona", "movielens", "prism", "personamem", "psoups"),
    *("mind", "amazon", "hicupid"),
)
LOCAL = (*_HASH_SPLITS, "lamp")
"""Benchmarks without a set on the hub that can be read as it lies there: they need a path."""
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
"""Setting of a benchmark → sources that it means something for; all others go with all of them."""


class BenchmarkConfig(Section):
    path: str | None = Field(default=None, min_length=1)
    """Where the set lies: a folder of parquet or JSONL files, one such file, or a hub id; docs/data.md says what each
    benchmark reads. Unset: the set on the hub of `elix`, `review`, `roleplay`, `alignx`; the others need a path."""
    test_path: str | None = Field(default=None, min_length=1)
    """Where the test split lies, if not in `path` too (AlignX has a hub set for it, taken where `path` is unset)."""
    train_split: Filled = "train"
    """The split to train on: a split of the hub set, or the word in the names of a folder's files."""
    test_split: str | None = Field(default=None, min_length=1)
    """The split to test on (`validation`, say). Unset: `test`; `preferences`: users are split by a seeded hash,
    unless `test_path` is set."""
    test_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the users held out, where a set has no test split of its own (with `unseen_prompts`: of the prompts too;
    `psoups`: of the prompts). `persona`: share of the statements that only test users have."""
    split_seed: int = Field(default=0, ge=0)
    """Seeds that hash and the order in which rows are cut into windows; of `persona`, the users too. Not the run's
    `seed`: runs of several seeds are tested on the same users."""
    unseen_prompts: bool | None = None
    """Test targets have prompts that no training user saw; what stands against it is dropped and counted. Unset: true
    for `elix`, `review`, `mtbench`, else false."""
    unseen_users: bool = True
    """`roleplay`, and `preferences` with a test split of its own: test rows of users that stand in train are dropped
    and counted."""
    on_bad_rows: Literal["refuse", "drop"] = "refuse"
    """Rows that do not fit the benchmark's columns: `refuse` stops and lists them, `drop` counts them."""
    choice_column: Literal["label", "det_choice"] = "label"
    """`elix`: the column that says which response was preferred (0: `response_x`)."""
    scorer_match: bool = True
    """`elix`: drop, and count, rows whose `scorer_level` is neither `level_x` nor `level_y`."""
    interpolated: bool = False
    """Evaluate on users of a kind never trained on: `review` on the four combined levels instead of the four single
    ones, `persona` on users of the six held-out traits."""
    alignx_signals: Literal["ugc", "pair", "demo", "arbitrary"] = "arbitrary"
    """`alignx`: which signals a user has: comments, choices, the demographic description, or a mix."""
    user_column: Filled = "user_id"
    """`preferences`: the column that says whose preference a row is (text or whole numbers)."""
